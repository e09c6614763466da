"""SDR's prototypes: the mean feature of every class seen so far."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ucd_ray.losses import class_means
from ucd_ray.methods.memory import Memory, Reducer, Visit
from ucd_ray.methods.term import IGNORED, Batch, shrink


class Prototypes(Memory):
    """Sums of body features and pixel counts per channel, over labelled pixels, background excluded.

    Old classes: one pass over the images of the step that taught them, with the model it ended with, then
    fixed.  New classes: running over training so far.  Sums and counts are those of all ranks.
    """

    name: ClassVar[str] = "prototypes"
    parts: ClassVar[tuple[str, ...]] = ("sums", "count")

    sums: dict[str, Tensor]  # body: [C, D]
    count: dict[str, Tensor]  # body: [C]

    @property
    def num_classes(self) -> int:
        """Channels that have a prototype or can get one."""
        return len(self.counts)

    @property
    def counts(self) -> Tensor:
        """[C] pixels seen of each class."""
        return self.count["body"]

    @property
    def means(self) -> Tensor:
        """[C, D] the prototypes, zero for classes not seen yet."""
        return (self.sums["body"] / self.counts.clamp(min=1)[:, None]).float()

    @torch.no_grad()
    def collect(self, visit: Visit) -> None:
        """Adds the classes of the step before."""
        num_old = sum(visit.classes_per_step[: visit.step])
        first = sum(visit.classes_per_step[: visit.step - 1])
        found = torch.zeros(())
        for images, labels in visit.learned:
            body = visit.model(images).body
            found = self._sums(body, shrink(labels, body), first, num_old) + found.to(body.device)
        self._add(visit.ranks.sum(found))
        self._resize(num_old + visit.classes_per_step[visit.step])

    @torch.no_grad()
    def see(self, batch: Batch, ranks: Reducer) -> None:
        """Adds the new classes' pixels of this batch, of all ranks; step 0 has its pass afterwards."""
        if batch.old is None:
            return
        body = batch.new.body
        classes = shrink(batch.labels, body)
        self._add(ranks.sum(self._sums(body, classes, batch.num_old, self.num_classes)))

    def _sums(self, body: Tensor, classes: Tensor, first: int, stop: int) -> Tensor:
        """[stop, D + 1] sums of features, and counts, of the classes first..stop-1 without background."""
        outside = (classes < max(1, first)) | (classes >= stop)
        means, counts = class_means(body, classes.masked_fill(outside, IGNORED), num_classes=stop)
        weights = counts[:, None].double()
        return torch.cat([means.double() * weights, weights], dim=1)

    def _add(self, found: Tensor) -> None:
        if not self.sums:
            self.sums["body"] = found.new_zeros(0, found.shape[1] - 1, dtype=torch.float64)
            self.count["body"] = found.new_zeros(0, dtype=torch.float64)
        self._resize(len(found))
        self.sums["body"][: len(found)] += found[:, :-1]
        self.count["body"][: len(found)] += found[:, -1]

    def _resize(self, num_classes: int) -> None:
        """Rows for `num_classes` channels."""
        for part in (self.sums, self.count):
            rows = part["body"]
            missing = rows.new_zeros(max(0, num_classes - len(rows)), *rows.shape[1:])
            part["body"] = torch.cat([rows, missing])
