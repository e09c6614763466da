"""One run of a recipe over all its steps, as one rank sees it.

`train_run` knows neither Ray nor Tune: it talks to a `TrialContext`.  It keeps nothing after it
returns, sets its own seeds, and takes every finished step from the step cache.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from ucd_ray import metrics
from ucd_ray.checkpoint import StepCache, key_digest
from ucd_ray.confusion import pack
from ucd_ray.data.step import evaluation_labels, training_labels
from ucd_ray.data.transforms import EvaluationImages, TrainingImages, seed_of
from ucd_ray.environment import environment, threads
from ucd_ray.errors import CheckpointError, ConfigError
from ucd_ray.evaluate import confusion_matrix
from ucd_ray.job import Job
from ucd_ray.learner import Epoch, Learner, Ranks
from ucd_ray.memories import Memories
from ucd_ray.methods.memory import Memory
from ucd_ray.models import Segmenter, build_segmenter, frozen_copy
from ucd_ray.models.base import load_base
from ucd_ray.models.weights import load_backbone_weights
from ucd_ray.recipe import micro_batches, schedule
from ucd_ray.runtime import Runtime, choose_runtime, determinism
from ucd_ray.store import masked
from ucd_ray.turns import Turn, turn

Report = dict[str, Any]


class TrialStopped(Exception):  # noqa: N818
    """Raised by a context's `report`, on all ranks, when the trial shall end here."""


