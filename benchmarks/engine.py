"""The study engine beside stock Ray Tune + OptunaSearch + Ray Train, on one private Ray head, in one run.

    python benchmarks/engine.py gangs --trials 12       time between trials, whole study, memory
    python benchmarks/engine.py overhead --trials 300   what one-second trials cost besides their second
    python benchmarks/engine.py work --trials 20        training of a study beside T0 + N T1

Stock runs the same training on the same workers: a Tune function trial that starts a Ray Train run, with
the same lean environment variables, `reuse_actors=True` and the base step already trained.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

TINY: dict[str, Any] = {
    "scenario": "shapes-8-4",
    "method": "mib",
    "model.backbone": "test_resnet",
    "model.width": 16,
    "model.output_stride": 16,
    "data.crop": 48,
    "data.batch_size": 16,
    "optim.iterations_base": 8,
    "optim.epochs_new": 4,
    "optim.lr_base": 0.05,
    "eval.max_images": 8,
    "compute.deterministic": True,
}
SEARCH = {"kd.weight": {"low": 1, "high": 200, "log": True}}
SLOTS = 16
console = Console(width=140)


class Peak:
    """Peak proportional memory and number of all processes below this one, sampled."""

    def __init__(self) -> None:
        self.bytes, self.processes, self._done = 0, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(1.0):
            found = [psutil.Process(), *psutil.Process().children(recursive=True)]
            total = 0
            for process in found:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.bytes, self.processes = max(self.bytes, total), max(self.processes, len(found))


@contextmanager
def head() -> Iterator[tuple[str, Path]]:
    """A private Ray head and an empty UCD_RAY_HOME."""
    from ucd_ray.tune.cluster import LEAN, local_head

    home = Path(tempfile.mkdtemp(prefix="ucd-"))
    os.environ.update({**LEAN, "UCD_RAY_HOME": str(home), "OMP_NUM_THREADS": "1"})
    with local_head(home) as (address, _):
        yield address, home


def spec(name: str, trials: int, workers: int, **more: Any) -> Any:
    """A study of tiny trials, one at a time."""
    from ucd_ray import StudySpec

    values = {"name": name, "recipe": TINY, "search": SEARCH, "trials": trials, "pruner": "none"}
    return StudySpec.model_validate({**values, "workers": workers, "max_concurrent": 1, **more})


def ours(address: str, name: str, trials: int, workers: int, per_run: int | None) -> dict[str, Any]:
    """A study of ours: seconds, peak memory, and the gaps between its trials."""
    from ucd_ray import run_study
    from ucd_ray.tune.database import Database
    from ucd_ray.tune.places import places
    from ucd_ray.tune.tables import event_table

    with Peak() as peak:
        started = time.monotonic()
        run_study(spec(name, trials, workers, trials_per_run=per_run), address=address)
        seconds = time.monotonic() - started
    with Database(places().database).engine.connect() as connection:
        query = event_table.select().where(event_table.c.study == name).order_by(event_table.c.id)
        lines = [(row.time, row.text) for row in connection.execute(query)]
    starts = [t for t, text in lines if text.startswith("trial") and "has its workers" in text]
    ends = [t for t, text in lines if text.startswith("trial") and "step 1 done" in text]
    return {"seconds": seconds, "peak": peak, "gaps": gaps(starts, ends)}


def gaps(starts: list[float], ends: list[float]) -> list[float]:
    """Seconds from the end of each trial to the start of the next."""
    return [start - end for start, end in zip(starts[1:], ends, strict=False)]


def stock(address: str, home: Path, trials: int, workers: int) -> dict[str, Any]:
    """The same trials by stock parts."""
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from ucd_ray.tune.places import places
    from ucd_ray.tune.prepare import prepare_job
    from ucd_ray.tune.single import quiet_ray

    recipe = spec("stock", trials, workers).base_recipe()
    job = prepare_job(recipe, places(), name=("stock", "0"), workers=workers)
    starts: list[float] = []
    ends: list[float] = []

    class Times(tune.Callback):
        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
        ) -> None:
            if result["kind"] == "start":
                starts.append(time.time())
            if result["kind"] == "step" and result["step"] == 1:
                ends.append(time.time())

    from ucd_ray.tune.cluster import LEAN

    environment = {**{key: os.environ[key] for key in LEAN}, "RAY_ADDRESS": address}
    ray.init(
        address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": environment}
    )
    with Peak() as peak, quiet_ray():
        started = time.monotonic()
        tune.Tuner(
            tune.with_resources(
                tune.with_parameters(stock_trial, job=job, storage=str(home / "stock")),
                {"cpu": 0, "memory": 1},
            ),
            param_space={"kd.weight": tune.loguniform(1, 200)},
            tune_config=tune.TuneConfig(
                metric="value",
                mode="max",
                num_samples=trials,
                max_concurrent_trials=1,
                search_alg=OptunaSearch(),
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                storage_path=str(home / "stock"), verbose=0, callbacks=[Times()]
            ),
        ).fit()
        seconds = time.monotonic() - started
    ray.shutdown()
    return {"seconds": seconds, "peak": peak, "gaps": gaps(starts, ends)}


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


def show_gangs(trials: int, workers: int) -> None:
    """Prints the three ways to run the same trials."""
    with head() as (address, home):
        from ucd_ray import run_study

        run_study(spec("base", 1, workers), address=address)  # trains the base step for all
        found = {
            "stock, reuse_actors": stock(address, home, trials, workers),
            "RunPerTrial": ours(address, "each", trials, workers, 1),
            "WarmGangs": ours(address, "warm", trials, workers, None),
        }
    table = Table(title=f"{trials} trials of {workers} workers, one at a time")
    for column in ("", "study s", "between trials s (median)", "peak MB", "processes"):
        table.add_column(column, justify="right")
    for name, result in found.items():
        middle = statistics.median(result["gaps"])
        cells = (f"{result['seconds']:.1f}", f"{middle:.2f}", f"{result['peak'].bytes / 1e6:.0f}")
        table.add_row(name, *cells, str(result["peak"].processes))
    console.print(table)
    warm, each, plain = found["WarmGangs"], found["RunPerTrial"], found["stock, reuse_actors"]
    between = statistics.median(each["gaps"]) / statistics.median(warm["gaps"])
    console.print(f"RunPerTrial / WarmGangs: between trials {between:.0f} (>= 20), ", end="")
    console.print(f"study {each['seconds'] / warm['seconds']:.1f} (>= 3)")
    for name in ("RunPerTrial", "WarmGangs"):
        ratio = found[name]["peak"].bytes / plain["peak"].bytes
        console.print(f"{name} / stock: peak memory {ratio:.2f}, ", end="")
        console.print(f"study {found[name]['seconds'] / plain['seconds']:.2f}")


def show_work(trials: int) -> None:
    """Prints the training of a study beside T0 + N T1, in updates and seconds."""
    from ucd_ray.tune.database import Database
    from ucd_ray.tune.ledger import totals
    from ucd_ray.tune.places import places

    with head() as (address, _):
        import torch

        from ucd_ray import run, run_study

        torch.set_num_threads(1)  # as in a Ray worker with one CPU
        alone = run(spec("alone", 1, 1).base_recipe().with_overrides({"seed": 1}))
        t0, t1 = (step["seconds"] for step in alone.steps)
        run_study(spec("study", trials, 1), address=address)
        spent = totals(Database(places().database), "study")
    plain = t0 + trials * t1
    useful = spent["useful"].cpu
    console.print(f"T0 {t0:.2f} s, T1 {t1:.2f} s alone; {trials} trials: T0 + N T1 = {plain:.1f} s")
    console.print(
        f"study: gangs were busy {useful:.1f} s, ratio {useful / plain:.3f} (<= 1.05); ", end=""
    )
    console.print(f"without the cache N (T0 + T1) = {trials * (t0 + t1):.1f} s")


def sleeper(config: dict[str, Any]) -> None:
    """A trial of one second with one report."""
    from ray import tune

    time.sleep(1.0)
    tune.report({"value": config["x"], "key": str(config.get("number", ""))})


def show_overhead(trials: int) -> None:
    """Prints the wall time of one-second trials on 16 slots beside the ideal."""
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from ucd_ray.tune.single import quiet_ray

    found: dict[str, float] = {}
    with head() as (address, home):
        ray.init(address, log_to_driver=False, logging_level="ERROR")
        sleep = tune.with_resources(sleeper, {"cpu": 0, "memory": 1})
        for name, search, reuse in (
            ("stock", None, False),
            ("stock, reuse_actors", None, True),
            ("ours", DatabaseSearch(home, trials), True),
        ):
            with quiet_ray():
                started = time.monotonic()
                tune.Tuner(
                    sleep,
                    param_space=None if search else {"x": tune.uniform(0, 1)},
                    tune_config=tune.TuneConfig(
                        metric=None if search else "value",
                        mode=None if search else "max",
                        num_samples=-1 if search else trials,
                        max_concurrent_trials=None if search else SLOTS,
                        search_alg=search.searcher if search else OptunaSearch(),
                        scheduler=search.scheduler if search else None,
                        reuse_actors=reuse,
                        trial_dirname_creator=lambda trial: trial.trial_id,
                    ),
                    run_config=tune.RunConfig(storage_path=str(home / "o"), verbose=0),
                ).fit()
                found[name] = time.monotonic() - started
            console.print(f"{name}: {found[name]:.1f} s", highlight=False)
        ray.shutdown()
    ideal = trials / SLOTS
    table = Table(title=f"{trials} one-second trials on {SLOTS} slots, ideal {ideal:.1f} s")
    for column in ("", "s", "overhead s", "ours / this"):
        table.add_column(column, justify="right")
    own = found["ours"] - ideal
    for name, seconds in found.items():
        table.add_row(
            name, f"{seconds:.1f}", f"{seconds - ideal:.1f}", f"{own / (seconds - ideal):.2f}"
        )
    console.print(table)


class DatabaseSearch:
    """Our searcher and scheduler on a SQLite database, over trials that need no gang."""

    def __init__(self, home: Path, trials: int) -> None:
        from ucd_ray import StudySpec
        from ucd_ray.tune.bridge import BookScheduler, BookSearcher, TrialBook
        from ucd_ray.tune.database import Database

        recipe = {**TINY, "method": "mib"}
        search = {"kd.weight": {"low": 0.01, "high": 1.0}}
        study = StudySpec(name="sleep", recipe=recipe, search=search, trials=trials, pruner="none")
        database = Database(f"sqlite:///{home}/sleep.db")
        database.save_spec("sleep", study.model_dump_json(), {"steps": 2})
        book = TrialBook(study, database)

        class Searcher(BookSearcher):
            def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
                if len(self.book.open) >= SLOTS:
                    return None
                chosen = self.book.next_trial()
                if chosen is None:
                    return self.FINISHED
                self.number_of[trial_id] = chosen[0]
                return {"number": chosen[0], "x": chosen[1]["kd.weight"]}

            def on_trial_complete(
                self, trial_id: str, result: Any = None, error: bool = False
            ) -> None:
                self.book.close(self.number_of.pop(trial_id), lost=error)

        class Scheduler(BookScheduler):
            def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
                number = self.searcher.number_of.get(trial.trial_id)
                if number is not None and "value" in result:
                    epoch = {"kind": "epoch", "rung": 1, "value": result["value"]}
                    self.searcher.book.report(number, epoch)
                    self.searcher.book.report(number, {"kind": "done", "value": result["value"]})
                return "CONTINUE"

        self.searcher = Searcher(book, None)  # type: ignore[arg-type]
        self.scheduler = Scheduler(self.searcher)


def main() -> None:
    """Parses and runs one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("gangs", "overhead", "work"))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "gangs":
        show_gangs(arguments.trials or 12, arguments.workers)
    elif arguments.what == "overhead":
        show_overhead(arguments.trials or 300)
    else:
        show_work(arguments.trials or 20)


if __name__ == "__main__":
    main()
