"""Who trains the trials of a study: gangs of workers that are kept, or new ones for every trial.

A gang is one Ray Train run whose workers take trials from a board (`gangs.py`).  `WarmGangs` keeps it for
many trials, `RunPerTrial` ends it after one; nothing else differs.  The driver hosts each run in a thread.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ucd_ray.errors import CheckpointError, ClusterError, ConfigError, UcdRayError
from ucd_ray.job import Job
from ucd_ray.recipe import Recipe, micro_batches
from ucd_ray.tune.board import ENDS, GO, Board
from ucd_ray.tune.keys import Run
from ucd_ray.tune.lifeline import answers
from ucd_ray.tune.nodes import on_this_node

HANDLE_RESOURCES = {"cpu": 0, "memory": 1}  # takes no CPU from the workers; Tune wants something
FAILED_STARTS = 4  # of a gang in a row, before the study ends
CLOSE_S = 20.0  # for gangs to end by themselves
LEAVE_S = 10.0  # for threads to notice that their run was ended
MICRO_BATCH = "micro_batch_new"  # user attribute of a trial: that of its last start


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
        if self.workers > 1 and self.gpus % 1:
            raise ConfigError(
                f"gpus_per_worker ({self.gpus:g}) with {self.workers} workers: NCCL needs a whole GPU "
                "for each of several workers; use --workers 1, or whole GPUs"
            )

    def resources_per_worker(self) -> dict[str, float]:
        """In Ray's words."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


@dataclass
class Host:
    """A gang that this process hosts in a thread, and the actor that controls its run."""

    name: str
    thread: threading.Thread | None = None
    controller: Any = None
    retired: bool = False
    trouble: str | None = None
    """Why its last start failed; another is tried."""
    error: str | None = None
    """Why none is."""


@dataclass
class Executor:
    """Gangs and their board.  Use as a context; `trials_per_run` None keeps a gang's workers for all.

    storage: where Ray Train keeps files of its own; nothing of ours depends on them
    """

    gang: Gang
    storage: str
    study: str
    trials_per_run: int | None = None
    hosts: dict[str, Host] = field(default_factory=dict)
    board: Any = None
    left: threading.Event = field(
        default_factory=threading.Event
    )  # with an error; no thread may call Ray
    on_retired: Callable[[str], None] = lambda gang: None

    def __enter__(self) -> Executor:
        import ray

        self.board_name = f"board-{self.study}-{uuid.uuid4().hex[:6]}"
        # On the driver's node, so that only the loss of that one loses it.
        options = {"num_cpus": 0, "max_concurrency": 1000, "name": self.board_name}
        actor = ray.remote(**options, scheduling_strategy=on_this_node())(Board)
        self.board = actor.remote()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends all gangs: in order if all went well, else with Ray's connection."""
        if kind is not None:
            return self._leave()
        for name in list(self.hosts):
            self.retire(name)
        _join(list(self.hosts.values()), CLOSE_S)
        import ray

        with contextlib.suppress(Exception):
            ray.kill(self.board)

    def _leave(self) -> None:
        """Ends all runs at once, and waits for their threads.

        Ray's connection closes next: that ends a process in which a thread waits for Ray.
        """
        import ray

        self.left.set()
        hosts = list(self.hosts.values())
        if not ray.is_initialized() or not answers(ray.get_runtime_context().gcs_address):
            return  # no call would return
        for host in hosts:
            self._end_if_left(host)
        _join(hosts, LEAVE_S)

    def _end_if_left(self, host: Host) -> None:
        import ray

        if self.left.is_set() and host.controller is not None:
            with contextlib.suppress(Exception):
                ray.kill(host.controller)

    # Gangs.

    def trouble(self, name: str) -> str | None:
        """Why the last start of a gang failed, while another is tried."""
        host = self.hosts.get(name)
        return host.trouble if host else None

    def add_gang(self, name: str) -> None:
        """Starts a gang; its workers come up in the background."""
        import ray

        ray.get(self.board.add_gang.remote(name))
        host = Host(name)
        host.thread = threading.Thread(target=self._host, args=(host,), daemon=True)
        self.hosts[name] = host
        host.thread.start()

    def retire(self, name: str) -> None:
        """Ends a gang after the trial that it has."""
        self.hosts[name].retired = True
        self.board.close_gang.remote(name)

    def status(self) -> dict[str, Any]:
        """The board's view of trials and gangs.  Raises ClusterError if a gang cannot be started."""
        import ray

        for host in self.hosts.values():
            if host.error:
                raise ClusterError(f"the training workers do not start: {host.error}")
        found: dict[str, Any] = ray.get(self.board.status.remote())
        return found

    def _host(self, host: Host) -> None:
        """Runs Ray Train runs for one gang, one after the other, until it is retired."""
        import ray

        failed = 0
        while not host.retired and failed < FAILED_STARTS:
            if self.left.is_set():
                return
            try:
                before = self._starts(host.name)
                error = self._run(host)
                if self.left.is_set():
                    return
                host.retired |= self.trials_per_run == 1 and error is None
                failed = 0 if self._starts(host.name) > before else failed + 1
                if isinstance(error, ClusterError):  # the same again
                    failed = FAILED_STARTS
                host.trouble = told(error) if error and failed else None
                host.error = host.trouble if failed == FAILED_STARTS else None
            except (Exception, SystemExit):  # the connection to Ray is closed: the study has ended
                return
            if failed:
                self.left.wait(2**failed)
        with contextlib.suppress(Exception, SystemExit):
            ray.get(self.board.drop_gang.remote(host.name))
        if not host.error:
            self.hosts.pop(host.name, None)
        self.on_retired(host.name)

    def _starts(self, name: str) -> int:
        import ray

        gangs = ray.get(self.board.status.remote())["gangs"]
        return int(gangs[name]["starts"]) if name in gangs else 0

    def _run(self, host: Host) -> BaseException | None:
        """One Ray Train run.  Returns why it failed, None if it ended by itself."""
        from ucd_ray.tune.gang_run import run_gang
        from ucd_ray.tune.gangs import CONTROL_TIMEOUT_S, serve

        def controlled(controller: Any) -> None:
            host.controller = controller
            self._end_if_left(host)

        run_name = f"{self.study}-{host.name}-{uuid.uuid4().hex[:6]}"
        config = {
            "board": self.board_name,
            "gang": host.name,
            "trials_per_run": self.trials_per_run,
        }
        try:
            run_gang(
                serve,
                config,
                name=run_name,
                storage=self.storage,
                workers=self.gang.workers,
                resources=self.gang.resources_per_worker(),
                control_timeout_s=CONTROL_TIMEOUT_S,
                on_controller=controlled,
            )
        except Exception as error:
            return root_cause(error)
        finally:
            self._remove_files(run_name)
        return None

    def _remove_files(self, run_name: str) -> None:
        from ucd_ray.checkpoint import Store

        with contextlib.suppress(CheckpointError):
            Store(self.storage).delete(run_name)

    # Trials.

    def put(self, key: str, job: Job, smaller: tuple[Job, ...] = ()) -> None:
        """Puts a trial on the board; `smaller` are what it becomes when memory runs out."""
        import ray

        ray.get(self.board.put.remote(key, job, list(smaller)))

    def answer(self, key: str, place: int, answer: str) -> None:
        """The verdict on a report that waits for one."""
        self.board.answer.remote(key, place, answer)

    def wish(self, key: str, wish: str) -> None:
        """Stops or pauses a trial at its next report that asks."""
        self.board.wish.remote(key, wish)

    def forget(self, key: str) -> None:
        """Drops a trial that has ended from the board."""
        self.board.forget.remote(key)

    def take(self, key: str, since: int, wait_s: float) -> list[dict[str, Any]]:
        """Reports of a trial from place `since` on; waits for the first, at most `wait_s`."""
        import ray

        found: list[dict[str, Any]] = ray.get(self.board.take_reports.remote(key, since, wait_s))
        return found

    def reports(self, key: str, check: Callable[[], object]) -> Iterator[dict[str, Any]]:
        """The reports of a trial outside Tune; all are answered with GO.

        check: called at least once a second; it may raise
        """
        for place, report in follow(self.board, key, check, wait_s=1.0):
            self.answer(key, place, GO)
            yield report

    def trainable(self) -> Any:
        """What Tune runs for one trial: a small process that passes reports on."""
        from ray import tune

        return tune.with_resources(
            tune.with_parameters(run_handle, board=self.board_name), dict(HANDLE_RESOURCES)
        )


