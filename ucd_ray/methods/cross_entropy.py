"""The classification terms: plain and unbiased cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ucd_ray.methods.term import Batch, Term

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(Term):
    """Cross-entropy over all channels, mean over all positions (MiB's code, also for FT and LwF)."""

    section: ClassVar[str] = "ce"
    first_step: ClassVar[int] = 0

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import cross_entropy

        return cross_entropy(batch.new.logits, batch.labels)


class UnbiasedCE(CrossEntropy):
    """MiB eq. 5: background may be any old class.  Plain cross-entropy at step 0."""

    def at(self, step: int) -> Term:
        return self if step > 0 else CrossEntropy(weight=self.weight)

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import unbiased_cross_entropy

        return unbiased_cross_entropy(batch.new.logits, batch.labels, num_old=batch.num_old)
