"""Methods by name.  A method is a tuple of terms; what else it sets is in `METHOD_DEFAULTS`."""

from __future__ import annotations

from typing import Any

from ucd_ray.methods.cross_entropy import BinaryCE, CrossEntropy, UnbiasedCE
from ucd_ray.methods.distillation import (
    BinaryKD,
    DecoderKD,
    FeatureKD,
    OutputKD,
    SimilarityKD,
    UnbiasedKD,
)
from ucd_ray.methods.term import Batch, Term
from ucd_ray.methods.ucd import UCD

# ILT's conference version (arXiv 1907.13372): lambdas 1 and 50, class sum, and its label mask.
ILT_CE = CrossEntropy(reduction="valid")
ILT_OUTPUT = OutputKD(weight=1.0, class_reduction="sum", pixels="old")
ILT_FEATURE = FeatureKD(weight=50.0)

METHODS: dict[str, tuple[Term, ...]] = {
    "finetune": (CrossEntropy(),),
    "joint": (CrossEntropy(),),  # all classes in one step: Recipe.scenario_run
    "frozen": (CrossEntropy(),),
    "lwf": (CrossEntropy(), OutputKD()),
    "lwf-mc": (BinaryCE(), BinaryKD()),
    "ilt": (CrossEntropy(), OutputKD(), FeatureKD()),
    "ilt-output": (ILT_CE, ILT_OUTPUT),
    "ilt-feature": (ILT_CE, ILT_FEATURE),
    "ilt-freeze": (ILT_CE,),
    "ilt-freeze-output": (ILT_CE, ILT_OUTPUT),
    "ilt-output-feature": (ILT_CE, ILT_OUTPUT, ILT_FEATURE),
    "ilt-decoder": (ILT_CE, DecoderKD()),
    "ilt-spkd": (ILT_CE, SimilarityKD()),
    "mib": (UnbiasedCE(), UnbiasedKD()),
    "ucd": (CrossEntropy(), UCD()),
    "lwf+ucd": (CrossEntropy(), OutputKD(), UCD()),
    "ilt+ucd": (CrossEntropy(), OutputKD(), FeatureKD(), UCD()),
    "mib+ucd": (UnbiasedCE(), UnbiasedKD(), UCD()),
}

# Recipe values that a method brings along; a user's own value wins.
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "frozen": {"model.freeze": "old"},
    "ilt-freeze": {"model.freeze": "encoder"},
    "ilt-freeze-output": {"model.freeze": "encoder"},
    "mib": {"model.background_init": True},
    "mib+ucd": {"model.background_init": True},
}

__all__ = [
    "METHODS",
    "METHOD_DEFAULTS",
    "UCD",
    "Batch",
    "BinaryCE",
    "BinaryKD",
    "CrossEntropy",
    "DecoderKD",
    "FeatureKD",
    "OutputKD",
    "SimilarityKD",
    "Term",
    "UnbiasedCE",
    "UnbiasedKD",
]
