"""Python and the packages that ucd-ray needs, and the graphics cards."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ucd_ray.doctor.finding import Finding
from ucd_ray.tune.cluster import local_gpus

PACKAGE = "ucd-ray"
TOLD = ("ucd-ray", "torch", "ray", "optuna")
PROBE_S = 14.0  # for torch to load and look at the cards
PROBE = """
import json, torch, torch.distributed as d
found = {"cuda": torch.version.cuda, "cards": [], "problem": None,
         "nccl": d.is_available() and d.is_nccl_available()}
try:
    torch.cuda.init()
    found["cards"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
except Exception as error:
    found["problem"] = str(error)
print(json.dumps(found))
"""


def python() -> Iterator[Finding]:
    """The interpreter."""
    wanted, here = metadata(PACKAGE)["Requires-Python"], platform.python_version()
    if SpecifierSet(wanted).contains(here, prereleases=True):
        yield Finding("python", "ok", f"{here} in {sys.prefix}")
    else:
        mend = f"make a virtual environment with Python {wanted}"
        yield Finding("python", "wrong", f"{here}, {PACKAGE} needs {wanted}", mend)


def packages() -> Iterator[Finding]:
    """What pyproject.toml asks for."""
    needed = [Requirement(text) for text in requires(PACKAGE) or ()]
    needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = [finding for each in needed if (finding := _package(each)) is not None]
    yield from wrong
    if not wrong:
        told = ", ".join(f"{name} {version(name)}" for name in TOLD)
        yield Finding("packages", "ok", f"{told}; all {len(needed)} needed ones fit")


def _package(needed: Requirement) -> Finding | None:
    asked = f"{needed.name}{needed.specifier}"
    mend = f"pip install '{needed}'"
    try:
        here = version(needed.name)
    except PackageNotFoundError:
        told = f"{needed.name} is not installed, {asked} is needed"
        return Finding("packages", "wrong", told, mend)
    if needed.specifier.contains(here, prereleases=True):
        return None
    return Finding("packages", "wrong", f"{needed.name} {here}, {asked} is needed", mend)


def gpus() -> Iterator[Finding]:
    """Cards, their driver, whether torch sees them, and NCCL."""
    there = local_gpus()
    if there == 0:
        yield Finding("gpus", "note", "no NVIDIA card on this machine: training uses its CPUs")
        return
    found = _seen_by_torch()
    if "cuda" not in found:
        mend = "pip install --force-reinstall torch torchvision"
        yield Finding("gpus", "wrong", f"torch does not load: {found['problem']}", mend)
    elif found["cuda"] is None:
        mend = "install a build of torch with CUDA (pytorch.org/get-started)"
        yield Finding("gpus", "wrong", f"{there} cards, but torch is built without CUDA", mend)
    elif not found["cards"]:
        mend = (
            f"install a driver for CUDA {found['cuda']}, look at CUDA_VISIBLE_DEVICES; "
            "a container needs --gpus all"
        )
        told = found["problem"] or "none is visible"
        yield Finding("gpus", "wrong", f"{there} cards, torch can use none: {told}", mend)
    else:
        names = ", ".join(sorted(set(found["cards"])))
        told = f"{len(found['cards'])} of {there} visible: {names}; driver {_driver()}"
        yield Finding("gpus", "ok", f"{told}, CUDA {found['cuda']}")
        if not found["nccl"]:
            mend = "install torch's own wheel for Linux, which has NCCL"
            told = "torch has no NCCL: several workers cannot share a step"
            yield Finding("gpus", "wrong", told, mend)
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            told = "no C compiler, which Triton needs: UCD and MiB's losses are slower, without kernels"
            mend = "install gcc and the C library's headers (Debian: gcc libc6-dev), or set CC"
            yield Finding("gpus", "wrong", told, mend)


def _seen_by_torch() -> dict[str, Any]:
    """What torch says in a process of its own: a broken driver can take one down."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_S
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"no answer within {PROBE_S:g} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"problem": last}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _driver() -> str:
    """The version of the driver, as nvidia-smi tells it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    match = re.search(r"\d+[\d.]*", done.stdout)
    return match.group() if match else "unknown"
