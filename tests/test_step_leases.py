"""One lease per step: between processes, threads and machines, dead holders included."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow import fs

from ucd_ray import step_leases
from ucd_ray.presence import Heart, Owner
from ucd_ray.step_leases import FOLDER, Lease, Leases
from ucd_ray.store import Store

DIGEST = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
MakeStore = Callable[[], Store]


@pytest.fixture(params=["local", "object store"])
def make_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MakeStore:
    """Stores of one place: of files, and of one that cannot create a file exclusively."""
    monkeypatch.setattr(step_leases, "SETTLE_S", 0.3)

    def make() -> Store:
        store = Store(tmp_path)
        if request.param != "local":
            store.fs = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
            store.root = "bucket/prefix"
        return store

    return make


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_leases, "BEAT_S", 0.1)
    monkeypatch.setattr(step_leases, "SILENT_S", 1.0)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this machine."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def leave_lease(store: Store, owner: Owner, digest: str = DIGEST) -> str:
    """A lease as `owner` took it; nobody renews it."""
    name = f"{digest}.00000001" if store.local else f"{digest}.00000001.0000000001.000000-abcdef01"
    store.write(owner.encode(), FOLDER, name)
    return name


def owner_of(pid: int, name: str = "study/1") -> Owner:
    import psutil

    return replace(Owner.here(name), pid=pid, started=psutil.Process(pid).create_time())


def elsewhere(name: str = "study/1") -> Owner:
    """A process of a machine that cannot be asked."""
    return replace(Owner.here(name), host="far", machine="another boot")


def take(store: Store, name: str = "study/2") -> Lease | None:
    return Leases(store, name).take(DIGEST)


def test_a_lease_is_had_by_one_until_it_is_released(make_store: MakeStore) -> None:
    lease = take(make_store(), "study/1")
    assert lease is not None
    assert take(make_store()) is None
    assert Leases(make_store(), "study/2").take(OTHER) is not None
    lease.release()
    again = take(make_store())
    assert again is not None
    again.release()
    assert [f.name[:32] for f in make_store().files(FOLDER)] == [OTHER]


def test_the_holder_is_told_by_run_process_and_host(make_store: MakeStore) -> None:
    assert Leases(make_store()).holder(DIGEST) is None
    lease = take(make_store(), "study/1")
    assert lease is not None
    who = Leases(make_store()).holder(DIGEST)
    assert who is not None and who.startswith(f"study/1 (process {os.getpid()} on ")
    assert Leases(make_store()).holders() == {DIGEST: who}
    lease.release()
    assert Leases(make_store()).holders() == {}


def test_of_many_takers_at_once_one_gets_the_lease(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_leases, "SETTLE_S", 2.0)  # a busy machine
    start, got = threading.Barrier(8), []

    def run(number: int) -> None:
        store = make_store()
        start.wait()
        got.append(take(store, f"study/{number}"))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lease,) = [lease for lease in got if lease is not None]
    lease.release()
    assert make_store().files(FOLDER) == []


def test_of_many_who_find_a_dead_lease_one_takes_it_over(
    make_store: MakeStore, stranger: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_lease(make_store(), owner_of(stranger.pid))
    assert take(make_store()) is None
    stranger.kill()
    os.waitid(os.P_PID, stranger.pid, os.WEXITED | os.WNOWAIT)  # dead, but its id is still there
    test_of_many_takers_at_once_one_gets_the_lease(make_store, monkeypatch)


def test_who_wakes_up_after_losing_its_lease_leaves_the_next_one_alone(
    make_store: MakeStore, fast: None
) -> None:
    asleep = take(make_store(), "study/1")
    assert asleep is not None
    (name,) = [file.name for file in make_store().files(FOLDER)]
    taken = elsewhere("study/2").encode()  # others have taken and left it, and begun anew
    make_store().write(taken, FOLDER, name)
    time.sleep(0.5)
    asleep.release()
    assert make_store().read(FOLDER, name) == taken


CROWD = """
import os, random, sys, time
import psutil
from ucd_ray.step_leases import Leases
from ucd_ray.store import Store

digest, root, number = sys.argv[1:]
leases, chance = Leases(Store(root), f"study/{number}"), random.Random(int(number))
marker = os.path.join(root, "inside")

def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

