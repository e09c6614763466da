"""The Ray cluster of a study: one that exists, or a private head on this machine.

A private head has its own ports, temporary directory and token, listens on 127.0.0.1 only and ends with
this process, however this process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import math
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ucd_ray.errors import ClusterError
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.lifeline import watched
from ucd_ray.tune.nodes import Node, fits, free_text
from ucd_ray.tune.spec import StudySpec

START_TIMEOUT_S = 90.0
KILLED_S = 2.0  # for killed processes to be gone
FOLDER, OWNER = "ucd-ray-", "driver"  # a head's files, and the host and process that it belongs to
PORTS = range(20_000, 32_768)  # systems choose from higher ones for whoever asks for any port
OBJECT_STORE_BYTES = 100_000_000  # no images travel through it
LEAN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also how often reports are fetched
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # then a worker that hangs counts as lost
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # processes that follow trials start side by side
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # Ray Train's own controller does it
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call after the end of a study opens no connection
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the driver; its trials are adopted later
    # Ray's 15 leaves a worker 3 % of a CPU beside any other busy process, and its whole gang waits for it.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without GPUs does not see any
    # Training runs in a thread; glibc gives memory of a thread's own arena back at once, and asks again.
    "MALLOC_ARENA_MAX": "1",
}
"""Environment of driver and workers; the start of a Train run takes half the time with it."""
HEAD_ENVIRONMENT = {
    # A node that is told to end waits this long for who still uses it: nobody, once its study is over.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to."""

    address: str
    dashboard: str
    cpus: float
    gpus: float

    def gang(self, spec: StudySpec) -> Gang:
        """The workers of one trial.  Raises ClusterError if they can never fit."""
        gpus = spec.gpus_per_worker
        if gpus is None:
            gpus = 1.0 if self.gpus >= spec.workers else 0.0
        gang = Gang(spec.workers, spec.cpus_per_worker, gpus)
        for kind, each, total in (("CPU", gang.cpus, self.cpus), ("GPU", gang.gpus, self.gpus)):
            check_fits(kind, spec.workers, each, total)
        nodes = [replace(node, free=node.total) for node in self.nodes()]
        if not fits([(gang.cpus, gang.gpus)] * gang.workers, nodes):
            raise ClusterError(
                f"{gang.workers} workers with {gang.cpus:g} CPUs and {gang.gpus:g} GPUs each do not fit "
                f"on the cluster's nodes, each worker on one node: {free_text(nodes)}; "
                "use fewer --workers, --cpus-per-worker or --gpus-per-worker"
            )
        return gang

    def concurrent_trials(self, gang: Gang) -> int:
        """Trials that fit at a time."""
        fits = math.floor(self.cpus / (gang.workers * gang.cpus))
        if gang.gpus:
            fits = min(fits, math.floor(self.gpus / (gang.workers * gang.gpus)))
        return max(1, fits)

    def nodes(self) -> list[Node]:
        """The living nodes, with what is free on them now."""
        import ray
        from ray._private.state import available_resources_per_node

        free = available_resources_per_node()
        return [
            Node(node["NodeManagerAddress"], node["Resources"], free.get(node["NodeID"], {}))
            for node in ray.nodes()
            if node["Alive"]
        ]


def check_fits(kind: str, workers: int, each: float, total: float) -> None:
    """Raises ClusterError if `workers` times `each` is more than `total`."""
    if workers * each > total:
        raise ClusterError(
            f"{workers} workers with {each:g} {kind}s each need {workers * each:g} {kind}s, "
            f"the cluster has {total:g}; use fewer --workers"
        )


def local_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_gpus() -> int:
    """NVIDIA cards of this machine, as its device files count them."""
    return len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()])


def check_local(workers: int, *, cpus: float, gpus: float) -> None:
    """Raises ClusterError if a private head on this machine could never hold a trial's workers."""
    check_fits("CPU", workers, cpus, local_cpus())
    check_fits("GPU", workers, gpus, local_gpus())


def private_head_needed(address: str | None) -> bool:
    """Whether `connect(address, ...)` would start a head of its own."""
    return not (address or os.environ.get("RAY_ADDRESS"))


@contextlib.contextmanager
def connect(address: str | None, home: Path, *, job: str) -> Iterator[Cluster]:
    """Connects to `address` (or RAY_ADDRESS), else to a private head that ends with the block.

    Raises ClusterError.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    os.environ.update({key: os.environ.get(key, value) for key, value in LEAN.items()})
    with contextlib.ExitStack() as stack:
        dashboard = None
        if address is None:
            address, dashboard = stack.enter_context(local_head(home))
        yield stack.enter_context(_connected(address, dashboard, job))


@contextlib.contextmanager
def local_head(home: Path) -> Iterator[tuple[str, str]]:
    """A private Ray head on this machine.  Yields the addresses of cluster and dashboard.

    Raises ClusterError if it does not start.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(_reread_environment)
        stack.enter_context(_environment(**_loopback_only(home)))
        _reread_environment()
        yield stack.enter_context(_private_head())


