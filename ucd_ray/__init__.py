"""Hyperparameter studies for incremental semantic segmentation.

    Recipe, run            one run and every value of it
    StudySpec, run_study   a search over recipes
    load_search_space      the search space of a scenario

Importing this package imports neither torch nor Ray; names load on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ucd_ray.recipe import Recipe
    from ucd_ray.tune.run import RunResult, run
    from ucd_ray.tune.space import load_search_space
    from ucd_ray.tune.spec import StudySpec
    from ucd_ray.tune.study import run_study

_MODULE_OF = {
    "Recipe": "recipe",
    "RunResult": "tune.run",
    "StudySpec": "tune.spec",
    "load_search_space": "tune.space",
    "run": "tune.run",
    "run_study": "tune.study",
}

__all__ = ["Recipe", "RunResult", "StudySpec", "load_search_space", "run", "run_study"]


def __getattr__(name: str) -> Any:
    """Loads a public name from its module on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
