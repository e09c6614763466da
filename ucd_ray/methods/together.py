"""All terms of a method on one batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ucd_ray.methods.term import Batch, Term


def weighted(terms: Sequence[Term], batch: Batch) -> list[Tensor]:
    """The summands of the loss, one scalar per term."""
    return [term.weighted(batch) for term in terms]
