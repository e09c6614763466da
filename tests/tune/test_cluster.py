"""What is decided about a cluster without starting one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import TINY, tiny_recipe
from ucd_ray.errors import ClusterError, ConfigError
from ucd_ray.tune import cluster as module
from ucd_ray.tune.cluster import Cluster, check_fits, free_ports, local_cpus
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.nodes import Node
from ucd_ray.tune.spec import StudySpec


class Known(Cluster):
    """A cluster whose nodes, all alike, are known without asking Ray."""

    num_nodes = 1

    def nodes(self) -> list[Node]:
        each = {"CPU": self.cpus / self.num_nodes, "GPU": self.gpus / self.num_nodes}
        return [Node(f"n{i}", each, each) for i in range(self.num_nodes)]


class TwoNodes(Known):
    num_nodes = 2


def cluster_of(cpus: float, gpus: float = 0, kind: type[Known] = Known) -> Cluster:
    return kind("127.0.0.1:1", "", cpus, gpus)


def spec_of(**values: object) -> StudySpec:
    return StudySpec.model_validate({"name": "s", "recipe": TINY, **values})


def test_a_worker_takes_a_gpu_where_each_can_have_one() -> None:
    assert cluster_of(8, 2).gang(spec_of(workers=2)) == Gang(2, 1.0, 1.0)
    assert cluster_of(8, 1).gang(spec_of(workers=2)) == Gang(2, 1.0, 0.0)
    assert cluster_of(8, 2).gang(spec_of(workers=2, gpus_per_worker=0)).gpus == 0


def test_a_worker_that_fits_on_no_node_is_refused() -> None:
    assert cluster_of(8, 4, TwoNodes).gang(spec_of(workers=2, gpus_per_worker=2)).gpus == 2
    with pytest.raises(ClusterError, match="do not fit on the cluster's nodes"):
        cluster_of(8, 4, TwoNodes).gang(spec_of(workers=1, gpus_per_worker=3))


def test_a_gang_asks_ray_for_gpus_only_if_it_wants_them() -> None:
    assert Gang(1, 2.0, 0.0).resources_per_worker() == {"CPU": 2.0}
    assert Gang(1, 2.0, 0.5).resources_per_worker() == {"CPU": 2.0, "GPU": 0.5}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"workers": 5}, "5 workers with 1 CPUs each need 5 CPUs, the cluster has 4"),
        ({"workers": 2, "cpus_per_worker": 2.5}, "need 5 CPUs, the cluster has 4"),
        ({"workers": 2, "gpus_per_worker": 1}, "need 2 GPUs, the cluster has 1"),
    ],
)
def test_workers_that_can_never_fit_are_refused_with_the_arithmetic(
    spec: dict[str, object], message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        cluster_of(4, 1).gang(spec_of(**spec))


def test_what_fits_exactly_is_accepted() -> None:
    check_fits("CPU", 4, 0.5, 2)
    with pytest.raises(ClusterError, match="use fewer --workers"):
        check_fits("CPU", 4, 0.5, 1.9)


@pytest.mark.parametrize(
    ("gang", "trials"),
    [
        (Gang(1, 1.0, 0.0), 8),
        (Gang(2, 1.0, 0.0), 4),
        (Gang(3, 1.0, 0.0), 2),
        (Gang(1, 1.0, 1.0), 2),
        (Gang(1, 0.5, 0.25), 8),
        (Gang(8, 1.0, 0.0), 1),
        (Gang(9, 1.0, 0.0), 1),
    ],
)
def test_as_many_trials_run_at_a_time_as_fit(gang: Gang, trials: int) -> None:
    assert cluster_of(8, 2).concurrent_trials(gang) == trials


def test_synchronised_norms_need_gpus() -> None:
    recipe = tiny_recipe(**{"model.norm": "sync"})
    with pytest.raises(ConfigError, match=r"model.norm \(sync\) needs GPUs"):
        Gang(2, 1.0, 0.0).check(recipe)
    Gang(2, 1.0, 1.0).check(recipe)
    Gang(2, 1.0, 0.0).check(tiny_recipe())


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_a_port_that_was_free_is_not_given_to_whoever_asks_for_any() -> None:
    with contextlib.ExitStack() as stack:
        any_port = [stack.enter_context(socket.socket()) for _ in range(50)]
        for holder in any_port:
            holder.bind(("127.0.0.1", 0))
        taken = {holder.getsockname()[1] for holder in any_port}
    assert not taken & set(module.PORTS)


def test_no_free_port_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        monkeypatch.setattr(module, "PORTS", range(port, port + 1))
        with pytest.raises(ClusterError, match=rf"no 1 free ports .*of {port} to {port}"):
            free_ports(1)


def test_workers_that_a_private_head_could_never_hold_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "local_cpus", lambda: 4)
    monkeypatch.setattr(module, "local_gpus", lambda: 1)
    module.check_local(4, cpus=1.0, gpus=0.25)
    with pytest.raises(ClusterError, match="5 workers with 1 CPUs each"):
        module.check_local(5, cpus=1.0, gpus=0.0)
    with pytest.raises(ClusterError, match="2 workers with 1 GPUs each"):
        module.check_local(2, cpus=1.0, gpus=1.0)


def test_a_cluster_that_is_named_needs_no_private_head(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.private_head_needed(None)
    assert not module.private_head_needed("10.0.0.1:6379")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not module.private_head_needed(None)


def test_this_process_has_a_cpu() -> None:
    assert 1 <= local_cpus() <= (os.cpu_count() or 1)


def test_the_token_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (path,) = module._token(home).values()
    first = Path(path).read_text()
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert len(first) == 64
    module._token(home)
    assert Path(path).read_text() == first


def test_a_token_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match=r"cannot write '.*file/ray-token'"):
        module._token(tmp_path / "file")


def test_ray_gets_a_short_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: "/a" * 40)
    assert module._short_temp() == "/tmp"
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: "/scratch")
    assert module._short_temp() == "/scratch"


def test_files_of_heads_whose_driver_was_killed_go_with_the_next_head(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = socket.gethostname()
    owners = {"dead": f"{here} {gone.pid}", "mine": f"{here} {os.getpid()}", "far": "elsewhere 1"}
    for name, owner in owners.items():
        folder = tmp_path / f"ucd-ray-{name}"
        folder.mkdir()
        (folder / "driver").write_text(owner)
    (tmp_path / "ucd-ray-unknown").mkdir()
    module.remove_leftover_folders(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["ucd-ray-far", "ucd-ray-mine", "ucd-ray-unknown"]


def test_changed_environment_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCD_TEST_ONE", "before")
    monkeypatch.delenv("UCD_TEST_TWO", raising=False)
    with module._environment(UCD_TEST_ONE="x", UCD_TEST_TWO="y"):
        assert (os.environ["UCD_TEST_ONE"], os.environ["UCD_TEST_TWO"]) == ("x", "y")
    assert os.environ["UCD_TEST_ONE"] == "before"
    assert "UCD_TEST_TWO" not in os.environ


def test_a_head_ends_at_once_with_all_that_it_started_whatever_it_does_when_told_to() -> None:
    script = "trap '' TERM; (trap '' TERM; sleep 60) & echo; wait"
    with subprocess.Popen(
        ["bash", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    ) as head:
        assert head.stdout is not None
        head.stdout.readline()  # both ignore SIGTERM from here on
        children = psutil.Process(head.pid).children(recursive=True)
        started = time.monotonic()
        module._end(head)
        assert time.monotonic() - started < 5
    assert children
    assert not [child for child in children if lives(child)]


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
