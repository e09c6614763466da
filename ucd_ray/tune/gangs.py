"""What a gang's workers do: one long Ray Train run that takes trial after trial from a board.

Two kinds of process group keep trials apart.  The control group is the run's own: over it the ranks take
a trial together and agree on how it ended.  Every trial trains in a group of its own, which is destroyed
with it, so that an error on one rank frees the others.  A lost worker breaks the control group too, and
that is how a crash differs from a user's error.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ucd_ray.errors import CheckpointError, TrainingDiverged, UcdRayError
from ucd_ray.job import Job
from ucd_ray.tune.board import GO, PAUSE, STORAGE
from ucd_ray.tune.worker_log import WorkerLog

if TYPE_CHECKING:
    from ucd_ray.learner import Ranks

POLL_S = 5.0  # between looks of idle ranks at the board: no collective waits longer
TRIAL_TIMEOUT_S = 1800.0  # of a trial's collectives: rank 0 may save, score or wait meanwhile
CONTROL_TIMEOUT_S = 300.0  # of the control group: ends the wait for a rank that hangs
LINES_S = 5.0  # for a worker's lines to reach the board before its trial ends there


CODES = (  # of errors, the first that fits
    (TrainingDiverged, "NAN"),
    (CheckpointError, STORAGE),
    (UcdRayError, "USER_ERROR"),
)


class GangBroken(RuntimeError):  # noqa: N818
    """Ends the workers of a gang, so that Ray Train starts new ones."""


def serve(config: dict[str, Any]) -> None:
    """One worker of a gang: what Ray Train runs on every rank.

    config: `board` (its actor's name), `gang`, `trials_per_run` (None: no limit)
    """
    worker = _Worker(config["board"], config["gang"])
    worker.start()
    served = 0
    while True:
        order = worker.next_order()
        if order is None:
            continue
        if isinstance(order, str):  # CLOSE
            return
        key, job = order
        healthy = worker.serve_trial(key, job)
        served += 1
        if served == config["trials_per_run"]:
            return
        if not healthy:
            raise GangBroken("a trial left the workers' GPU or process group in an unknown state")


class _Worker:
    """This process as one rank of a gang."""

    def __init__(self, board: str, gang: str) -> None:
        import ray
        import ray.train
        import torch

        train = ray.train.get_context()
        self.rank, self.size = train.get_world_rank(), train.get_world_size()
        self.local_rank, self.node = train.get_local_rank(), ray.util.get_node_ip_address()
        self.board, self.gang = ray.get_actor(board), gang
        self.cuda = torch.cuda.is_available()
        self.memory = 0
        if self.cuda:
            from ray.train.torch import get_device

            torch.cuda.set_device(get_device())

    def start(self) -> None:
        """Tells the board that this gang is up, and where."""
        import ray
        import torch

        nodes = self._gather(self.node)
        if self.rank == 0:
            ray.get(self.board.gang_started.remote(self.gang, tuple(nodes)))
        if self.cuda:
            self.memory = torch.cuda.memory_allocated()
        gc.collect()
        gc.freeze()  # what imports made is never looked at again

    def next_order(self) -> tuple[str, Job] | str | None:
        """The next trial for all ranks, CLOSE, or None: nothing yet."""
        import ray

        found = None
        if self.rank == 0:
            found = ray.get(self.board.next_trial.remote(self.gang, POLL_S))
        return self._agree(found)

    def serve_trial(self, key: str, job: Job) -> bool:
        """Trains one trial and tells the board how it ended.  Returns whether the gang can go on."""
        import ray
        import torch.distributed as dist

        group = self._new_group()
        last = self._train(key, job, group)
        gc.collect()
        one_sided = last["kind"] == "failed" and not last.pop("everywhere", False)
        if self.cuda and self.size > 1 and one_sided:  # peers may be inside an NCCL kernel
            ray.get(self.board.trial_ended.remote(self.gang, key, last))
            raise GangBroken(last["reason"])
        if group is not None and last["kind"] == "failed":
            dist.destroy_process_group(group)  # closes our sockets: peers leave their collectives
            group = None
        outcomes = self._gather(last)
        if group is not None:
            dist.destroy_process_group(group)
        last = agreed(outcomes)
        if self.rank == 0:
            ray.get(self.board.trial_ended.remote(self.gang, key, last))
        return self._clean_up(last)

    def _train(self, key: str, job: Job, group: Any) -> dict[str, Any]:
        """The last report of a trial on this rank; no exception of it lives on."""
        import ray

        from ucd_ray.learner import Ranks

        ranks = Ranks(self.rank, self.size, group, self.local_rank)
        context = GangContext(self.board, key, job, ranks)
        sent: list[Any] = []

        def send(line: dict[str, Any]) -> None:
            sent.append(self.board.report.remote(key, line, asks=False))

        with WorkerLog(send, rank=self.rank, node=self.node) as log:
            last = self._outcome(job, context, log)
        ray.wait(sent, num_returns=len(sent), timeout=LINES_S)
        return last

    def _outcome(self, job: Job, context: GangContext, log: WorkerLog) -> dict[str, Any]:
        import torch

        from ucd_ray.train import TrialStopped, train_run

        try:
            reports = train_run(job, context)
            if self.rank == 0:
                context.checkpoint.clear()
        except TrialStopped:
            log.ends("stopped")
            return {"kind": "stopped"}
        except Exception as error:
            log.ends("failed", error)
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
            return failure(error, code="OUT_OF_MEMORY" if out_of_memory else None)
        log.ends("done")
        return {"kind": "done", "value": reports[-1]["value"]}

    def _clean_up(self, last: dict[str, Any]) -> bool:
        """Gives memory back.  Returns whether nothing of the trial is left on the GPU."""
        import torch

        gc.collect()
        _trim()
        if not self.cuda:
            return True
        torch.cuda.empty_cache()
        grown = torch.cuda.memory_allocated() > self.memory + 2**20
        broken = last["kind"] == "failed" and "CUDA error" in last["reason"]
        return not any(self._gather(grown or broken))

    def _new_group(self) -> Any:
        import torch.distributed as dist

        if self.size == 1:
            return None
        return dist.new_group(timeout=datetime.timedelta(seconds=TRIAL_TIMEOUT_S))

    def _agree(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        import torch.distributed as dist

        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _gather(self, value: Any) -> list[Any]:
        """Every rank's value on every rank."""
        import torch.distributed as dist

        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


class GangContext:
    """The context of a trial on a gang: reports go to the board, checkpoints to our own store."""

    def __init__(self, board: Any, key: str, job: Job, ranks: Ranks) -> None:
        from ucd_ray.checkpoint import Store, TrialStore

        self.board, self.key, self.ranks = board, key, ranks
        self.checkpoint = TrialStore(Store(job.store), *job.name)

    def load(self) -> dict[str, Any] | None:
        """The trial's checkpoint."""
        return self.checkpoint.load()

    def report(
        self, report: dict[str, Any], state: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        """Report first, save second: a repeated epoch is ignored, a lost value would not come back.

        Raises TrialStopped on all ranks if the driver says so.
        """
        import ray

        from ucd_ray.train import TrialStopped

        asks = state is not None
        answer = GO
        if self.ranks.rank == 0:
            answer = ray.get(self.board.report.remote(self.key, report, asks))
        if not asks:
            return
        answer = self.ranks.agree(answer)
        if state is not None and self.ranks.rank == 0 and answer in (GO, PAUSE):
            self.checkpoint.save(state())
        if answer != GO:
            raise TrialStopped


def failure(error: Exception, *, code: str | None = None) -> dict[str, Any]:
    """The last report of a trial that `error` ended on this rank.

    everywhere: all ranks raise it alike; own: it is this rank's, not the echo of another's
    """
    if code is None:
        code = next((name for kind, name in CODES if isinstance(error, kind)), "ERROR")
    known = isinstance(error, UcdRayError)
    lines = str(error).strip().splitlines() or [""]
    return {
        "kind": "failed",
        "code": code,
        "reason": str(error) if known else f"{type(error).__name__}: {lines[0]}",
        "traceback": "".join(traceback.format_exception(error)),
        "everywhere": isinstance(error, TrainingDiverged),
        "own": not _is_echo(error),
        "time": time.time(),
    }


def _is_echo(error: Exception) -> bool:
    """Whether an error only says that another rank left a collective."""
    text = str(error)
    kind = type(error).__name__
    return kind.startswith("Dist") or "gloo" in text or "NCCL" in text or "by peer" in text


def agreed(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """How a trial ended, from how it ended on every rank: the first own error, if there is one."""
    failed = [outcome for outcome in outcomes if outcome["kind"] == "failed"]
    if failed:
        own = [outcome for outcome in failed if outcome["own"]]
        chosen = min(own or failed, key=lambda outcome: outcome["time"])
        return {k: v for k, v in chosen.items() if k not in ("own", "time", "everywhere")}
    return outcomes[0]


def _trim() -> None:
    """Hands freed memory back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
