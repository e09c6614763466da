"""A study from its spec to its table: checks, database, cluster, base step, trials."""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import ValidationError
from rich.console import Console

from ucd_ray.checkpoint import StepCache, Store, TrialStore
from ucd_ray.errors import CheckpointError, ConfigError, StudyError, UcdRayError
from ucd_ray.job import Job
from ucd_ray.recipe import Recipe, describe, micro_batches
from ucd_ray.tune import commands
from ucd_ray.tune.admission import Admission
from ucd_ray.tune.board import ENDS, GO
from ucd_ray.tune.cluster import check_local, connect, private_head_needed
from ucd_ray.tune.database import Database
from ucd_ray.tune.dispatch import Dispatcher, StudyStopped
from ucd_ray.tune.events import EventLog
from ucd_ray.tune.executors import Executor, Gang
from ucd_ray.tune.janitor import remove_leftover_groups
from ucd_ray.tune.ledger import OPEN, STUDY, Ledger, summary, totals
from ucd_ray.tune.places import Places, below, places
from ucd_ray.tune.prepare import prepare_job
from ucd_ray.tune.progress import Progress
from ucd_ray.tune.results import trials_table
from ucd_ray.tune.retention import tidy
from ucd_ray.tune.single import quiet_ray
from ucd_ray.tune.space import StudySpec

MAY_CHANGE = {
    *("trials", "max_concurrent", "cpus_per_worker", "gpus_per_worker", "trials_per_run"),
    *("oom_retries", "keep_best", "max_hours", "max_gpu_hours", "patience", "terminator"),
    "same_failures",
}
BEAT_S = 10.0  # between renewals of the claim on a study
RAY_FILES = ".ray"  # below the runs: Tune's and Train's own; no study can have this name
POLL_S = 0.5  # between looks at what the base step waits for
HANDLE_RESTARTS = 3  # of the process through which Tune follows a trial
KIND_OF = {"COMPLETE": "useful", "PRUNED": "pruned", "FAIL": "failed"}  # states in the ledger


def run_study(
    spec: StudySpec, *, address: str | None = None, console: Console | None = None
) -> pa.Table:
    """Runs a study, or goes on with it, until it has its trials.  Returns its table of trials.

    address: of a Ray cluster; None: RAY_ADDRESS, else a private head on this machine
    Raises UcdRayError for what a user can mend.
    """
    console = console or Console(quiet=True)
    where = places()
    recipe = spec.base_recipe()
    if not spec.search:
        raise ConfigError(
            f"nothing is searched: method '{recipe.method}' has no searched key left; "
            "use `ucd-ray train` for one run, or free a key that --set fixes"
        )
    for key in {"data.batch_size", "data.micro_batch"} & set(spec.search):
        for value in spec.search[key].samples():
            micro_batches(recipe.with_overrides({key: value}), spec.workers)
    if private_head_needed(address):
        check_local(spec.workers, cpus=spec.cpus_per_worker, gpus=spec.gpus_per_worker or 0)
    job = prepare_job(
        recipe,
        where,
        name=(spec.name, "base"),
        workers=spec.workers,
        objective=spec.objective,
        console=console,
    )
    database = Database(where.database)
    register(database, spec, recipe)
    database.claim(spec.name)
    with _claimed(database, spec.name):
        database.save_spec(spec.name, spec.model_dump_json(), facts(spec, recipe))
        commands.settle(database, spec.name)
        book = _open_book(spec, database)
        if book.finished() < book.wanted or book.adopted:
            with Progress(
                spec,
                console,
                finished=book.states(),
                best=book.best(),
                log=EventLog(database, spec.name),
            ) as progress:
                progress.total = book.wanted
                database.on_wait = progress.note
                _drive(spec, job, book, where, address, progress)
    return trials_table(database, spec.name)


def _open_book(spec: StudySpec, database: Database) -> Any:
    from ucd_ray.tune.bridge import TrialBook  # Ray: not before the checks have passed

    return TrialBook(spec, database)


def register(database: Database, spec: StudySpec, recipe: Recipe) -> None:
    """Stores the spec of a new study, or checks that it is the stored one.  Raises StudyError."""
    stored = database.spec(spec.name)
    content = spec.model_dump(mode="json")
    if stored is not None:
        differing = differences(stored, content)
        if differing:
            raise StudyError(
                f"study '{spec.name}' exists with another spec; differing: {'; '.join(differing)}. "
                "Choose another --name, or start it with the same values"
            )
    else:
        database.save_spec(spec.name, spec.model_dump_json(), facts(spec, recipe))


