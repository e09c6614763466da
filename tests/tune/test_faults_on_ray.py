"""Several nodes, several studies: a node is lost, a cluster is too small, a second driver comes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.tune.test_study_on_ray import SET, read_until
from ucd_ray.tune import cluster as clusters
from ucd_ray.tune.database import Database
from ucd_ray.tune.executors import Executor, Gang
from ucd_ray.tune.tables import hold_table

END_S = 500  # for studies to end; says nothing about how long they take
NODES = 3  # of one CPU each; the head has none

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3 * END_S)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A Ray cluster of a head without CPUs and three nodes, all on 127.0.0.1."""
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="ucd-", dir="/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(clusters._reread_environment)
        own = {"RAY_TMPDIR": str(folder), **clusters._loopback_only(folder)}
        stack.enter_context(clusters._environment(**own))
        (folder / "ray").mkdir()  # where Cluster notes its address
        clusters._reread_environment()
        port, dashboard, client = clusters.free_ports(3)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "gcs_server_port": port,
                "dashboard_port": dashboard,
                "ray_client_server_port": client,
                "include_dashboard": True,
                "node_ip_address": "127.0.0.1",
                "object_store_memory": clusters.OBJECT_STORE_BYTES,
            },
        )
        stack.callback(cluster.shutdown)
        for _ in range(NODES):
            add_node(cluster)
        yield cluster


def add_node(cluster: Any) -> Any:
    return cluster.add_node(
        num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=clusters.OBJECT_STORE_BYTES
    )


class Tune(Protocol):
    def __call__(self, name: str, *options: str) -> subprocess.Popen[str]: ...


