"""What methods keep from step to step, beside the step cache: made, stored and found again.

The memory that enters step t belongs to the end of step t - 1.  It is stored under a key of its own, so
methods that need none share their steps with those that do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ucd_ray.checkpoint import StepCache
from ucd_ray.data.step import training_labels
from ucd_ray.data.transforms import TrainingImages, seed_of
from ucd_ray.job import Job
from ucd_ray.learner import Ranks
from ucd_ray.methods.memory import Images, Memory, Visit
from ucd_ray.methods.term import IGNORED, Parameters
from ucd_ray.models import Segmenter
from ucd_ray.recipe import micro_batches
from ucd_ray.runtime import Runtime, to_device


@dataclass
class Memories:
    """The memories of one run, as one rank sees them."""

    job: Job
    cache: StepCache
    runtime: Runtime
    ranks: Ranks
    on_pass: Callable[[int, str], None] = lambda step, name: None

    def key(self, name: str, step: int) -> dict[str, Any]:
        """What determines the memory `name` that enters `step`."""
        scenario = self.job.recipe.steps
        return {
            "memory": name,
            "options": self.job.recipe.memory_options(name),
            **self.job.pass_key(step, precision=self.runtime.precision),
            "coming": scenario.steps[step] if step < len(scenario.steps) else [],
        }

    def can_enter(self, step: int) -> bool:
        """Whether all memories that enter `step` are stored or can be collected."""
        return step == 0 or all(
            self.cache.has(self.key(name, step)) or self._collectable(memory, step)
            for name, memory in self.job.recipe.memories().items()
        )

    def _collectable(self, memory: Memory, step: int) -> bool:
        if memory.watches:
            return False
        return step == 1 or not memory.cumulative or self.cache.has(self.key(memory.name, step - 1))

    def enter(self, step: int, old: Segmenter | None) -> dict[str, Memory]:
        """The memories that enter `step`; `old` is the network that does.  All ranks call it."""
        memories = self.job.recipe.memories()
        if old is not None:
            for name, memory in memories.items():
                if not self._loaded(memory, step):
                    self.on_pass(step, name)
                    self._collect(memory, step, old)
        return memories

    def leave(self, step: int, memories: dict[str, Memory], parameters: Parameters) -> None:
        """Stores what was kept while `step` was trained, for the step after it."""
        for name, memory in memories.items():
            memory.finish(parameters)
            if memory.watches and self.ranks.rank == 0:
                self.cache.put(self.key(name, step + 1), memory.state(), {})

    def _loaded(self, memory: Memory, step: int) -> bool:
        entry = self.cache.get(self.key(memory.name, step)) if self._stored(memory, step) else None
        if entry is not None:
            memory.load(entry.weights, self.runtime.device)
        return entry is not None

    def _stored(self, memory: Memory, step: int) -> bool:
        """Rank 0's view, on every rank: the others must not start a pass alone."""
        return self.ranks.agree(self.cache.has(self.key(memory.name, step)))

    def _collect(self, memory: Memory, step: int, old: Segmenter) -> None:
        if step > 1 and memory.cumulative:
            assert self._loaded(memory, step - 1), "can_enter said so"
        memory.collect(self._visit(step, old))
        if self.ranks.rank == 0:
            self.cache.put(self.key(memory.name, step), memory.state(), {})

    def _visit(self, step: int, old: Segmenter) -> Visit:
        recipe = self.job.recipe
        return Visit(
            model=old,
            step=step,
            learned=self._images(step - 1),
            coming=self._images(step),
            classes_per_step=tuple(recipe.steps.classes_per_step()[: step + 1]),
            ranks=self.ranks,
            head=recipe.model.head,
        )

    def _images(self, step: int) -> Images:
        """This rank's share of one pass over the images of `step`, cropped as in training."""
        recipe = self.job.recipe
        labels = training_labels(recipe.steps, step, recipe.setting)
        images = PassImages(
            self.job.prepared.train, labels, recipe.data, seed_of(recipe.seed, step)
        )
        micro, _ = micro_batches(recipe, self.ranks.world_size, step=step)
        loader = DataLoader(
            images,
            batch_sampler=Shares(self.job.plan[step].train, micro, self.ranks),
            num_workers=recipe.data.loader_workers,
        )
        return OnDevice(loader, self.runtime)


class PassImages(TrainingImages):
    """Training crops; those of a row below zero have no labels and only fill a share."""

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """As TrainingImages."""
        epoch, row = index
        image, labels = super().__getitem__((epoch, max(0, row)))
        return image, labels if row >= 0 else torch.full_like(labels, IGNORED)


@dataclass
class Shares(Sampler[list[tuple[int, int]]]):
    """One pass over `rows`: of every micro-batch of all ranks, this rank's images as (epoch, row).

    All ranks get equally many micro-batches: one without an image at the end gets row -1.
    """

    rows: np.ndarray[Any, Any]
    micro: int
    ranks: Ranks

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        world = self.ranks.world_size
        for start in range(0, len(self.rows), self.micro * world):
            own = self.rows[start : start + self.micro * world][self.ranks.rank :: world]
            yield [(0, int(row)) for row in own] or [(0, -1)]

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / (self.micro * self.ranks.world_size))


@dataclass
class OnDevice:
    """Batches of a loader, on the device of a run."""

    loader: DataLoader[tuple[Tensor, Tensor]]
    runtime: Runtime

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader:
            yield to_device(self.runtime, images, labels)
