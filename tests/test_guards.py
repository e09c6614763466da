"""Promises about the code as a whole: who imports whom, what loads lazily, which names are public."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ucd_ray

PACKAGE = Path(ucd_ray.__file__).parent
SERVICE = PACKAGE / "service"  # a link, which rglob does not follow, to where the code lies

# From the bottom up; modules of one layer may import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("config",),
    ("scenarios", "class_orders"),
    ("losses", "metrics", "palette", "confusion", "drawing"),
    ("data", "models"),
    ("methods",),
    ("recipe",),
    ("published",),
    (
        "store",
        "presence",
        "step_leases",
        "step_eviction",
        "checkpoint",
        "runtime",
        "memory",
        "environment",
    ),
    ("job", "learner", "evaluate", "network", "predictions", "onnx_export"),
    ("memories", "turns"),
    ("train",),
    ("tune",),
    ("service", "client", "doctor", "cli"),
)
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}


def source_files() -> list[Path]:
    found = {*PACKAGE.rglob("*.py"), *SERVICE.rglob("*.py")}
    return sorted(found - {PACKAGE / "__init__.py"})


def unit_of(path: Path) -> str:
    """The module or package right below ucd_ray."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that a file imports, at any depth of the code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            assert node.module is not None
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_every_module_has_a_layer() -> None:
    assert {unit_of(path) for path in source_files()} <= set(LEVEL)


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = unit_of(path)
    up = [
        f"line {line}: {name}"
        for line, name in imported(path)
        if name.startswith("ucd_ray.")
        and (unit := name.split(".")[1]) in LEVEL
        and unit != own
        and unit != "errors"
        and LEVEL[unit] > LEVEL[own]
    ]
    assert up == []


def users_of(library: str) -> set[str]:
    return {
        unit_of(path)
        for path in source_files()
        for _, name in imported(path)
        if name.split(".")[0] == library
    }


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("ray", {"tune", "train"}),
        ("optuna", {"tune"}),
        ("sqlalchemy", {"tune", "service"}),
        ("fastapi", {"service"}),
        ("typer", {"cli"}),
        ("uvicorn", {"cli", "service"}),
        ("rich", {"cli", "tune", "service"}),
        ("timm", {"models"}),
        ("triton", {"losses"}),
        ("plotly", {"drawing"}),
        ("matplotlib", {"drawing", "predictions"}),
    ],
)
def test_a_library_is_used_in_its_place_only(library: str, allowed: set[str]) -> None:
    assert users_of(library) <= allowed


@pytest.mark.parametrize("unit", ["losses", "metrics"])
def test_losses_and_metrics_are_functions_of_tensors(unit: str) -> None:
    names = {
        name.split(".")[0] if not name.startswith("ucd_ray") else ".".join(name.split(".")[:2])
        for path in source_files()
        if unit_of(path) == unit
        for _, name in imported(path)
    }
    standard = {name for name in names if name in sys.stdlib_module_names}
    assert names - standard <= {"torch", "triton", "ucd_ray.errors", f"ucd_ray.{unit}"}
    assert not standard & {"os", "pathlib", "socket", "subprocess", "multiprocessing", "logging"}


def test_an_installed_copy_has_every_package() -> None:
    top = PACKAGE.parent
    listed = tomllib.loads((top / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {path.parent for path in (*PACKAGE.rglob("*.py"), *SERVICE.rglob("*.py"))}
    names = {".".join(path.relative_to(top).parts) for path in found}
    assert sorted(listed) == sorted({*names, "ucd_ray.search_spaces"})


VALIDATE = """
from ucd_ray.tune.space import build_spec, load_search_space
spec = build_spec(load_search_space("shapes-8-4"), trials=3)
assert spec.first
"""


@pytest.mark.parametrize(
    "code",
    [
        "import ucd_ray",
        "import ucd_ray.cli",
        "import ucd_ray.tune.space",
        "import ucd_ray.tune.study",
        "import ucd_ray.models, ucd_ray.methods, ucd_ray.recipe, ucd_ray.job",
        VALIDATE,
        "import ucd_ray; ucd_ray.StudySpec, ucd_ray.Recipe, ucd_ray.load_search_space",
    ],
    ids=lambda code: code.strip().splitlines()[0],
)
def test_the_driver_side_needs_neither_torch_nor_ray(code: str) -> None:
    check = "import sys; print([m for m in ('torch', 'timm', 'ray') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Names that others build on: a change here is a change for every user.
PUBLIC = {
    "ucd_ray": ["Recipe", "RunResult", "StudySpec", "load_search_space", "run", "run_study"],
    "ucd_ray.losses": [
        "attraction",
        "background_sum",
        "balanced_sample",
        "binary_cross_entropy",
        "binary_distillation",
        "class_means",
        "contrastive_distillation",
        "cross_entropy",
        "feature_distillation",
        "histogram_medians",
        "local_pod",
        "min_max",
        "normalised_entropy",
        "output_distillation",
        "path_importance",
        "prototype_matching",
        "pseudo_labels",
        "quadratic_penalty",
        "repulsion",
        "running_fisher",
        "similarity_distillation",
        "sparsity",
        "unbiased_binary_cross_entropy",
        "unbiased_binary_distillation",
        "unbiased_cross_entropy",
        "unbiased_distillation",
        "unbiased_losses",
        "walk_score",
    ],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_listed_and_load(module: str) -> None:
    found = importlib.import_module(module)
    assert sorted(found.__all__) == PUBLIC[module]
    assert [name for name in found.__all__ if getattr(found, name, None) is None] == []


def test_the_public_names_of_scenarios_are_listed() -> None:
    from ucd_ray import scenarios

    own = {
        name
        for name, value in vars(scenarios).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == scenarios.__name__
    }
    assert own == {
        "DatasetClasses",
        "Scenario",
        "parse_scenario",
        "read_scenario",
        "scenario_from_mapping",
    }
    assert {"DATASET_CLASSES", "KNOWN_SCENARIOS", "LISTED_DISJOINT", "Setting"} <= set(
        vars(scenarios)
    )


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'ucd_ray' has no attribute 'nothing'"):
        _ = ucd_ray.nothing
