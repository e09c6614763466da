"""Output and feature distillation: LwF, MiB's unbiased form, ILT's re-implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ucd_ray.methods.term import Batch, Term

if TYPE_CHECKING:
    from torch import Tensor


class OutputKD(Term):
    """LwF and ILT's L'_D: old against new softmax over the old channels, class mean (MiB's code)."""

    section: ClassVar[str] = "kd"

    weight: Annotated[float, Field(ge=0)] = 100.0
    """Factor of output distillation; the class sum is divided by the number of old channels."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides both models' logits; the loss is multiplied by its square."""
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the old model's logits; above 1 sharpens the teacher."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import output_distillation

        return output_distillation(
            batch.new.logits,
            batch.teacher.logits,
            alpha=self.alpha,
            temperature=self.temperature,
        )


class UnbiasedKD(OutputKD):
    """MiB eq. 8: the new classes' probability counts as background."""

    weight: Annotated[float, Field(ge=0)] = 10.0
    """Factor of unbiased distillation (published: 100 on VOC 15-1, else 10)."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import unbiased_distillation

        return unbiased_distillation(
            batch.new.logits,
            batch.teacher.logits,
            alpha=self.alpha,
            temperature=self.temperature,
        )


class FeatureKD(Term):
    """ILT's L''_D: mean squared error of the last backbone stage (published factor 100 or 50)."""

    section: ClassVar[str] = "feature"

    weight: Annotated[float, Field(ge=0)] = 100.0
    """Factor of feature distillation."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import feature_distillation

        return feature_distillation(batch.new.body, batch.teacher.body)
