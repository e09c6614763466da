"""A study from its spec to its table: checks, database, cluster, base step, trials."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from ucd_ray.checkpoint import StepCache, Store, TrialStore
from ucd_ray.errors import CheckpointError, StudyError
from ucd_ray.job import Job
from ucd_ray.tune import commands
from ucd_ray.tune.admission import Admission
from ucd_ray.tune.base_runs import Bases, base_key, base_name
from ucd_ray.tune.bases import BaseSteps, shares_base
from ucd_ray.tune.checks import check_start
from ucd_ray.tune.cluster import check_local, connect, private_head_needed
from ucd_ray.tune.curves import Curves
from ucd_ray.tune.database import Database
from ucd_ray.tune.dispatch import Dispatcher, StudyStopped
from ucd_ray.tune.events import EventLog
from ucd_ray.tune.executors import Executor
from ucd_ray.tune.janitor import remove_leftover_groups
from ucd_ray.tune.keys import Run, run_keys
from ucd_ray.tune.ledger import OPEN, Ledger, summary, totals
from ucd_ray.tune.places import Places, below, places
from ucd_ray.tune.prepare import prepare_job
from ucd_ray.tune.progress import Progress
from ucd_ray.tune.registration import facts, recipes_of, register, stored_sources
from ucd_ray.tune.replicates import replicate_jobs
from ucd_ray.tune.results import trials_table
from ucd_ray.tune.retention import tidy
from ucd_ray.tune.single import quiet_ray
from ucd_ray.tune.spec import StudySpec
from ucd_ray.tune.standing import best_two
from ucd_ray.tune.stoppable import stoppable
from ucd_ray.tune.warm_start import check_images, check_sources, warm_start

BEAT_S = 10.0  # between renewals of the claim on a study
RAY_FILES = ".ray"  # below the runs: Tune's and Train's own; no study can have this name
HANDLE_RESTARTS = 3  # of the process through which Tune follows a trial
KIND_OF = {"COMPLETE": "useful", "PRUNED": "pruned", "FAIL": "failed"}  # states in the ledger


def run_study(
    spec: StudySpec,
    *,
    sources: Sequence[str] = (),
    address: str | None = None,
    console: Console | None = None,
    tensorboard: Path | None = None,
) -> pa.Table:
    """Runs a study, or goes on with it, until it has its trials.  Returns its table of trials.

    sources: other studies whose fitting trials its sampler is given; they are stored with the study
    address: of a Ray cluster; None: RAY_ADDRESS, else a private head on this machine
    tensorboard: directory for curves of its trials; None: no curves
    Raises UcdRayError for what a user can mend.
    """
    console = console or Console(quiet=True)
    where = places()
    recipe = spec.base_recipe()
    check_start(spec)
    if private_head_needed(address):
        check_local(spec.workers, cpus=spec.cpus_per_worker, gpus=spec.gpus_per_worker or 0)
    curves = Curves(tensorboard / spec.name) if tensorboard else None
    database = Database(where.database)
    sources = sources or stored_sources(database, spec.name)
    check_sources(database, spec, sources)
    job = prepare_job(
        recipe,
        where,
        name=(spec.name, "base"),
        workers=spec.workers,
        objective=spec.goals.scalar,
        console=console,
    )
    for other in recipes_of(spec)[1:]:
        assert replace(job, recipe=other).plan  # raises on bad input
    jobs = replicate_jobs(job, spec)
    check_images(database, spec, sources, job.prepared.fingerprint)
    register(database, spec, recipe, job.prepared, sources=sources)
    database.claim(spec.name)
    with _claimed(database, spec.name):
        about = facts(spec, recipe, job.prepared, sources=sources)
        database.save_spec(spec.name, spec.model_dump_json(), about)
        commands.settle(database, spec.name)
        warm = [warm_start(database, spec, source) for source in sources]
        book = _open_book(spec, database)
        if book.finished() < book.wanted or book.adopted:
            with Progress(
                spec,
                console,
                finished=book.states(),
                best=book.best(),
                log=EventLog(database, spec.name),
                curves=curves,
            ) as progress:
                progress.total = book.wanted
                database.on_wait = progress.note
                for told in warm:
                    progress.note(str(told))
                _drive(spec, jobs, book, where, address, progress)
    return trials_table(database, spec.name)


def _open_book(spec: StudySpec, database: Database) -> Any:
    from ucd_ray.tune.bridge import TrialBook  # Ray: not before the checks have passed

    return TrialBook(spec, database)


@contextlib.contextmanager
def _claimed(database: Database, name: str) -> Iterator[None]:
    """Renews the claim on a study in the background and gives it back at the end."""
    done = threading.Event()

    def beat(stop: Callable[[StudyError], None]) -> None:
        while not done.wait(BEAT_S):
            with contextlib.suppress(StudyError):  # tried again in BEAT_S
                if not database.beat(name):
                    return stop(StudyError(f"study '{name}' was taken over by another process"))

    with stoppable() as stop:
        thread = threading.Thread(target=beat, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(BEAT_S)
            database.release(name)


def _drive(
    spec: StudySpec,
    jobs: list[Job],
    book: Any,
    where: Places,
    address: str | None,
    progress: Progress,
) -> None:
    """Connects, trains the base steps that no cache holds, and runs the trials.

    jobs: of the replicates; the first is the study's
    """
    from ucd_ray.tune.budgets import Budgets  # Optuna: not before the checks have passed

    progress.wait_for("waiting for Ray to start ...")
    with connect(address, where.home, job=spec.name) as cluster, quiet_ray():
        progress.wait_for("")
        if cluster.dashboard:
            progress.say(f"Ray dashboard: {cluster.dashboard}  (token in {where.home}/ray-token)")
        gang = cluster.gang(spec)
        gang.check(jobs[0].recipe)
        ledger = Ledger(book.database, spec.name, gang)
        admission = Admission(book.database, spec.name, cluster.address, gang)
        admission.release_all()  # of a driver that died
        remove_leftover_groups(cluster.address)
        executor = Executor(gang, below(where.runs, RAY_FILES), spec.name, spec.trials_per_run)
        dispatcher = Dispatcher(
            jobs[0],
            executor,
            admission,
            ledger,
            Budgets(book, ledger),
            cluster.nodes,
            lambda: book.spec.max_concurrent or cluster.concurrent_trials(gang),
            spec.oom_retries,
            progress.note,
        )
        if commands.is_paused(book.database, spec.name):
            how = f"`ucd-ray study resume {spec.name}` goes on"
            dispatcher.set_mode("paused", f"the study is paused: {how}")
        cache = StepCache(Store(jobs[0].cache), base_name(jobs[0]))
        shared = shares_base(spec)
        if not shared:
            precision = jobs[0].guessed_precision(gpus=gang.gpus > 0)
            dispatcher.bases = BaseSteps(cache, precision)
        try:
            with executor, cache.hold([base_key(job, gang) for job in jobs] if shared else []):
                drive = Drive(spec, book, dispatcher, progress)
                drive.listen()
                if not shared or Bases(jobs, dispatcher, progress).train():
                    drive.trials()
        except StudyStopped as stopped:
            progress.note(str(stopped))
            book.cancel_open(str(stopped))
        finally:
            dispatcher.close()
        for line in best_two(book.database, spec.name):
            progress.say(line)
        progress.say(summary(totals(book.database, spec.name)))


@dataclass
class Drive:
    """One drive of a study, once its cluster is there."""

    spec: StudySpec
    book: Any
    dispatcher: Dispatcher
    progress: Progress

    def listen(self) -> None:
        """What commands do, beside those that the dispatcher carries out alone."""
        from ucd_ray.tune.editing import Editor

        self.book.on_event = self._on_event
        self.dispatcher.on_cancel = self.book.cancel_unplaced
        self.dispatcher.handlers = Editor(self.book, self._on_edit).handlers()

    def _on_edit(self, told: str) -> None:
        """The search space, the budgets or the parallelism of the study have changed."""
        dispatcher = self.dispatcher
        dispatcher.job = replace(dispatcher.job, recipe=self.book.spec.base_recipe())
        self.progress.note(told)
        self.progress.total = self.book.wanted
        dispatcher.reconsider()

    def trials(self) -> None:
        """Runs the trials through Tune.  Raises StudyError."""
        from ucd_ray.tune.bridge import BookScheduler, BookSearcher, Ticks
        from ucd_ray.tune.replicate_book import ReplicateBook

        spec, dispatcher, book = self.spec, self.dispatcher, self.book
        gang = dispatcher.executor.gang
        self.progress.say(
            f"{dispatcher.max_gangs} trial(s) at a time, {gang.workers} worker(s) each"
        )
        runs = book if spec.replicates == 1 else ReplicateBook(book, dispatcher.stop)
        searcher = BookSearcher(runs, dispatcher)
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
            runs.cancel_open(str(stopped))
            raise
        except tune.TuneError as error:  # most likely the database failed inside a callback
            cause = str(error).strip().splitlines()[-1]
            raise StudyError(
                f"study '{spec.name}' stopped: {cause}; the same command goes on"
            ) from None
        finally:
            for number in book.finished_numbers():
                self._forget_checkpoints(number)
            with contextlib.suppress(CheckpointError):
                Store(dispatcher.executor.storage).delete(f"tune-{spec.name}")

    def _on_event(self, kind: str, number: int, report: dict[str, Any]) -> None:
        """An event of a trial, or of the one of its runs that `replicate` in its report names."""
        ledger, replicate = self.dispatcher.ledger, report.get("replicate")
        if "held_s" in report:
            ledger.spend(number, OPEN, report["held_s"], replicate=replicate or 0)
        if kind == "step" and report["cached"] and not report.get("own"):
            ledger.add("saved", report["seconds"], number=number)
        if kind == "finished":
            ledger.end(number, KIND_OF.get(report["state"], "failed"))
            store = Store(self.dispatcher.job.cache)
            tidy(self.book.study, store, self.book.goals, keep_best=self.spec.keep_best)
            self.progress.best = self.book.best()
            self._forget_checkpoints(number)
        if kind == "paused":
            ledger.reopen(number, replicate=replicate or 0)
        run = number if replicate is None else Run(number, replicate)
        self.progress.event(kind, f"trial {run}", report)

    def _forget_checkpoints(self, number: int) -> None:
        """Removes the checkpoints of a finished trial, unless a stopped worker is just writing one."""
        job = self.dispatcher.job
        for key in run_keys(number, self.spec.replicates):
            with contextlib.suppress(CheckpointError):
                TrialStore(Store(job.store), *job.name[:-1], key).clear()
