"""Output and feature distillation: LwF, LwF-MC, MiB's unbiased form, and ILT's.

ILT's own lambdas and masks are those of its conference version (arXiv 1907.13372); the journal version's
(arXiv 1911.03462) are not published in a form that we could read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ucd_ray.methods.term import Batch, Term, shrink

if TYPE_CHECKING:
    from torch import Tensor


class OutputKD(Term):
    """LwF and ILT's L'_D: old against new softmax over the old channels, class mean (MiB's code).

    With `model.head` sigmoid: old against new sigmoid of each old channel (LwF-MC).
    """

    section: ClassVar[str] = "kd"

    weight: Annotated[float, Field(ge=0)] = 100.0
    """Factor of output distillation; the class sum is divided by the number of old channels."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides both models' logits; the loss is multiplied by its square."""
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the old model's logits; above 1 sharpens the teacher."""
    class_reduction: Literal["mean", "sum"] = "mean"
    """Over old channels: their mean (MiB's code; weights of 10 to 100) or sum (ILT's; weight 1)."""
    pixels: Literal["all", "old"] = "all"
    """All pixels, or those whose label is background or an old class (ILT's mask)."""
    resolution: Literal["image", "features"] = "image"
    """Where logits are compared: at image size (published), or before they are upsampled, which is a
    deviation that costs about 1 / output_stride ** 2 of the time."""

    def __call__(self, batch: Batch) -> Tensor:
        """The mean over the chosen pixels; zero, but connected, if there are none."""
        loss_map = self.loss_map(batch)
        if self.class_reduction == "sum":
            loss_map = loss_map * batch.num_old
        if self.pixels == "all":
            return loss_map.mean()
        at_size = self.resolution == "image"
        labels = batch.labels if at_size else shrink(batch.labels, batch.new.small_logits)
        chosen = labels < batch.num_old
        return (loss_map * chosen).sum() / chosen.sum().clamp(min=1)

    def loss_map(self, batch: Batch) -> Tensor:
        """[B, H, W] divergence of every pixel, the class sum divided by the number of old channels."""
        new, old = batch.new, batch.teacher
        small = self.resolution == "features"
        return self.losses(batch.head)(
            new.small_logits if small else new.logits,
            old.small_logits if small else old.logits,
            alpha=self.alpha,
            temperature=self.temperature,
            reduction="none",
        )

    def losses(self, head: str) -> Callable[..., Tensor]:
        """The loss function for a kind of classifier output."""
        from ucd_ray.losses import binary_distillation, output_distillation

        return binary_distillation if head == "sigmoid" else output_distillation


class UnbiasedKD(OutputKD):
    """MiB eq. 8: the new classes' probability counts as background."""

    weight: Annotated[float, Field(ge=0)] = 10.0
    """Factor of unbiased distillation (published: 100 on VOC 15-1, else 10)."""

    def losses(self, head: str) -> Callable[..., Tensor]:
        """As in OutputKD."""
        from ucd_ray.losses import unbiased_binary_distillation, unbiased_distillation

        return unbiased_binary_distillation if head == "sigmoid" else unbiased_distillation


class FeatureKD(Term):
    """ILT's L''_D: mean squared error of the last backbone stage (published factor 100 or 50)."""

    section: ClassVar[str] = "feature"

    weight: Annotated[float, Field(ge=0)] = 100.0
    """Factor of feature distillation."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import feature_distillation

        return feature_distillation(batch.new.body, batch.teacher.body)


class DecoderKD(Term):
    """Mean squared error of what the classifiers read: distillation at the decoder, in generic form."""

    section: ClassVar[str] = "decoder"

    weight: Annotated[float, Field(ge=0)] = 50.0
    """Factor of decoder distillation; ours, as ILT's for encoder features."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import feature_distillation

        return feature_distillation(batch.new.features, batch.teacher.features)


class SimilarityKD(Term):
    """Similarity-preserving distillation (Tung and Mori, arXiv 1907.09682) of what the classifiers read.

    Those are the last features before the outputs: compared at the last backbone stage instead, the
    decoder is free to forget, measured as much as in fine-tuning.

    A batch-level term: the images of one worker's batch are compared with each other, so its value
    depends on the number of workers, and one image alone gives zero.
    """

    section: ClassVar[str] = "spkd"

    weight: Annotated[float, Field(ge=0)] = 1000.0
    """Factor of similarity-preserving distillation; ours."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import similarity_distillation

        return similarity_distillation(batch.new.features, batch.teacher.features)
