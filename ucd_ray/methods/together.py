"""All terms of a method on one batch; MiB's two losses in one pass over the logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ucd_ray.losses import unbiased_losses
from ucd_ray.methods.cross_entropy import UnbiasedCE
from ucd_ray.methods.distillation import UnbiasedKD
from ucd_ray.methods.term import Batch, Term


def weighted(terms: Sequence[Term], batch: Batch) -> list[Tensor]:
    """The summands of the loss, one scalar per term."""
    values = _in_one_pass(terms, batch)
    return [
        term.weight * values[term.section] if term.section in values else term.weighted(batch)
        for term in terms
    ]


def _in_one_pass(terms: Sequence[Term], batch: Batch) -> dict[str, Tensor]:
    """Values of the unbiased cross-entropy and distillation by section, where one pass gives both.

    None if one of them is not there, or is changed by a switch that the pass does not know.
    """
    ce = next((term for term in terms if type(term) is UnbiasedCE), None)
    kd = next((term for term in terms if type(term) is UnbiasedKD), None)
    switched = batch.head != "softmax" or batch.relabelled is not None
    if ce is None or kd is None or switched or (kd.pixels, kd.resolution) != ("all", "image"):
        return {}
    loss, distillation = unbiased_losses(
        batch.new.logits,
        batch.teacher.logits,
        batch.labels,
        alpha=kd.alpha,
        temperature=kd.temperature,
        reduction=ce.reduction,
    )
    scale = batch.num_old if kd.class_reduction == "sum" else 1
    return {ce.section: loss, kd.section: scale * distillation}
