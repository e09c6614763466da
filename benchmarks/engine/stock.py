"""The same trials by stock parts: Ray Tune, OptunaSearch, and a Ray Train run for each trial."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.engine.memory import Memory
from benchmarks.engine.setting import by_value, connected, spec
from benchmarks.engine.timeline import Timeline


def stock_study(address: str, home: Path, trials: int, workers: int) -> Timeline:
    """A Tune function trial that starts a Ray Train run; `reuse_actors=True`."""
    from ray import tune

    from ucd_ray.tune.places import places
    from ucd_ray.tune.prepare import prepare_job

    recipe = spec("stock", trials, workers).base_recipe()
    job = prepare_job(recipe, places(), name=("stock", "0"), workers=workers)
    line = Timeline(trials)
    starts, ends = line.starts, line.ends  # Tune pickles its callbacks with what they use

    class Times(tune.Callback):
        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
        ) -> None:
            if result["kind"] == "start":
                starts.append(time.time())
            if result["kind"] == "step" and result["step"] == 1:
                ends.append(time.time())

    by_value(__name__)
    trainable = tune.with_parameters(stock_trial, job=job, storage=str(home / "stock"))
    with connected(address), Memory() as line.memory:
        started = time.monotonic()
        tuner(
            trainable,
            {"kd.weight": tune.loguniform(1, 200)},
            home / "stock",
            trials=trials,
            at_a_time=1,
            reuse=True,
            callbacks=[Times()],
        ).fit()
        line.seconds = time.monotonic() - started
    return line


def tuner(
    trainable: Any,
    space: dict[str, Any],
    storage: Path,
    *,
    trials: int,
    at_a_time: int,
    reuse: bool,
    callbacks: list[Any] | None = None,
) -> Any:
    """Tune with OptunaSearch in memory; its trials take no CPU from the workers."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0, "memory": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="value",
            mode="max",
            num_samples=trials,
            max_concurrent_trials=at_a_time,
            search_alg=OptunaSearch(),
            reuse_actors=reuse,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(storage_path=str(storage), verbose=0, callbacks=callbacks),
    )


def stock_trial(config: dict[str, Any], job: Any, storage: str) -> None:
    """One Tune trial that starts one Ray Train run."""
    import uuid

    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    recipe = job.recipe.with_overrides({"kd.weight": config["kd.weight"]})
    name = uuid.uuid4().hex[:8]
    TorchTrainer(
        stock_worker,
        train_loop_config={"job": replace(job, recipe=recipe, name=("stock", name))},
        scaling_config=ScalingConfig(num_workers=job.workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=name, storage_path=storage, callbacks=[TuneReportCallback()]),
    ).fit()


def stock_worker(config: dict[str, Any]) -> None:
    """Trains one trial; reports go through Ray Train, checkpoints to a file as ours do."""
    import ray.train

    from ucd_ray.checkpoint import Store, TrialStore
    from ucd_ray.learner import Ranks
    from ucd_ray.train import LocalContext, train_run

    context, job = ray.train.get_context(), config["job"]
    ranks = Ranks(
        context.get_world_rank(), context.get_world_size(), None, context.get_local_rank()
    )
    checkpoint = TrialStore(Store(job.store), *job.name)

    def report(found: dict[str, Any]) -> None:
        value = found.get("value") or 0.0
        ray.train.report({"kind": found["kind"], "step": found.get("step", -1), "value": value})

    def save(state: dict[str, Any]) -> None:
        if ranks.rank == 0:
            checkpoint.save(state)

    train_run(job, LocalContext(report, save=save, ranks=ranks))


def sleeper(config: dict[str, Any]) -> None:
    """A trial of one second with one report."""
    from ray import tune

    time.sleep(1.0)
    tune.report({"value": config["x"]})


def stock_sleep(trials: int, slots: int, storage: Path, *, reuse: bool) -> float:
    """Seconds of one-second trials."""
    from ray import tune

    by_value(__name__)
    space = {"x": tune.uniform(0, 1)}
    run = tuner(sleeper, space, storage, trials=trials, at_a_time=slots, reuse=reuse)
    started = time.monotonic()
    run.fit()
    return time.monotonic() - started