class TrialContext(Protocol):
    """Who hosts a run: in-process, or one worker of a Ray Train group."""

    ranks: Ranks

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint of this trial."""

    def report(self, report: Report, state: Callable[[], dict[str, Any]] | None = None) -> None:
        """Hands out a report, then saves `state()`.  May raise TrialStopped.  All ranks call it."""


def train_run(job: Job, context: TrialContext) -> list[Report]:
    """Runs the steps of `job` that no cache holds.  Returns the step reports, cached ones included.

    Raises TrainingDiverged if a loss term is not finite, and what the data or weights raise.
    """
    with determinism(job.recipe.compute.deterministic):
        return _Run(job, context).all_steps()


class _Run:
    def __init__(self, job: Job, context: TrialContext) -> None:
        self.job, self.context, self.recipe = job, context, job.recipe
        self.ranks = context.ranks
        self.scenario = job.recipe.steps
        self.runtime: Runtime = choose_runtime(
            self.recipe.compute, local_rank=self.ranks.local_rank
        )
        if self.recipe.model.norm == "sync" and self.runtime.device.type != "cuda":
            raise ConfigError("model.norm (sync) needs a GPU; use batch or frozen")
        if self.runtime.device.type == "cuda":  # NCCL's object collectives use the current device
            torch.cuda.set_device(self.runtime.device)
        self.cache = StepCache(job.open_cache(), "/".join(job.name))
        self.turn = Turn(stored=False)
        self.history: list[dict[str, Any]] = []
        self.notes = [self.runtime.reason]
        self.memories = Memories(job, self.cache, self.runtime, self.ranks, self._on_pass)

    def all_steps(self) -> list[Report]:
        last = len(self.scenario.steps) - 1 if self.job.until is None else self.job.until
        with self._held(last):
            return self._all_steps(last)

    def _all_steps(self, last: int) -> list[Report]:
        reports = []
        first = self.ranks.agree(self._first_uncached(last) if self.ranks.rank == 0 else 0)
        segmenter = self._segmenter(first)
        self.context.report(
            {
                "kind": "start",
                "first_step": first,
                "notes": self.notes,
                "time": time.time(),
                "micro_batch_new": self.recipe.data.micro_batch_new,  # less than asked for after OOM
            }
        )
        for step in range(last + 1):
            cached = step < first
            if not cached:
                with self._turn(step, last) as self.turn:
                    cached = self.turn.stored
                    if not cached:
                        with threads(self.job.threads[step] if self.job.threads else None):
                            result = self._train_step(segmenter, step)
            if cached:
                result = self._stored_result(step)
                if first <= step < last:  # another run trained it meanwhile
                    segmenter = self._segmenter(step + 1)
            self.history.append(result)
            reports.append(self._step_report(step, cached=cached))
            self.context.report(reports[-1])
        return reports

    def _held(self, last: int) -> contextlib.AbstractContextManager[None]:
        """Keeps in the cache what this run may need."""
        if self.ranks.rank > 0:
            return contextlib.nullcontext()
        keys = [self._key(step) for step in range(last + 1)]
        for name in self.recipe.memories():
            keys += [self.memories.key(name, step) for step in range(1, last + 1)]
        return self.cache.hold(keys)

    def _turn(self, step: int, last: int) -> contextlib.AbstractContextManager[Turn]:
        """Waits while another run trains `step`."""

        def stored() -> bool:
            return self.cache.has(self._key(step)) and (
                step == last or self.memories.can_enter(step + 1)
            )

        def tell(who: str) -> None:
            reason = f"step {step} is being trained by {who}"
            self.context.report({"kind": "waiting", "step": step, "reason": reason})

        return turn(self.cache, self._key(step), self.ranks, stored=stored, tell=tell)

    def _stored_result(self, step: int) -> dict[str, Any]:
        result = self.cache.result(self._key(step)) if self.ranks.rank == 0 else None
        return self.ranks.agree(result) or self._removed(step)

    def _removed(self, step: int) -> NoReturn:
        raise CheckpointError(
            f"step {step} was removed from the step cache '{masked(self.job.cache)}' while this run "
            "needed it; start the run again"
        )

    def _on_pass(self, step: int, name: str) -> None:
        self.context.report({"kind": "pass", "step": step, "name": name})

    def _key(self, step: int) -> dict[str, Any]:
        return self.job.step_key(step, precision=self.runtime.precision)

    def _first_uncached(self, last: int) -> int:
        """The first step to train: the ones before it are stored, and so is what they leave to it."""
        first = next((s for s in range(last + 1) if not self.cache.has(self._key(s))), last + 1)
        while first <= last and not self.memories.can_enter(first):
            first -= 1
        return first

    def _segmenter(self, step: int) -> Segmenter:
        """The network as it enters `step`: fresh at 0, else with the weights of the step before."""
        micro, _ = micro_batches(self.recipe, self.ranks.world_size)
        if micro == 1:
            self.notes.append(
                "one image per micro-batch: batch norm of the pooling branch is frozen"
            )
        torch.manual_seed(seed_of(self.recipe.seed, 0))
        model = self.recipe.model
        segmenter = build_segmenter(
            backbone=model.backbone,
            output_stride=model.output_stride,
            classes_per_step=self.scenario.classes_per_step()[: max(step, 1)],
            normalisation=self.job.normalisation,
            norm=model.norm,
            freeze_pooling_norm=micro == 1,
            width=model.width,
        )
        if step > 0:
            entry = self.cache.get(self._key(step - 1)) or self._removed(step - 1)
            segmenter.load_state_dict(entry.weights)
        elif self.job.base_network is not None:
            self.notes += load_base(
                segmenter, self.job.base_network, self.scenario.classes_until(0)
            )
        elif self.job.weights is not None:
            self.notes += load_backbone_weights(
                segmenter.backbone, self.job.weights, name=model.backbone
            )
        return segmenter.to(self.runtime.device).to(memory_format=self.runtime.memory_format)

    def _train_step(self, segmenter: Segmenter, step: int) -> dict[str, Any]:
        started = time.perf_counter()
        old = frozen_copy(segmenter) if step > 0 else None
        if step > 0:
            torch.manual_seed(seed_of(self.recipe.seed, step))
            added = len(self.scenario.steps[step])
            segmenter.grow(added, background_init=self.recipe.model.background_init)
        torch.manual_seed(seed_of(self.recipe.seed, step, self.ranks.rank))
        memories = self.memories.enter(step, old)
        learner = self._learner(segmenter, old, step, memories)
        before = self._resume(learner, step)
        epoch: Epoch | None = None
        scored: Tensor | None = None
        for epoch in learner.fit():
            scored = self._score_epoch(segmenter, step, epoch, learner, before, started)
        self.memories.leave(step, memories, learner.parameters)
        select = self._select(segmenter, step, scored)
        on_val = self.recipe.eval.select_on == "val"
        val = select if on_val else self._confusion(segmenter, step, None)
        result = {
            "step": step,
            "select": select.tolist(),
            "val": val.tolist(),
            "losses": epoch.losses if epoch else {},
            "iterations": learner.plan.iterations,
            "images": len(self.job.plan[step].train) if learner.plan.iterations else 0,
            "seconds": before + time.perf_counter() - started,
            "environment": {
                **environment(precision=self.runtime.precision),
                "inputs": self.job.inputs(),
            },
        }
        if self.ranks.rank == 0:
            self.cache.put(self._key(step), segmenter.state_dict(), result)
        return result

    def _learner(
        self, segmenter: Segmenter, old: Segmenter | None, step: int, memories: dict[str, Memory]
    ) -> Learner:
        labels = training_labels(self.scenario, step, self.recipe.setting)
        images = TrainingImages(
            self.job.prepared.train, labels, self.recipe.data, seed_of(self.recipe.seed, step)
        )
        rows = torch.from_numpy(self.job.plan[step].train)
        return Learner(
            segmenter,
            old,
            images,
            rows,
            self.recipe,
            step,
            runtime=self.runtime,
            ranks=self.ranks,
            memories=memories,
        )

    def _resume(self, learner: Learner, step: int) -> float:
        """Continues the open step from its checkpoint.  Returns the seconds already spent on it."""
        state = self.context.load()
        if state is None or state.get("key") != key_digest(self._key(step)):
            return 0.0
        learner.load_state(state)
        return float(state["seconds"])

    def _score_epoch(
        self,
        segmenter: Segmenter,
        step: int,
        epoch: Epoch,
        learner: Learner,
        before: float,
        started: float,
    ) -> Tensor | None:
        """Reports an epoch; in steps after 0 with the objective on at most eval.max_images images."""
        self.turn.worked()
        scored, value, drop = None, None, None
        if step > 0:
            rows = self._select_rows(step, self.recipe.eval.max_images)
            scored = self._confusion(segmenter, step, rows)
            value = self._value([*self._selected, scored], step)
            drop = self._drop(scored)
        report = {
            "kind": "epoch",
            "step": step,
            "epoch": epoch.epoch,
            "epochs": epoch.epochs,
            "iteration": epoch.iteration,
            "rung": self._epochs_before(step) + epoch.epoch if step > 0 else 0,
            "value": value,
            "drop": drop,
            "run_epoch": self._epochs_before(step, first=0) + epoch.epoch,
            "losses": epoch.losses,
            "lr": epoch.lr,
            "images_per_s": epoch.images_per_s,
            "seconds_left": epoch.seconds_left,
        }

        def state() -> dict[str, Any]:
            spent = before + time.perf_counter() - started
            return {**learner.state(), "key": key_digest(self._key(step)), "seconds": spent}

        self.context.report(report, state)
        return scored

    @property
    def _selected(self) -> list[Tensor]:
        """The confusion after every finished step, on the images search looks at."""
        return [torch.tensor(result["select"]) for result in self.history]

    def _value(self, confusions: list[Tensor], step: int) -> float:
        """The job's objective, from the confusion after every step so far."""
        if self.job.objective == "forgetting":
            return metrics.mean_forgetting([metrics.iou_per_class(c) for c in confusions])
        if self.job.objective == "drop":
            return self._drop(confusions[-1]) if step > 0 else math.nan
        return self._means(confusions[-1], step)[self.job.objective]

    def _drop(self, confusion: Tensor) -> float:
        """Percent points that the classes of step 0 lost since its end, on the images search looks at."""
        base, now = torch.tensor(self.history[0]["select"]), confusion
        return self._means(base, 0)["miou_base"] - self._means(now, 1)["miou_base"]

    def _epochs_before(self, step: int, *, first: int = 1) -> int:
        """Epochs of steps `first` to `step` - 1: from step 1 on and with this step's, the rung."""
        plans = self.job.plan
        return sum(schedule(self.recipe, s, len(plans[s].train)).epochs for s in range(first, step))

    def _select_rows(self, step: int, limit: int | None = None) -> np.ndarray[Any, Any]:
        images = self.job.plan[step]
        rows = images.val if self.recipe.eval.select_on == "val" else images.holdout
        if limit is not None and len(rows) > limit:
            rows = rows[np.linspace(0, len(rows) - 1, limit).astype(int)]
        return rows

    def _select(self, segmenter: Segmenter, step: int, scored: Tensor | None) -> Tensor:
        """The confusion on all images that search looks at; the last epoch's if it saw them all."""
        rows = self._select_rows(step)
        if scored is not None and len(rows) <= self.recipe.eval.max_images:
            return scored
        return self._confusion(segmenter, step, rows)

    def _confusion(
        self, segmenter: Segmenter, step: int, rows: np.ndarray[Any, Any] | None
    ) -> Tensor:
        """The confusion on some rows of what search looks at; None: on val, for the tables."""
        prepared = self.job.prepared
        on_val = rows is None or self.recipe.eval.select_on == "val"
        labels = evaluation_labels(self.scenario, step, unseen=self.recipe.eval.unseen)
        return confusion_matrix(
            segmenter,
            EvaluationImages(
                prepared.val if on_val else prepared.train,
                self.job.plan[step].val if rows is None else rows,
                labels,
                self.recipe.eval,
            ),
            runtime=self.runtime,
            ranks=self.ranks,
            loader_workers=self.recipe.data.loader_workers,
        )

    def _means(self, confusion: Tensor, step: int) -> dict[str, float]:
        scenario = self.scenario
        num_base = len(self.recipe.scenario.steps[0]) + 1  # of the scenario itself, also for joint
        return metrics.mean_ious(
            metrics.iou_per_class(confusion),
            num_base=num_base,
            num_old=len(scenario.classes_until(step - 1)) if step > 0 else 1,
            background=scenario.background,
        )

    def _step_report(self, step: int, *, cached: bool) -> Report:
        """What is told about a finished step: means, per-class IoU and forgetting on both image sets."""
        result = self.history[step]
        sets = {}
        for name in ("select", "val"):
            ious = [metrics.iou_per_class(torch.tensor(entry[name])) for entry in self.history]
            drop = metrics.forgetting(ious)
            means = self._means(torch.tensor(result[name]), step)
            means["forgetting"] = metrics.mean_forgetting(ious)
            classes = self.scenario.classes_until(step)
            sets[name] = {
                "means": means,
                "iou": dict(zip(map(str, classes), ious[-1].tolist(), strict=True)),
                "forgetting": dict(zip(map(str, classes), drop.tolist(), strict=False)),
            }
        return {
            "kind": "step",
            "step": step,
            "cached": cached,
            "value": self._value(self._selected, step),
            "seconds": result["seconds"],
            "images": result["images"],
            "iterations": result["iterations"],
            "run_epoch": self._epochs_before(step + 1, first=0),
            "entries": self._entries(step),
            "environment": result.get("environment"),  # older entries do not tell
            "confusion": pack(result["val"]) if step > 0 else None,  # at step 0 nothing is old
            **sets,
        }

    def _entries(self, step: int) -> list[str]:
        """Digests of what is stored of `step`: its weights, and the memories that leave it."""
        after = step + 1 < len(self.scenario.steps)
        names = self.recipe.memories() if after else ()
        keys = [self._key(step), *(self.memories.key(name, step + 1) for name in names)]
        return [key_digest(key) for key in keys]


class LocalContext:
    """A run in this process: reports go to a function, checkpoints to a store."""

    def __init__(
        self,
        on_report: Callable[[Report], None],
        load: Callable[[], dict[str, Any] | None] = lambda: None,
        save: Callable[[dict[str, Any]], None] = lambda state: None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.load = load
        self._on_report, self._save = on_report, save

    def report(self, report: Report, state: Callable[[], dict[str, Any]] | None = None) -> None:
        self._on_report(report)
        if state is not None:
            self._save(state())


def step_reports(reports: list[Report]) -> Iterator[Report]:
    """The reports of finished steps among `reports`."""
    return (report for report in reports if report["kind"] == "step")