@contextlib.contextmanager
def _connected(address: str, dashboard: str | None, job: str) -> Iterator[Cluster]:
    import ray

    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address

        address = canonicalize_bootstrap_address(address) or address
    # Workers must know their cluster: a stopped trial's resources leak if they cannot tell which
    # of several Ray instances on a host is theirs.
    environment = {**{key: os.environ[key] for key in LEAN}, "RAY_ADDRESS": address}
    try:
        info = ray.init(
            address=address,
            namespace=f"ucd-ray-{job}",
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": environment},
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ClusterError(f"cannot connect to the Ray cluster at '{address}': {reason}") from None
    lost = None
    try:
        with watched(address) as lost:
            resources = ray.cluster_resources()
            yield Cluster(
                address=address,
                dashboard=f"http://{dashboard or info.dashboard_url}",
                cpus=resources.get("CPU", 0.0),
                gpus=resources.get("GPU", 0.0),
            )
    finally:
        if lost is not None and lost.is_set():
            atexit.unregister(ray.shutdown)
        else:
            ray.shutdown()


@contextlib.contextmanager
def _private_head() -> Iterator[tuple[str, str]]:
    remove_leftover_folders(Path(_short_temp()))
    folder = tempfile.mkdtemp(prefix=FOLDER, dir=_short_temp())
    (Path(folder) / OWNER).write_text(f"{socket.gethostname()} {os.getpid()}")
    ports = free_ports(5)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1"),
        *("--port", str(ports[0]), "--dashboard-port", str(ports[1])),
        *("--dashboard-agent-listen-port", str(ports[2])),
        *("--ray-client-server-port", str(ports[3]), "--metrics-export-port", str(ports[4])),
        *("--min-worker-port", "0", "--max-worker-port", "0"),
        *("--num-cpus", str(local_cpus()), "--object-store-memory", str(OBJECT_STORE_BYTES)),
        *("--temp-dir", folder, "--disable-usage-stats"),
        *("--include-log-monitor", "False"),  # it sends workers' output to drivers; ours want none
    ]
    with open(Path(folder) / "head.log", "wb") as log:
        head = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **HEAD_ENVIRONMENT},
            preexec_fn=_end_with_parent,
        )
    try:
        _wait_for(head, ports[:2], Path(folder) / "head.log")
        yield f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftover_folders(parent: Path) -> None:
    """Removes the files of heads whose driver was killed on this machine."""
    import psutil

    for owner in parent.glob(f"{FOLDER}*/{OWNER}"):
        with contextlib.suppress(OSError, ValueError):  # another's, or just removed
            host, pid = owner.read_text().split()
            if host == socket.gethostname() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(owner.parent, ignore_errors=True)


def _end_with_parent() -> None:
    """In the child: the kernel ends it when its parent ends, even by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _end(head: subprocess.Popen[bytes]) -> None:
    """Ends the head and all that it started, at once: nothing of it is kept."""
    import psutil

    try:
        processes = psutil.Process(head.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        processes = []
    head.kill()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait()
    psutil.wait_procs(processes, timeout=KILLED_S)


def _wait_for(head: subprocess.Popen[bytes], ports: list[int], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    waiting = list(ports)
    while waiting:
        if head.poll() is not None or time.monotonic() > deadline:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise ClusterError(f"the local Ray head did not start: {last}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", waiting[0])) == 0:
                waiting.pop(0)
                continue
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, and that no part of Ray is given by chance meanwhile.

    Raises ClusterError.
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.SystemRandom().sample(PORTS, len(PORTS)):
            if len(found) == count:
                break
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
    if len(found) < count:
        raise ClusterError(
            f"no {count} free ports on 127.0.0.1 for the Ray head, "
            f"of {PORTS.start} to {PORTS.stop - 1}"
        )
    return found


def _short_temp() -> str:
    """A directory whose path leaves room for Ray's socket names (107 bytes in all)."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 30 else "/tmp"


def _token(home: Path) -> dict[str, str]:
    """The environment that names Ray's token, made at first use, readable by its owner only."""
    path = home / "ray-token"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            fresh = home / f"ray-token.{os.getpid()}"
            with open(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(fresh, path)
            fresh.unlink()
    except OSError as error:
        raise ClusterError(f"cannot write '{path}': {error.strerror}") from None
    return {"RAY_AUTH_TOKEN_PATH": str(path)}


def _loopback_only(home: Path) -> dict[str, str]:
    """Ray listens on 127.0.0.1 alone, and only to who has the token."""
    return {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **_token(home)}


def _reread_environment() -> None:
    """Ray reads these variables once, when it is imported; this makes it read them again."""
    if "ray" not in sys.modules:  # it will read them, if this process needs it at all
        return
    from ray import _raylet
    from ray._private import ray_constants

    raylet: Any = _raylet  # compiled, without types
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") != "0"


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before: dict[str, Any] = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
