"""What a term is: a weighted summand of the training loss, with its own searchable fields.

A term picks tensors from a `Batch` and calls pure functions of `ucd_ray.losses`.  Terms are
configuration: importing them needs no torch, calling them does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from ucd_ray.config import Config

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ucd_ray.methods.memory import Memory
    from ucd_ray.models import SegOutput

Parameters = Mapping[str, "Tensor"]
Head = Literal["softmax", "sigmoid"]
IGNORED = 255


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch, seen by both models.  The old model's forward is shared by all terms.

    labels: [B, H, W] int64 channel indices as the step's data give them, 255 ignored
    new: output of the network in training, C channels
    old: output of the frozen network of the step before, num_old channels; None at step 0
    relabelled: [B, H, W] labels with the old model's pseudo-labels, for the classification terms
    image_weights: [B] factors of the classification terms (PLOP's adaptive factor)
    head: whether the classifiers' outputs are one softmax, or a sigmoid per class
    complete: whether old classes are labelled too (the sequential setting)
    memories: what terms keep from step to step, by name
    parameters, old_parameters: the trained ones of the new model, and those of the old one, by name
    """

    labels: Tensor
    new: SegOutput
    old: SegOutput | None
    num_old: int
    generator: Generator | None = None
    relabelled: Tensor | None = None
    image_weights: Tensor | None = None
    head: Head = "softmax"
    complete: bool = False
    memories: Mapping[str, Memory] = field(default_factory=dict)
    parameters: Parameters = field(default_factory=dict)
    old_parameters: Parameters = field(default_factory=dict)

    @property
    def teacher(self) -> SegOutput:
        """The old model's output, in steps that have one."""
        assert self.old is not None, "a distillation term ran at step 0"
        return self.old

    @property
    def targets(self) -> Tensor:
        """[B, H, W] what the classification terms learn: pseudo-labels where they are switched on."""
        return self.labels if self.relabelled is None else self.relabelled


def shrink(labels: Tensor, like: Tensor) -> Tensor:
    """Labels [B, H, W] at the size of a map [B, C, h, w], by the nearest pixel centre: [B, h, w]."""
    from torch.nn.functional import interpolate

    size = like.shape[-2:]
    return interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()


class Term(Config):
    """One summand: `weight * term(batch)`."""

    section: ClassVar[str]
    first_step: ClassVar[int] = 1  # the first step at which the term acts
    watches: ClassVar[bool] = False  # whether its memory is made during training, from step 0 on
    needs_stages: ClassVar[bool] = False  # whether it reads SegOutput.stages

    weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor of this term in the loss."""

    def at(self, step: int) -> Term | None:
        """The term that acts at `step`, or None; some change their form after step 0."""
        return self if step >= self.first_step else None

    def __call__(self, batch: Batch) -> Tensor:
        """The term's value, a scalar before its weight."""
        raise AssertionError(f"{type(self).__name__} has no value")

    def weighted(self, batch: Batch) -> Tensor:
        """The summand of the loss."""
        return self.weight * self(batch)

    def check(self, crop: int, output_stride: int) -> None:
        """Raises ConfigError if the term cannot see crops of that many pixels."""

    def memory(self) -> Memory | None:
        """A new, empty memory, if the term keeps something from step to step."""
        return None

    def memory_options(self) -> dict[str, Any]:
        """The values that shape the memory, for its key: all fields but the weight."""
        return {
            name: value for name, value in self.model_dump(mode="json").items() if name != "weight"
        }

    def replace(self, **values: object) -> Self:
        """A validated copy with other field values."""
        return type(self).model_validate({**self.model_dump(), **values})
