"""What a term is: a weighted summand of the training loss, with its own searchable fields.

A term picks tensors from a `Batch` and calls one pure function of `ucd_ray.losses`.  Terms are
configuration: importing them needs no torch, calling them does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field

from ucd_ray.config import Config

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ucd_ray.models import SegOutput


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch, seen by both models.  The old model's forward is shared by all terms.

    labels: [B, H, W] int64 channel indices, 255 ignored
    new: output of the network in training, C channels
    old: output of the frozen network of the step before, num_old channels; None at step 0
    """

    labels: Tensor
    new: SegOutput
    old: SegOutput | None
    num_old: int
    generator: Generator | None = None

    @property
    def teacher(self) -> SegOutput:
        """The old model's output, in steps that have one."""
        assert self.old is not None, "a distillation term ran at step 0"
        return self.old


class Term(Config):
    """One summand: `weight * term(batch)`."""

    section: ClassVar[str]
    first_step: ClassVar[int] = 1  # the first step at which the term acts

    weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor of this term in the loss."""

    def at(self, step: int) -> Term | None:
        """The term that acts at `step`, or None; some change their form after step 0."""
        return self if step >= self.first_step else None

    def __call__(self, batch: Batch) -> Tensor:
        """The term's value, a scalar before its weight."""
        raise AssertionError(f"{type(self).__name__} has no value")

    def replace(self, **values: object) -> Self:
        """A validated copy with other field values."""
        return type(self).model_validate({**self.model_dump(), **values})
