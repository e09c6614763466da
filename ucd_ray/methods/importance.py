"""How much each parameter mattered: the memories of EWC, PI and RW."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ucd_ray.losses import min_max, path_importance, running_fisher, walk_score
from ucd_ray.methods.cross_entropy import CrossEntropy
from ucd_ray.methods.memory import Memory, Visit
from ucd_ray.methods.term import IGNORED, Batch, Parameters

Tensors = dict[str, Tensor]


class Importance(Memory):
    """One number for each element of each parameter that the old model has."""

    importance: Tensors  # as the penalty uses it; made at the start of a step

    def __init__(self, *, normalise: bool) -> None:
        super().__init__()
        self.normalise = normalise
        self.importance = {}

    def scaled(self, values: Tensors) -> Tensors:
        """Each tensor scaled to 0..1, if that is wanted."""
        return {name: min_max(v) if self.normalise else v for name, v in values.items()}


class Fisher(Importance):
    """EWC's running diagonal of the Fisher matrix."""

    name: ClassVar[str] = "ewc"
    parts: ClassVar[tuple[str, ...]] = ("fisher",)

    fisher: Tensors

    def __init__(self, *, decay: float, normalise: bool) -> None:
        super().__init__(normalise=normalise)
        self.decay = decay

    def collect(self, visit: Visit) -> None:
        """One pass over the images of the step before, with the gradients of all ranks' batches."""
        model = visit.model
        weights: Tensors = dict(model.named_parameters())
        for images, labels in visit.learned:
            gradients = self._gradients(visit, weights, images, labels)
            for name, gradient in gradients.items():
                before = self.fisher.get(name)
                fisher = torch.ones_like(gradient) if before is None else before
                self.fisher[name] = running_fisher(fisher, gradient, self.decay)

    def start(self, parameters: Parameters) -> None:
        """The diagonal as importance."""
        self.importance = self.scaled(self.fisher)

    def _gradients(self, visit: Visit, weights: Tensors, images: Tensor, labels: Tensor) -> Tensors:
        """Of the cross-entropy's mean over the valid pixels of all ranks."""
        with torch.enable_grad():
            for weight in weights.values():
                weight.requires_grad_(True)
            batch = Batch(labels, visit.model(images), None, 1, head=visit.head)
            loss_map = CrossEntropy().loss_map(batch)
            gradients = torch.autograd.grad(
                loss_map.sum(), list(weights.values()), allow_unused=True
            )
        for weight in weights.values():
            weight.requires_grad_(False)
        valid = visit.ranks.sum((labels != IGNORED).sum()).clamp(min=1)
        return {
            name: visit.ranks.sum(gradient.contiguous()) / valid
            for name, gradient in zip(weights, gradients, strict=True)
            if gradient is not None
        }


class Path(Importance):
    """What follows the weights through training: the gradient without the penalty, and the way."""

    watches: ClassVar[bool] = True

    def __init__(self, *, weight: float, normalise: bool) -> None:
        super().__init__(normalise=normalise)
        self.weight = weight
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def before_update(self, parameters: Parameters, old_parameters: Parameters) -> None:
        """Remembers weights and gradients, from which the penalty's own gradient is taken off."""
        self._before = {}
        for name, value in parameters.items():
            if value.grad is None:
                continue
            gradient = value.grad.clone()
            if name in self.importance:
                moved = value - old_parameters[name]
                gradient -= 2 * self.weight * self.importance[name] * moved
            self._before[name] = (value.detach().clone(), gradient)

    def drops(self, parameters: Parameters) -> Tensors:
        """To first order, by how much the last update lowered the loss: g * (before - after)."""
        return {
            name: gradient * (before - parameters[name].detach())
            for name, (before, gradient) in self._before.items()
        }


class PathIntegral(Path):
    """PI: the path integral of a step over the squared way, added up over steps."""

    name: ClassVar[str] = "pi"
    parts: ClassVar[tuple[str, ...]] = ("total", "path", "origin")

    total: Tensors  # of the steps before
    path: Tensors  # of this step so far
    origin: Tensors  # weights at the start of this step

    def __init__(self, *, weight: float, normalise: bool, damping: float = 1e-20) -> None:
        super().__init__(weight=weight, normalise=normalise)
        self.damping = damping

    def start(self, parameters: Parameters) -> None:
        """A new path from here."""
        self.importance = self.scaled(self.total)
        self.path = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.origin = {name: p.detach().clone() for name, p in parameters.items()}

    def after_update(self, parameters: Parameters) -> None:
        """Adds this update to the path."""
        for name, drop in self.drops(parameters).items():
            self.path[name] += drop

    def finish(self, parameters: Parameters) -> None:
        """Turns the path into importance."""
        for name, path in self.path.items():
            moved = parameters[name].detach() - self.origin[name]
            found = path_importance(path.detach(), moved, self.damping)
            self.total[name] = self.total[name] + found if name in self.total else found
        self.path, self.origin = {}, {}


class RiemannianWalk(Path):
    """RW: a running Fisher diagonal and a score of the path in units of that metric."""

    name: ClassVar[str] = "rw"
    parts: ClassVar[tuple[str, ...]] = ("fisher", "old_score", "score", "drop", "last", "counter")

    fisher: Tensors
    old_score: Tensors  # at the end of the step before
    score: Tensors  # of this step so far
    drop: Tensors  # of the loss since the last addition to the score
    last: Tensors  # weights at that time
    counter: Tensors  # updates: updates since then

    def __init__(self, *, decay: float, interval: int, weight: float, normalise: bool) -> None:
        super().__init__(weight=weight, normalise=normalise)
        self.decay, self.interval = decay, interval

    def start(self, parameters: Parameters) -> None:
        """A new score from here."""
        fisher, score = self.scaled(self.fisher), self.scaled(self.old_score)
        self.importance = {name: fisher[name] + score[name] for name in score}
        for name, value in parameters.items():
            if name not in self.fisher:
                self.fisher[name] = torch.ones_like(value)
        self.score = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.drop = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.last = {name: p.detach().clone() for name, p in parameters.items()}
        self.counter = {"updates": torch.zeros((), dtype=torch.int64)}

    def after_update(self, parameters: Parameters) -> None:
        """Updates Fisher and drop; every `interval` updates the score."""
        for name, drop in self.drops(parameters).items():
            self.drop[name] += drop
            gradient = self._before[name][1]
            self.fisher[name] = running_fisher(self.fisher[name], gradient, self.decay)
        self.counter["updates"] += 1
        if self.counter["updates"] == self.interval:
            self._add_score(parameters)

    def finish(self, parameters: Parameters) -> None:
        """Averages the score with that of the steps before."""
        for name, score in self.score.items():
            old = self.old_score.get(name)
            self.old_score[name] = score if old is None else (old + score) / 2
        self.score, self.drop, self.last, self.counter = {}, {}, {}, {}

    @torch.no_grad()
    def _add_score(self, parameters: Parameters) -> None:
        for name, last in self.last.items():
            moved = parameters[name].detach() - last
            self.score[name] += walk_score(self.drop[name], self.fisher[name], moved)
            self.drop[name].zero_()
            self.last[name] = parameters[name].detach().clone()
        self.counter["updates"].zero_()