def facts(spec: StudySpec, recipe: Recipe) -> dict[str, Any]:
    """What tables say about a study."""
    return {
        "scenario": recipe.scenario.name,
        "setting": recipe.setting,
        "method": recipe.method,
        "objective": spec.objective,
        "select_on": recipe.eval.select_on,
        "steps": len(recipe.steps.steps),
        "background": recipe.scenario.background,
    }


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The keys in which two specs differ, with both values; budget and parallelism may differ."""
    found = []
    for field in sorted(set(stored) | set(wanted)):
        old, new = stored.get(field), wanted.get(field)
        if field in MAY_CHANGE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            keys = sorted(k for k in set(old) | set(new) if old.get(k) != new.get(k))
            found += [f"{k} ({_show(old.get(k))} there, {_show(new.get(k))} here)" for k in keys]
        else:
            found.append(f"{field} ({_show(old)} there, {_show(new)} here)")
    return found


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{k}: {v}" for k, v in value.items() if v not in (None, False)) + "}"
        )
    return "not given" if value is None else str(value)


@contextlib.contextmanager
def _claimed(database: Database, name: str) -> Iterator[None]:
    """Renews the claim on a study in the background and gives it back at the end."""
    done, lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_S):
            with contextlib.suppress(StudyError):  # tried again in BEAT_S
                if not database.beat(name):
                    lost.set()
                    return _thread.interrupt_main()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if lost.is_set():
            raise StudyError(f"study '{name}' was taken over by another process") from None
        raise
    finally:
        done.set()
        thread.join(BEAT_S)
        database.release(name)


def _drive(
    spec: StudySpec,
    job: Job,
    book: Any,
    where: Places,
    address: str | None,
    progress: Progress,
) -> None:
    """Connects, trains the base step if no cache holds it, and runs the trials."""
    from ucd_ray.tune.budgets import Budgets  # Optuna: not before the checks have passed

    progress.wait_for("waiting for Ray to start ...")
    with connect(address, where.home, job=spec.name) as cluster, quiet_ray():
        progress.wait_for("")
        if cluster.dashboard:
            progress.say(f"Ray dashboard: {cluster.dashboard}  (token in {where.home}/ray-token)")
        gang = cluster.gang(spec)
        gang.check(job.recipe)
        ledger = Ledger(book.database, spec.name, gang)
        admission = Admission(book.database, spec.name, cluster.address, gang)
        admission.release_all()  # of a driver that died
        remove_leftover_groups()
        executor = Executor(gang, below(where.runs, RAY_FILES), spec.name, spec.trials_per_run)
        dispatcher = Dispatcher(
            job,
            executor,
            admission,
            ledger,
            Budgets(book, ledger),
            cluster.nodes,
            lambda: spec.max_concurrent or cluster.concurrent_trials(gang),
            spec.oom_retries,
            progress.note,
        )
        if commands.is_paused(book.database, spec.name):
            how = f"`ucd-ray study resume {spec.name}` goes on"
            dispatcher.set_mode("paused", f"the study is paused: {how}")
        try:
            with executor, StepCache(Store(job.cache), spec_name(job)).hold([base_key(job, gang)]):
                run = Run(spec, book, dispatcher, progress)
                if run.base_step():
                    run.trials()
        except StudyStopped as stopped:
            progress.note(str(stopped))
            book.cancel_open(str(stopped))
        finally:
            dispatcher.close()
        progress.say(summary(totals(book.database, spec.name)))


@dataclass
class Run:
    """One drive of a study, once its cluster is there."""

    spec: StudySpec
    book: Any
    dispatcher: Dispatcher
    progress: Progress

    def base_step(self) -> bool:
        """Trains step 0 once, before the trials that share it.  Returns whether it is there.

        Raises StudyError if it fails.
        """
        job, dispatcher, progress = self.dispatcher.job, self.dispatcher, self.progress
        cache = StepCache(Store(job.cache), spec_name(job))
        key = base_key(job, dispatcher.executor.gang)
        while not cache.has(key):
            dispatcher.tick()
            if dispatcher.ends:
                return False
            reason = self._base_waits(cache.holder(key))
            if reason is None:
                self._train_base()
            else:
                progress.wait_for(f"the base step waits: {reason}")
                time.sleep(POLL_S)
        progress.wait_for("")
        return True

    def _base_waits(self, holder: str | None) -> str | None:
        """Why the base step cannot be trained now; None: a gang is there for it."""
        dispatcher = self.dispatcher
        if dispatcher.mode == "paused":
            return dispatcher.why
        if holder is not None:
            return f"it is being trained by {holder}"
        open_gangs = [gang for gang in dispatcher.gangs.values() if not gang["closing"]]
        return None if open_gangs else dispatcher.acquire()

    def _train_base(self) -> None:
        from ucd_ray.tune.single import run_single

        dispatcher, progress = self.dispatcher, self.progress
        progress.event("started", "base step", {})
        progress.wait_for("trials wait for the base step")
        dispatcher.placed["base"] = GO
        base = dispatcher.job.base()
        failure = run_single(
            dispatcher.executor, "base", base, self._on_base_report, dispatcher.tick
        )
        dispatcher.ended("base")
        progress.running.pop("base step", None)
        if failure is not None:
            raise StudyError(f"the base step failed: {failure}")

    def _on_base_report(self, kind: str, report: dict[str, Any]) -> None:
        self.progress.event(kind, "base step", report)
        self.dispatcher.ledger.spend(STUDY, OPEN, report["held_s"])
        if kind in ENDS:
            self.dispatcher.ledger.end(STUDY, "failed" if kind == "failed" else "useful")

    def trials(self) -> None:
        """Runs the trials through Tune.  Raises StudyError."""
        from ucd_ray.tune.bridge import BookScheduler, BookSearcher, Ticks

        spec, dispatcher, book = self.spec, self.dispatcher, self.book
        book.on_event = self._on_event
        gang = dispatcher.executor.gang
        self.progress.say(
            f"{dispatcher.max_gangs} trial(s) at a time, {gang.workers} worker(s) each"
        )
        searcher = BookSearcher(book, dispatcher)
        dispatcher.on_cancel = searcher.cancel
        from ray import tune

        tuner = tune.Tuner(
            dispatcher.executor.trainable(),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=searcher,
                scheduler=BookScheduler(searcher),
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{spec.name}",
                storage_path=dispatcher.executor.storage,
                verbose=0,
                callbacks=[Ticks(searcher)],
                failure_config=tune.FailureConfig(max_failures=HANDLE_RESTARTS),
            ),
        )
        try:
            tuner.fit()
        except StudyStopped as stopped:
            book.cancel_open(str(stopped))
            raise
        except tune.TuneError as error:  # most likely the database failed inside a callback
            cause = str(error).strip().splitlines()[-1]
            raise StudyError(
                f"study '{spec.name}' stopped: {cause}; the same command goes on"
            ) from None
        finally:
            for number in book.finished_numbers():
                _forget_checkpoint(dispatcher.job, number)
            with contextlib.suppress(CheckpointError):
                Store(dispatcher.executor.storage).delete(f"tune-{spec.name}")

    def _on_event(self, kind: str, number: int, report: dict[str, Any]) -> None:
        if "held_s" in report:
            self.dispatcher.ledger.spend(number, OPEN, report["held_s"])
        if kind == "step" and report["cached"] and not report.get("own"):
            self.dispatcher.ledger.add("saved", report["seconds"], number=number)
        if kind == "finished":
            self.dispatcher.ledger.end(number, KIND_OF.get(report["state"], "failed"))
            store = Store(self.dispatcher.job.cache)
            tidy(self.book.study, store, keep_best=self.spec.keep_best)
            _forget_checkpoint(self.dispatcher.job, number)
        if kind == "paused":
            self.dispatcher.ledger.reopen(number)
        self.progress.event(kind, f"trial {number}", report)


def _our_error(error: BaseException | None) -> UcdRayError | StudyStopped | None:
    """The error of ours that Tune wrapped into its own."""
    while error is not None and not isinstance(error, UcdRayError | StudyStopped):
        error = error.__cause__ or error.__context__
    return error


def _forget_checkpoint(job: Job, number: int) -> None:
    """Removes the checkpoint of a finished trial, unless its stopped worker is just writing it."""
    with contextlib.suppress(CheckpointError):
        TrialStore(Store(job.store), *job.name[:-1], str(number)).clear()


def base_key(job: Job, gang: Gang) -> dict[str, Any]:
    """The key of the base step that the trials of a study share."""
    return job.step_key(0, precision=job.guessed_precision(gpus=gang.gpus > 0))


def spec_name(job: Job) -> str:
    """The name under which a study's driver is seen in the step cache: that of its base run."""
    return "/".join(job.base().name)


def stored_spec(name: str) -> StudySpec:
    """The spec of a study that was started before.  Raises StudyError."""
    stored = Database(places().database).stored_spec(name)
    try:
        return StudySpec.model_validate(stored)
    except ValidationError as error:
        raise StudyError(
            f"the stored spec of study '{name}' is of another version of ucd-ray: {describe(error)}"
        ) from None