for _ in range(25):
    while (lease := leases.take(digest)) is None:
        pass
    inside = int(open(marker).read() or 0) if os.path.exists(marker) else 0
    if inside and alive(inside):
        sys.exit(f"{inside} and {os.getpid()} have the lease")
    with open(marker, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(chance.random() * 0.01)
    if chance.random() < 0.05:
        os.kill(os.getpid(), 9)
    with open(marker, "w") as file:
        file.write("0")
    lease.release()
"""


@pytest.mark.slow
def test_a_crowd_in_which_holders_die_never_has_two_of_them(tmp_path: Path) -> None:
    def start(number: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CROWD, DIGEST, str(tmp_path), str(number)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    crowd, started, ends = [start(number) for number in range(6)], 6, []
    try:
        while crowd:
            process = crowd.pop(0)
            if process.poll() is None:
                crowd.append(process)
                time.sleep(0.02)
                continue
            ends.append((process.communicate()[1], process.returncode))
            if started < 40:
                crowd.append(start(started))
                started += 1
    finally:
        for process in crowd:
            process.kill()
            process.wait()
    assert [errors for errors, _ in ends if errors] == []
    assert {code for _, code in ends} == {0, -9}


def test_a_process_id_that_was_given_again_is_not_the_holder(make_store: MakeStore) -> None:
    here = Owner.here("study/1")
    leave_lease(make_store(), replace(here, started=here.started - 3600))
    assert take(make_store()) is not None


def test_the_silent_lease_of_another_machine_expires(make_store: MakeStore, fast: None) -> None:
    leave_lease(make_store(), elsewhere())
    leases = Leases(make_store(), "study/2")
    assert leases.take(DIGEST) is None
    began = time.monotonic()
    while leases.take(DIGEST) is None:
        assert time.monotonic() - began < 60
        time.sleep(0.1)
    assert time.monotonic() - began > step_leases.SILENT_S


def test_a_lease_that_is_renewed_never_expires(make_store: MakeStore, fast: None) -> None:
    name = leave_lease(make_store(), elsewhere())
    content = make_store().read(FOLDER, name)
    assert content is not None
    heart = Heart(make_store(), FOLDER, name, content=content, every_s=0.1)
    leases = Leases(make_store(), "study/2")
    for _ in range(25):
        assert leases.take(DIGEST) is None
        time.sleep(0.1)
    heart.stop()
    assert leases.take(DIGEST) is not None


def test_a_lease_whose_holder_hangs_expires(
    make_store: MakeStore, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_leases, "STALL_S", 2.0)
    working, hanging = take(make_store(), "study/1"), Leases(make_store(), "study/3").take(OTHER)
    assert working is not None and hanging is not None
    leases, began = Leases(make_store(), "study/2"), time.monotonic()
    while leases.take(OTHER) is None:
        assert time.monotonic() - began < 60
        working.worked()
        assert leases.holder(DIGEST) is not None
        time.sleep(0.1)
    hanging.release()
    working.release()
    assert Leases(make_store()).holder(OTHER) is not None  # its new holder's


def test_a_long_silent_lease_is_not_waited_for(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    name = leave_lease(store, elsewhere())
    assert Leases(store).holder(DIGEST) is not None
    (path,) = tmp_path.rglob(name)
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    assert Leases(store).holder(DIGEST) is None
    assert take(store) is not None


def test_a_run_that_was_moved_takes_over_its_own_lease_at_once(make_store: MakeStore) -> None:
    leave_lease(make_store(), elsewhere("study/1"))
    assert take(make_store(), "study/2") is None
    assert take(make_store(), "study/1") is not None


def test_a_run_does_not_take_over_from_a_living_process_of_its_own_name(
    make_store: MakeStore, stranger: subprocess.Popen[bytes]
) -> None:
    leave_lease(make_store(), owner_of(stranger.pid, "study/1"))
    assert take(make_store(), "study/1") is None


def test_a_lease_that_cannot_be_read_counts_until_it_is_silent(
    make_store: MakeStore, fast: None
) -> None:
    make_store().write(b"", FOLDER, f"{DIGEST}.00000001")
    make_store().write(b"", FOLDER, ".nfs0001")  # of a network drive
    leases = Leases(make_store(), "study/2")
    assert leases.take(DIGEST) is None
    assert leases.holder(DIGEST) == "another run"
    time.sleep(step_leases.SILENT_S + 0.2)
    assert leases.take(DIGEST) is not None
