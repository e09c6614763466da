"""The classification terms: plain and unbiased cross-entropy, and one sigmoid per class."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from ucd_ray.methods.term import Batch, Term

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(Term):
    """Cross-entropy over all channels, mean over all positions (MiB's code, also for FT and LwF)."""

    section: ClassVar[str] = "ce"
    first_step: ClassVar[int] = 0

    reduction: Literal["mean", "valid"] = "mean"
    """Mean over all positions, ignored ones counting as 0 (MiB's code), or over the valid ones (ILT's)."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import cross_entropy

        return cross_entropy(batch.new.logits, batch.labels, reduction=self.reduction)


class UnbiasedCE(CrossEntropy):
    """MiB eq. 5: background may be any old class.  Plain cross-entropy at step 0."""

    def at(self, step: int) -> Term:
        if step > 0:
            return self
        return CrossEntropy(weight=self.weight, reduction=self.reduction)

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import unbiased_cross_entropy

        return unbiased_cross_entropy(
            batch.new.logits, batch.labels, num_old=batch.num_old, reduction=self.reduction
        )


class BinaryCE(CrossEntropy):
    """LwF-MC: one sigmoid per channel against the one-hot label, also at step 0 (MiB's code, iCaRL)."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import binary_cross_entropy

        return binary_cross_entropy(batch.new.logits, batch.labels, reduction=self.reduction)
