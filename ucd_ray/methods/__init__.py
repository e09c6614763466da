"""Methods by name.  A method is a tuple of terms; what else it sets is in `METHOD_DEFAULTS`."""

from __future__ import annotations

from typing import Any

from ucd_ray.methods.cross_entropy import CrossEntropy, UnbiasedCE
from ucd_ray.methods.distillation import DecoderKD, FeatureKD, OutputKD, SimilarityKD, UnbiasedKD
from ucd_ray.methods.pod import POD
from ucd_ray.methods.regularizers import EWC, PI, RW
from ucd_ray.methods.sdr import Attraction, Matching, Repulsion, Sparsity
from ucd_ray.methods.term import Batch, Term
from ucd_ray.methods.ucd import UCD

# ILT's conference version (arXiv 1907.13372): lambdas 1 and 50, class sum, and its label mask.
ILT_CE = CrossEntropy(reduction="valid")
ILT_OUTPUT = OutputKD(weight=1.0, class_reduction="sum", pixels="old")
ILT_FEATURE = FeatureKD(weight=50.0)

_ALONE: dict[str, tuple[Term, ...]] = {
    "finetune": (CrossEntropy(),),
    "joint": (CrossEntropy(),),  # all classes in one step: Recipe.steps
    "frozen": (CrossEntropy(),),
    "lwf": (CrossEntropy(), OutputKD()),
    "lwf-mc": (CrossEntropy(), OutputKD(weight=10.0, class_reduction="sum")),
    "ilt": (CrossEntropy(), OutputKD(), FeatureKD()),
    "ilt-output": (ILT_CE, ILT_OUTPUT),
    "ilt-feature": (ILT_CE, ILT_FEATURE),
    "ilt-freeze": (ILT_CE,),
    "ilt-freeze-output": (ILT_CE, ILT_OUTPUT),
    "ilt-output-feature": (ILT_CE, ILT_OUTPUT, ILT_FEATURE),
    "ilt-decoder": (ILT_CE, DecoderKD()),
    "ilt-spkd": (ILT_CE, SimilarityKD()),
    "mib": (UnbiasedCE(), UnbiasedKD()),
    "plop": (CrossEntropy(), POD()),
    "sdr": (
        *(UnbiasedCE(), UnbiasedKD(weight=100.0)),
        *(Matching(), Attraction(), Repulsion(), Sparsity()),
    ),
    "ewc": (CrossEntropy(), EWC()),
    "pi": (CrossEntropy(), PI()),
    "rw": (CrossEntropy(), RW()),
}

# Recipe values that a method brings along; a user's own value wins.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "frozen": {"model.freeze": "old"},
    "lwf-mc": {"model.head": "sigmoid"},
    "ilt-freeze": {"model.freeze": "encoder"},
    "ilt-freeze-output": {"model.freeze": "encoder"},
    "mib": {"model.background_init": True},
    "plop": {"model.background_init": True, "pseudo.mode": "entropy", "pseudo.adaptive": True},
}

ADDED = "+ucd"  # UCD is an addition to any method that has an old model
_HOSTS = [name for name in _ALONE if name not in ("finetune", "joint")]

METHODS: dict[str, tuple[Term, ...]] = {
    **_ALONE,
    "ucd": (CrossEntropy(), UCD()),
    **{name + ADDED: (*_ALONE[name], UCD()) for name in _HOSTS},
}
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    **_DEFAULTS,
    **{name + ADDED: _DEFAULTS[name] for name in _HOSTS if name in _DEFAULTS},
}

__all__ = [
    "ADDED",
    "EWC",
    "METHODS",
    "METHOD_DEFAULTS",
    "PI",
    "POD",
    "RW",
    "UCD",
    "Attraction",
    "Batch",
    "CrossEntropy",
    "DecoderKD",
    "FeatureKD",
    "Matching",
    "OutputKD",
    "Repulsion",
    "SimilarityKD",
    "Sparsity",
    "Term",
    "UnbiasedCE",
    "UnbiasedKD",
]
