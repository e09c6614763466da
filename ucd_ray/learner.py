"""One step of one run in plain PyTorch: batches, loss terms, optimizer, schedule.

`Learner.fit` yields after every epoch and leaves reporting and checkpoints to its caller.  It works
alone, or as one rank of a process group; the total batch is the same either way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

from ucd_ray.data.transforms import seed_of
from ucd_ray.errors import TrainingDiverged
from ucd_ray.methods import Batch, Term
from ucd_ray.methods.memory import Memory
from ucd_ray.methods.pseudo import with_pseudo_labels
from ucd_ray.methods.together import weighted
from ucd_ray.models import Segmenter, set_train_mode
from ucd_ray.models.norm import freeze_norm, norms
from ucd_ray.recipe import Recipe, Schedule, micro_batches, schedule
from ucd_ray.runtime import Runtime, autocast, to_device

AnyValue = TypeVar("AnyValue")

CHECK_EVERY = 10  # iterations between looks at the loss: a look waits for the device


@dataclass(frozen=True)
class Ranks:
    """This process among the training workers of a run."""

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    local_rank: int = 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def agree(self, value: AnyValue) -> AnyValue:
        """Rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The micro-batches of this rank in one epoch, as lists of (epoch, row).

    All ranks shuffle alike and take consecutive shares of each total batch.  A step with fewer images
    than one batch repeats them.
    """

    def __init__(
        self, rows: Tensor, plan: Schedule, batch: int, micro: int, ranks: Ranks, seed: int
    ):
        self.rows, self.plan, self.batch, self.micro = rows, plan, batch, micro
        self.ranks, self.seed, self.epoch = ranks, seed, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = self.rows[torch.randperm(len(self.rows), generator=generator)]
        order = order.repeat(math.ceil(self.batch / len(order)))
        share = self.batch // self.ranks.world_size
        for update in range(len(self) // (share // self.micro)):
            start = update * self.batch + self.ranks.rank * share
            for chunk in torch.split(order[start : start + share], self.micro):
                yield [(self.epoch, row) for row in chunk.tolist()]

    def __len__(self) -> int:
        left = self.plan.iterations - self.epoch * self.plan.per_epoch
        passes = self.batch // self.ranks.world_size // self.micro
        return min(self.plan.per_epoch, left) * passes


@dataclass(frozen=True)
class Epoch:
    """What one epoch of one step did; losses are means over its iterations, weighted as in the sum."""

    epoch: int  # 1-based
    epochs: int
    iteration: int  # updates of this step so far
    losses: dict[str, float]
    lr: float  # of the backbone, at its last update
    images_per_s: float
    seconds_left: float  # of this step


def freeze_parts(segmenter: Segmenter, what: str) -> None:
    """Takes parts of a network out of training, statistics of their norms included.

    what: `none`, `encoder` (the backbone: ILT's E_F), `old` (all but the newest classifier)
    """
    if what == "none":
        return
    parts: list[nn.Module] = [segmenter.backbone]
    if what == "old":
        parts += [segmenter.head, *segmenter.classifiers[:-1]]
    for part in parts:
        part.requires_grad_(False)
        for norm in norms(part):
            freeze_norm(norm)


class Learner:
    """Trains `segmenter` on the images of one step under the method's terms."""

    def __init__(
        self,
        segmenter: Segmenter,
        old: Segmenter | None,
        images: Dataset[tuple[Tensor, Tensor]],
        rows: Tensor,
        recipe: Recipe,
        step: int,
        *,
        runtime: Runtime,
        ranks: Ranks,
        memories: Mapping[str, Memory] | None = None,
    ) -> None:
        """memories: by name, as they enter the step."""
        self.segmenter, self.old, self.recipe, self.step = segmenter, old, recipe, step
        self.runtime, self.ranks = runtime, ranks
        self.terms: tuple[Term, ...] = recipe.terms_at(step)
        self.memories = memories or {}
        self.plan = schedule(recipe, step, len(rows))
        self.epoch = 0
        micro, self.passes = micro_batches(recipe, ranks.world_size, step=step)
        self.batches = EpochBatches(
            rows, self.plan, recipe.data.batch_size, micro, ranks, seed_of(recipe.seed, step)
        )
        self.loader = DataLoader(
            images,
            batch_sampler=self.batches,
            num_workers=recipe.data.loader_workers,
            pin_memory=runtime.device.type == "cuda",
        )
        if step > 0:
            freeze_parts(segmenter, recipe.model.freeze)
        if any(term.needs_stages for term in self.terms):
            for model in (segmenter, old):
                assert model is not None, "terms that compare stages act from step 1 on"
                model.keep_stages()
        self.parameters = {n: p for n, p in segmenter.named_parameters() if p.requires_grad}
        self.old_parameters = dict(old.named_parameters()) if old is not None else {}
        for memory in self.memories.values():
            memory.start(self.parameters)
        self.network = self._distributed(segmenter)
        self.optimizer = self._optimizer()

    def _distributed(self, segmenter: Segmenter) -> nn.Module:
        if self.ranks.world_size == 1:
            return segmenter
        device = self.runtime.device
        return DistributedDataParallel(
            segmenter,
            device_ids=[device.index] if device.type == "cuda" else None,
            process_group=self.ranks.group,
            gradient_as_bucket_view=True,
        )

    @property
    def first_lr(self) -> float:
        """The backbone's learning rate at the start of this step."""
        optim = self.recipe.optim
        return optim.lr_base if self.step == 0 else optim.lr_new

    def _remaining(self, iteration: int) -> float:
        """The poly schedule's factor at an update of this step."""
        return float((1 - iteration / self.plan.iterations) ** self.recipe.optim.poly_power)

    def _optimizer(self) -> torch.optim.SGD:
        optim, lr = self.recipe.optim, self.first_lr
        head = [*self.segmenter.head.parameters(), *self.segmenter.classifiers.parameters()]
        rates = (
            (list(self.segmenter.backbone.parameters()), lr),
            (head, lr * optim.head_lr_factor),
        )
        groups = [
            {"params": trained, "lr": rate, "initial_lr": rate}
            for parameters, rate in rates
            if (trained := [p for p in parameters if p.requires_grad])
        ]
        return torch.optim.SGD(
            groups,
            lr=lr,
            momentum=optim.momentum,
            nesterov=optim.momentum > 0,
            weight_decay=optim.weight_decay,
            fused=self.runtime.fused_optimizer,
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to continue after the current epoch."""
        return {
            "epoch": self.epoch,
            "segmenter": self.segmenter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memories": {name: memory.state() for name, memory in self.memories.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue after the epoch of `state`."""
        self.epoch = state["epoch"]
        self.segmenter.load_state_dict(state["segmenter"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, memory in self.memories.items():
            memory.load(state["memories"][name], self.runtime.device)

    def fit(self) -> Iterator[Epoch]:
        """Trains; yields after every epoch.

        Raises TrainingDiverged, on all ranks alike, naming the iteration and the term.
        """
        while self.epoch < self.plan.epochs:
            started, first = time.perf_counter(), self.epoch * self.plan.per_epoch
            losses = self._train_epoch(first)
            self._share_norm_statistics()
            self.epoch += 1
            seconds = time.perf_counter() - started
            done = min(self.epoch * self.plan.per_epoch, self.plan.iterations)
            per_update = seconds / (done - first)
            yield Epoch(
                epoch=self.epoch,
                epochs=self.plan.epochs,
                iteration=done,
                losses=losses,
                lr=self.first_lr * self._remaining(done - 1),
                images_per_s=self.recipe.data.batch_size / per_update,
                seconds_left=per_update * (self.plan.iterations - done),
            )

    def _share_norm_statistics(self) -> None:
        """Rank 0's buffers on all ranks: DDP shares them only before a forward pass."""
        if self.ranks.world_size > 1:
            for buffer in self.segmenter.buffers():
                dist.broadcast(buffer, src=0, group=self.ranks.group)

    def _train_epoch(self, iteration: int) -> dict[str, float]:
        set_train_mode(self.segmenter)
        self.batches.epoch = self.epoch
        total = torch.zeros(len(self.terms), dtype=torch.double)
        recent: list[Tensor] = []
        first, batches = iteration, iter(self.loader)
        updates = len(self.batches) // self.passes
        for update in range(updates):
            recent.append(self._update(batches, iteration))
            iteration += 1
            if len(recent) == CHECK_EVERY or update == updates - 1:
                total += self._checked_sum(recent, iteration - len(recent))
                recent.clear()
        means = (total / (iteration - first)).tolist()
        return {term.section: mean for term, mean in zip(self.terms, means, strict=True)}

    def _update(self, batches: Iterator[tuple[Tensor, Tensor]], iteration: int) -> Tensor:
        """One optimizer update.  Returns the [terms] weighted losses of this rank."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self._remaining(iteration)
        self.optimizer.zero_grad(set_to_none=True)
        values = torch.zeros(len(self.terms), device=self.runtime.device)
        for micro in range(self.passes):
            images, labels = next(batches)
            last = micro == self.passes - 1
            hold = nullcontext() if last or self.network is self.segmenter else self._no_sync()
            with hold:
                parts = self._losses(images, labels, seed_of(self.recipe.seed, iteration, micro))
                (parts.sum() / self.passes).backward()  # type: ignore[no-untyped-call]
            values += parts.detach() / self.passes
        for memory in self.memories.values():
            memory.before_update(self.parameters, self.old_parameters)
        self.optimizer.step()
        for memory in self.memories.values():
            memory.after_update(self.parameters)
        return values

    def _no_sync(self) -> Any:
        assert isinstance(self.network, DistributedDataParallel)
        return self.network.no_sync()

    def _losses(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        """[terms] weighted losses of one micro-batch.  The old model runs once, for all terms."""
        runtime = self.runtime
        images, labels = to_device(runtime, images, labels)
        with autocast(runtime):
            new = self.network(images)
            with torch.inference_mode():
                old = self.old(images) if self.old is not None else None
        batch = Batch(
            labels=labels,
            new=new,
            old=old,
            num_old=self.old.num_classes if self.old is not None else 1,
            generator=torch.Generator(runtime.device).manual_seed(seed_of(seed, self.ranks.rank)),
            head=self.recipe.model.head,
            complete=self.recipe.setting == "sequential",
            memories=self.memories,
            parameters=self.parameters,
            old_parameters=self.old_parameters,
        )
        batch = with_pseudo_labels(batch, self.recipe.pseudo)
        for memory in self.memories.values():
            memory.see(batch, self.ranks)
        return torch.stack(weighted(self.terms, batch))

    def _checked_sum(self, recent: list[Tensor], first: int) -> Tensor:
        """[terms] sum over iterations of the mean over ranks; raises if a value is not finite."""
        values = self.ranks.sum(torch.stack(recent)).double().cpu() / self.ranks.world_size
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            iteration, term = bad[0].tolist()
            raise TrainingDiverged(
                f"loss term '{self.terms[term].section}' became {values[iteration, term].item()} "
                f"at step {self.step}, iteration {first + iteration}"
            )
        return values.sum(0)