def _join(hosts: list[Host], seconds: float) -> None:
    """Waits for the threads of hosts, together at most that long."""
    deadline = time.monotonic() + seconds
    for host in hosts:
        if host.thread is not None:
            host.thread.join(max(0.0, deadline - time.monotonic()))


def follow(
    board: Any, key: str, check: Callable[[], object] = lambda: None, wait_s: float = 30.0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The reports of a trial with their places, up to its last; `check` is called now and then."""
    import ray

    since = 0
    while True:
        check()
        for report in ray.get(board.take_reports.remote(key, since, wait_s)):
            yield since, report
            since += 1
            if report["kind"] in ENDS:
                return


def run_handle(config: dict[str, Any], board: str) -> None:
    """Tune's side of a trial: every report on the board becomes a Tune result."""
    import ray
    from ray import tune

    for place, report in follow(ray.get_actor(board), config["key"]):
        tune.report(pack(report, place))


def pack(report: dict[str, Any], place: int = 0) -> dict[str, Any]:
    """A report as one value: Tune flattens nested ones."""
    return {"report": json.dumps(report), "place": place}


def unpack(result: dict[str, Any]) -> dict[str, Any] | None:
    """The report in a Tune result, None if there is none."""
    return json.loads(result["report"]) if "report" in result else None


def root_cause(error: BaseException) -> BaseException:
    """The innermost error that a nest of Ray errors carries."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None) or error.__cause__
        inner = getattr(error, "controller_failure", inner)
        if workers := getattr(error, "worker_failures", None):
            inner = next(iter(workers.values()))
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


def told(error: BaseException) -> str:
    """An error in one line; ours speak for themselves."""
    if isinstance(error, UcdRayError):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"


def trial_jobs(job: Job, number: int | Run, recipe: Recipe, oom_retries: int) -> list[Job]:
    """The job of a run of a study, and what it becomes each time memory runs out.

    job: the study's; recipe: the trial's

    A smaller job has half as many images per forward pass, and the same total batch.
    Raises ConfigError if the params do not fit together.
    """
    found = [replace(job, recipe=recipe, name=(*job.name[:-1], str(number)))]
    for _ in range(oom_retries):
        micro, _ = micro_batches(recipe, job.workers, step=1)
        if micro % 2 or micro < 4:  # batch norm needs more than one image
            break
        recipe = recipe.with_overrides({"data.micro_batch_new": micro // 2})
        found.append(replace(found[0], recipe=recipe))
    return found
