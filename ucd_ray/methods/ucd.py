"""UCD: uncertainty-aware contrastive distillation (arXiv 2203.14098)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ucd_ray.methods.term import IGNORED, Batch, Term

if TYPE_CHECKING:
    from torch import Tensor


class UCD(Term):
    """Contrasts the new model's features with its own and the old model's, over each worker's batch.

    A batch-level term: two workers see two smaller batches, as in the published code, so its value
    depends on the number of workers.
    """

    section: ClassVar[str] = "ucd"

    weight: Annotated[float, Field(ge=0)] = 0.01
    """Factor of the contrastive loss (the literal 1/100 of the published code)."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Divides the cosine similarities (published: 0.07; one script 1)."""
    uncertainty: bool = True
    """Weight positive pairs by the old model's probability that both pixels share a class."""
    form: Literal["standard", "authors"] = "standard"
    """`authors` reproduces the published code's shift of the negatives."""
    labels: Literal["given", "relabelled"] = "given"
    """With pseudo-labels: what counts as truth.  `relabelled` takes trusted pseudo-labels for truth and
    the others for background, as PLOP+UCD's code does."""
    max_anchors: Annotated[int | None, Field(gt=0)] = None
    """Anchors drawn per worker and batch, class-balanced and weighted so that loss and gradient stay
    unbiased; the contrast set stays whole.  Null: all (published)."""
    max_old: Annotated[int | None, Field(ge=0)] = None
    """Old-model contrast vectors drawn per worker and batch, class-balanced and weighted; slightly
    biased.  0 leaves them out, which is another loss.  Null: all (published)."""
    max_per_class: Annotated[int | None, Field(gt=0)] = None
    """New-model contrast vectors drawn of each class, weighted; slightly biased.  Anchors are not
    limited.  Null: all (published)."""

    def __call__(self, batch: Batch) -> Tensor:
        from ucd_ray.losses import contrastive_distillation

        return contrastive_distillation(
            batch.new.features,
            batch.teacher.features,
            batch.teacher.small_logits,
            self._truth(batch),
            num_old=batch.num_old,
            temperature=self.temperature,
            uncertainty=self.uncertainty,
            form=self.form,
            max_anchors=self.max_anchors,
            max_old=self.max_old,
            max_per_class=self.max_per_class,
            generator=batch.generator,
        )

    def _truth(self, batch: Batch) -> Tensor:
        """[B, H, W] labels; pixels that were given none stay ignored."""
        if self.labels == "given" or batch.relabelled is None:
            return batch.labels
        untrusted = (batch.relabelled == IGNORED) & (batch.labels != IGNORED)
        return batch.relabelled.masked_fill(untrusted, 0)
