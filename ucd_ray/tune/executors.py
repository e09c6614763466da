"""How Tune's trials become Ray Train runs: one Train run per trial.

The trainable runs in a small actor of its own and starts N training workers; each worker runs
`ucd_ray.train.train_run` in a `RayContext`.  Our checkpoints live in our own store, so the same trial
number finds its own after any crash; Train's checkpoints are not used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ucd_ray.errors import ConfigError, TrainingDiverged, UcdRayError
from ucd_ray.job import Job
from ucd_ray.recipe import Recipe

WORKER_RESTARTS = 2  # of one trial, after a lost worker: each costs at most one epoch
DRIVER_RESOURCES = {"cpu": 0, "memory": 1}  # takes no CPU from the workers; Tune wants something


@dataclass(frozen=True)
class Gang:
    """The workers of one trial and what each of them holds."""

    workers: int
    cpus: float
    gpus: float

    def check(self, recipe: Recipe) -> None:
        """Raises ConfigError if these workers cannot do what a recipe asks for."""
        if recipe.model.norm == "sync" and not self.gpus:
            raise ConfigError(
                "model.norm (sync) needs GPUs: PyTorch synchronises batch norm on CUDA only; "
                "use batch or frozen"
            )

    def resources_per_worker(self) -> dict[str, float]:
        """In Ray's words."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


@dataclass(frozen=True)
class RunPerTrial:
    """Starts a Ray Train run for every trial."""

    job: Job  # of the study; number and params make it a trial's
    gang: Gang
    storage: str

    def trainable(self) -> Any:
        """What Tune runs for one trial."""
        from ray import tune

        return tune.with_resources(
            tune.with_parameters(run_trial, executor=self), dict(DRIVER_RESOURCES)
        )

    def trial_job(self, number: int, params: dict[str, Any]) -> Job:
        """The job of a trial."""
        recipe = self.job.recipe.with_overrides(params)
        return replace(self.job, recipe=recipe, name=(*self.job.name[:-1], str(number)))


def run_trial(config: dict[str, Any], executor: RunPerTrial) -> None:
    """Trains one trial on its own gang; every report of rank 0 becomes a Tune result.

    A run that fails for good becomes a report of its own: Tune does not hand the error on.
    """
    from ray import tune
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    gang = executor.gang
    try:
        job = config.get("job") or executor.trial_job(config["number"], config["params"])
        TorchTrainer(
            train_worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=gang.workers,
                use_gpu=gang.gpus > 0,
                resources_per_worker=gang.resources_per_worker(),
            ),
            run_config=RunConfig(
                name="-".join(job.name),
                storage_path=executor.storage,
                failure_config=FailureConfig(max_failures=WORKER_RESTARTS),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=[TuneReportCallback()],
            ),
        ).fit()
    except Exception as error:  # a refused recipe, or whatever Train or a worker below it raises
        tune.report(pack(failure(error)))


def train_worker(config: dict[str, Any]) -> None:
    """One training worker: what Ray Train runs on every rank."""
    from ucd_ray.train import train_run

    context, job = RayContext(config["job"]), config["job"]
    try:
        reports = train_run(job, context)
    except Exception as error:
        everywhere = isinstance(error, TrainingDiverged) or context.ranks.world_size == 1
        if not everywhere:  # the other ranks wait in a collective: Train ends them
            raise
        context.report(failure(error))
        return
    context.report({"kind": "done", "value": reports[-1]["value"]})
    if context.ranks.rank == 0:
        context.checkpoint.clear()


def failure(error: Exception) -> dict[str, Any]:
    """The report of a run that `error` ended."""
    if isinstance(error, TrainingDiverged):
        return {"kind": "failed", "code": "NAN", "reason": str(error)}
    if isinstance(error, UcdRayError):
        return {"kind": "failed", "code": "USER_ERROR", "reason": str(error)}
    return {"kind": "failed", "code": "ERROR", "reason": root_cause(error)}


def root_cause(error: BaseException) -> str:
    """The message of the innermost error that a nest of Ray errors carries."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None) or error.__cause__
        workers = getattr(error, "worker_failures", None)
        if workers:
            inner = next(iter(workers.values()))
        if not isinstance(inner, BaseException):
            break
        error = inner
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1] or lines[0]}"


def pack(report: dict[str, Any]) -> dict[str, str]:
    """A report as one value: Tune flattens nested ones."""
    return {"report": json.dumps(report)}


def unpack(result: dict[str, Any]) -> dict[str, Any] | None:
    """The report in a Tune result, None if there is none."""
    return json.loads(result["report"]) if "report" in result else None


class RayContext:
    """A run inside a Ray Train worker: reports go through Train to Tune, checkpoints to our store."""

    def __init__(self, job: Job) -> None:
        import ray.train

        from ucd_ray.checkpoint import Store, TrialStore
        from ucd_ray.learner import Ranks

        train = ray.train.get_context()
        self.ranks = Ranks(
            rank=train.get_world_rank(),
            world_size=train.get_world_size(),
            local_rank=train.get_local_rank(),
        )
        self.checkpoint = TrialStore(Store(job.store), *job.name)

    def load(self) -> dict[str, Any] | None:
        """The trial's checkpoint."""
        return self.checkpoint.load()

    def report(
        self, report: dict[str, Any], state: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        """Report first, save second: a repeated epoch is ignored, a lost value would not come back."""
        import ray.train

        ray.train.report(pack(report))
        if state is not None and self.ranks.rank == 0:
            self.checkpoint.save(state())