@pytest.fixture
def tune(nodes: Any, own_home: Path) -> Iterator[Tune]:
    """Starts studies of two-worker trials on the cluster; none of them outlives its test."""
    started = []

    def start(name: str, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ucd_ray.cli", "tune", "--scenario", "shapes-8-4", *SET),
                *("--method", "mib", "--name", name, "--pruner", "none", "--workers", "2"),
                *("--address", nodes.address, "--trials", "1", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "UCD_RAY_HOME": str(own_home), "PYTHONUNBUFFERED": "1"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def outputs_of(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What each of them printed; all are read at once, and shown when one does not end in time."""
    with ThreadPoolExecutor(len(processes)) as pool:
        reads = [pool.submit(process.communicate) for process in processes]
        late = wait(reads, END_S).not_done
        for process in processes if late else []:
            process.kill()
        outputs = [read.result()[0] for read in reads]
    assert not late, "\n\n".join(outputs)
    return outputs


def epochs(lines: list[str], trial: int) -> list[int]:
    """The epochs of step 1 that a trial reported, in order."""
    found = (re.match(rf"trial {trial} step 1 epoch (\d+)/", line) for line in lines)
    return [int(match[1]) for match in found if match]


def test_three_studies_on_a_cluster_for_one_wait_with_their_reasons_and_end(
    own_home: Path, tune: Tune
) -> None:
    studies = [tune(name) for name in "abc"]
    outputs = outputs_of(studies)
    assert [process.returncode for process in studies] == [0, 0, 0], "\n".join(outputs)
    assert all("COMPLETE" in output for output in outputs)
    # For others, not for its own workers to start, which take long on a busy machine.
    outputs = [re.sub(r".*have not started for.*", "", output) for output in outputs]
    waited = [output for output in outputs if "waits" in output or "WAITING" in output]
    assert len(waited) >= 2
    reasons = r"needs 2 CPUs, 1 free; study '[abc]' holds 2|is being trained by|goes first"
    assert all(re.search(reasons, output) for output in waited), "\n".join(waited)
    assert sum(len(re.findall(r"base step step 0 done \(\d", output)) for output in outputs) == 1
    database = Database(f"sqlite:///{own_home}/studies.db")
    with database.engine.connect() as connection:
        assert connection.execute(hold_table.select()).all() == []


def test_a_second_driver_of_a_study_is_refused_with_the_holder_named(tune: Tune) -> None:
    first = tune("a")
    read_until(first, "trials wait for the base step|trial 0 created")
    second = tune("a")
    output = second.communicate(timeout=60)[0]
    assert second.returncode == 2
    assert f"study 'a' is already running in process {first.pid}" in output
    assert outputs_of([first])[0].count("COMPLETE") >= 1
    assert first.returncode == 0


def test_a_node_with_a_rank_is_lost_and_the_trial_goes_on_elsewhere(nodes: Any, tune: Tune) -> None:
    process = tune("a", "--set", "optim.epochs_new=8")
    lines = read_until(process, r"trial 0 step 1 epoch 2/8")
    nodes.remove_node(busy_node(nodes), allow_graceful=False)
    try:
        lines += read_until(process, "mIoU in percent on val")
    finally:
        add_node(nodes)
    assert process.wait(timeout=60) == 0
    assert any(re.search(r"trial 0 lost its workers on 127\.0\.0\.1", line) for line in lines)
    found = epochs(lines, 0)
    assert sorted(set(found)) == list(range(1, 9))
    assert len(found) - len(set(found)) <= 1, "\n".join(lines)
    assert "COMPLETE" in "\n".join(lines)


def test_a_card_that_torch_cannot_use_ends_the_study_with_the_reason(
    nodes: Any, own_home: Path, tune: Tune
) -> None:
    told = nodes.add_node(  # that it has a card, which is not true
        num_cpus=2,
        num_gpus=1,
        node_ip_address="127.0.0.1",
        object_store_memory=clusters.OBJECT_STORE_BYTES,
    )
    try:
        process = tune("a", "--workers", "1", "--gpus-per-worker", "1")
        (output,) = outputs_of([process])
    finally:
        nodes.remove_node(told)
    assert process.returncode == 2, output
    assert "a worker on 127.0.0.1 has a GPU that PyTorch cannot use: " in output
    assert "--gpus-per-worker 0 trains on CPUs" in output and "Traceback" not in output
    with Database(f"sqlite:///{own_home}/studies.db").engine.connect() as connection:
        assert connection.execute(hold_table.select()).all() == []


def busy_node(cluster: Any) -> Any:
    """A node that runs a training worker."""
    import psutil

    for node in cluster.worker_nodes:
        raylet = node.all_processes["raylet"][0].process.pid
        for child in psutil.Process(raylet).children(recursive=True):
            if "RayTrainWorker" in " ".join(child.cmdline()):
                return node
    raise AssertionError("no training worker found")


def test_what_a_study_cannot_do_without_is_on_the_node_of_its_driver(
    nodes: Any, own_home: Path
) -> None:
    import ray
    from ray.util.state import list_actors

    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(clusters.connect(nodes.address, own_home, job="a"))
        for _ in range(4):
            stack.enter_context(Executor(Gang(1, 1.0, 0.0), str(own_home / "ray"), "a")).status()
        alive = [("class_name", "=", "Board"), ("state", "=", "ALIVE")]
        found = list_actors(cluster.dashboard, filters=alive)
        here = ray.get_runtime_context().get_node_id()
    assert [actor.node_id for actor in found] == [here] * 4


def test_workers_have_the_priority_of_their_driver(nodes: Any, own_home: Path) -> None:
    import ray

    with clusters.connect(nodes.address, own_home, job="a"):
        niceness = ray.remote(num_cpus=0)(lambda: os.nice(0))
        assert ray.get(niceness.remote(), timeout=60) == os.nice(0)


def test_what_can_never_fit_is_refused_at_once(own_home: Path, tune: Tune) -> None:
    process = tune("a", "--cpus-per-worker", "1.5")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "do not fit on the cluster's nodes" in output
    with Database(f"sqlite:///{own_home}/studies.db").engine.connect() as connection:
        assert connection.execute(hold_table.select()).all() == []
