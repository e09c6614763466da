# Everything a developer runs.  Needs Python 3.11 or newer, make and git; the first target makes the rest.
#
#   make demo PYTHON=python3.12        another interpreter
#   make test VENV=/tmp/venv           another place for the virtual environment

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=

BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
DEMO := $(CURDIR)/demo-out
UCD_RAY := UCD_RAY_HOME="$(DEMO)/home" "$(BIN)/ucd-ray"
# Tests that start a cluster mostly wait: two processes of them run beside two of the rest, each on one
# thread, as two threads each on two cores would wait for each other.  The rest takes its files in their
# order, or those with few and long tests would come last, in one process.
PYTEST := OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest
TWO := -n 2 --dist loadfile
IN_ORDER := $(TWO) --no-loadscope-reorder
REPORT ?=
NEEDS_NOTHING := not ray and not slow and not data and not gpu

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-fast test-gpu lint types clean

help:
	@echo "make demo       train and tune on generated images: tables, and a picture in demo-out/"
	@echo "make test       all tests but those for a GPU (data tests need UCD_RAY_TEST_DATA)"
	@echo "make test-fast  the tests that need no Ray cluster, no data and little time"
	@echo "make test-gpu   the tests for a CUDA card"
	@echo "make lint       ruff: rules and format"
	@echo "make types      mypy --strict"
	@echo "make venv       only the virtual environment, in $(VENV)"
	@echo "make clean      remove demo-out/ and caches; the virtual environment stays"

venv: $(READY)

$(READY): pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python %d.%d, ucd-ray needs 3.11 or newer: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "installing into $(VENV); the first time this takes minutes"
	"$(BIN)/python" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --quiet --upgrade pip
	"$(BIN)/python" -m pip install $(PIP_ARGS) --editable '.[dev]'
	@touch "$(READY)"

# The same two workers in both, so that they share the base step of the step cache.
demo: venv
	$(UCD_RAY) train --scenario shapes-8-4 --method finetune --workers 2
	$(UCD_RAY) tune --scenario shapes-8-4 --workers 2 --trials 4 --name demo
	$(UCD_RAY) results demo --picture "$(DEMO)/demo.png"

test: venv
	@log=$$(mktemp); failed=0; \
	$(PYTEST) $(TWO) -m "ray and not gpu" $(REPORT:%=--junitxml=%/ray.xml) >"$$log" 2>&1 & ray=$$!; \
	trap 'kill $$ray 2>/dev/null; rm -f "$$log"' EXIT INT TERM; \
	$(PYTEST) $(IN_ORDER) -m "not ray and not gpu" $(REPORT:%=--junitxml=%/rest.xml) || failed=1; \
	echo "the tests that start a cluster"; \
	wait $$ray || failed=1; \
	cat "$$log"; exit $$failed

test-fast: venv
	$(PYTEST) $(IN_ORDER) -m "$(NEEDS_NOTHING)"

test-gpu: venv
	$(PYTEST) -m gpu tests/losses

lint: venv
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

types: venv
	"$(BIN)/mypy" ucd_ray

clean:
	rm -rf "$(DEMO)" build dist .mypy_cache .pytest_cache .ruff_cache
