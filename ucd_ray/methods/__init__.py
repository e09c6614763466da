"""Methods by name.  A method is a tuple of terms; what else it sets is in `METHOD_DEFAULTS`."""

from __future__ import annotations

from typing import Any

from ucd_ray.methods.cross_entropy import CrossEntropy, UnbiasedCE
from ucd_ray.methods.distillation import FeatureKD, OutputKD, UnbiasedKD
from ucd_ray.methods.term import Batch, Term
from ucd_ray.methods.ucd import UCD

METHODS: dict[str, tuple[Term, ...]] = {
    "finetune": (CrossEntropy(),),
    "joint": (CrossEntropy(),),  # all classes in one step: Recipe.scenario_run
    "lwf": (CrossEntropy(), OutputKD()),
    "ilt": (CrossEntropy(), OutputKD(), FeatureKD()),
    "mib": (UnbiasedCE(), UnbiasedKD()),
    "mib+ucd": (UnbiasedCE(), UnbiasedKD(), UCD()),
}

# Recipe values that a method brings along; a user's own value wins.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "mib": {"model.background_init": True},
    "mib+ucd": {"model.background_init": True},
}

__all__ = [
    "METHODS",
    "METHOD_DEFAULTS",
    "UCD",
    "Batch",
    "CrossEntropy",
    "FeatureKD",
    "OutputKD",
    "Term",
    "UnbiasedCE",
    "UnbiasedKD",
]
