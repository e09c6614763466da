"""What a method keeps beside the weights: statistics of a step, for the terms of later steps.

A memory enters every step after 0 by one pass over images (`collect`), or is made while a step is
trained, step 0 included (`watches`).  Its tensors are the same on all ranks, and are stored as side
artefacts of a step under their own key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ucd_ray.methods.term import Batch, Head, Parameters
from ucd_ray.models import Segmenter

Images = Iterable[tuple[Tensor, Tensor]]


class Reducer(Protocol):
    """The training workers: sums over all of them."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks, in place."""


@dataclass(frozen=True)
class Visit:
    """What a pass before a step may look at, images in this rank's share of each batch.

    model: the network that enters the step, without gradients, norms in eval mode
    step: the step to come, 1 or later
    learned: micro-batches of the step before, with its training labels: images [B,3,H,W] and labels
        [B,H,W] on the model's device; all ranks see equally many, so a share may be one image whose
        labels are all ignored
    coming: the same of the step to come
    classes_per_step: channels that each step adds, the first with background, up to the step to come
    """

    model: Segmenter
    step: int
    learned: Images
    coming: Images
    classes_per_step: tuple[int, ...]
    ranks: Reducer
    head: Head = "softmax"


class Memory:
    """Named tensors in named parts.  A part is an attribute that maps names to tensors."""

    name: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    watches: ClassVar[bool] = False
    cumulative: ClassVar[bool] = True  # whether a step's memory goes on from the one before

    def __init__(self) -> None:
        for part in self.parts:
            setattr(self, part, {})

    def collect(self, visit: Visit) -> None:
        """One pass over images before a step after 0."""

    def start(self, parameters: Parameters) -> None:
        """Called before the first update of a step, after the weights are those it starts from."""

    def see(self, batch: Batch, ranks: Reducer) -> None:
        """Called with every micro-batch of training before the terms, on all ranks."""

    def before_update(self, parameters: Parameters, old_parameters: Parameters) -> None:
        """Called when all gradients of an update are there."""

    def after_update(self, parameters: Parameters) -> None:
        """Called after the optimizer changed the weights."""

    def finish(self, parameters: Parameters) -> None:
        """Called after the last update of a step."""

    def state(self) -> dict[str, Tensor]:
        """All tensors, as `<part>/<name>`."""
        return {
            f"{part}/{name}": tensor
            for part in self.parts
            for name, tensor in getattr(self, part).items()
        }

    def load(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Replaces all tensors by those of a `state`."""
        for part in self.parts:
            prefix = f"{part}/"
            values = {
                name.removeprefix(prefix): tensor.to(device)
                for name, tensor in state.items()
                if name.startswith(prefix)
            }
            setattr(self, part, values)
