"""The classification terms: plain and unbiased cross-entropy, of one softmax or a sigmoid per class."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from ucd_ray.methods.term import IGNORED, Batch, Term

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(Term):
    """Cross-entropy over all channels, mean over all positions (MiB's code, also for FT and LwF).

    With `model.head` sigmoid: one sigmoid per channel against the one-hot label (LwF-MC, iCaRL).
    """

    section: ClassVar[str] = "ce"
    first_step: ClassVar[int] = 0

    reduction: Literal["mean", "valid"] = "mean"
    """Mean over all positions, ignored ones counting as 0 (MiB's code), or over the valid ones (ILT's)."""

    def __call__(self, batch: Batch) -> Tensor:
        """The reduced map; each image's part times its factor, if images have factors."""
        loss_map = self.loss_map(batch)
        if batch.image_weights is not None:
            loss_map = loss_map * batch.image_weights.to(loss_map.dtype)[:, None, None]
        if self.reduction == "mean":
            return loss_map.mean()
        return loss_map.sum() / (batch.targets != IGNORED).sum().clamp(min=1)

    def loss_map(self, batch: Batch) -> Tensor:
        """[B, H, W], 0 at ignored pixels."""
        from ucd_ray.losses import binary_cross_entropy, cross_entropy

        loss = binary_cross_entropy if batch.head == "sigmoid" else cross_entropy
        return loss(batch.new.logits, batch.targets, reduction="none")


class UnbiasedCE(CrossEntropy):
    """MiB eq. 5: background may be any old class.  Plain cross-entropy at step 0.

    A pixel that a pseudo-label gives to an old class is no background: it gets the plain form.
    """

    def at(self, step: int) -> Term:
        if step > 0:
            return self
        return CrossEntropy(weight=self.weight, reduction=self.reduction)

    def loss_map(self, batch: Batch) -> Tensor:
        """[B, H, W], 0 at ignored pixels."""
        from ucd_ray.losses import unbiased_binary_cross_entropy, unbiased_cross_entropy

        sigmoid = batch.head == "sigmoid"
        loss = unbiased_binary_cross_entropy if sigmoid else unbiased_cross_entropy
        targets = batch.targets
        unbiased = loss(batch.new.logits, targets, num_old=batch.num_old, reduction="none")
        if batch.relabelled is None:
            return unbiased
        given = (targets > 0) & (targets < batch.num_old)
        return unbiased.where(~given, super().loss_map(batch))
