"""Holds of studies on one cluster, in a real database."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from ucd_ray.tune.admission import Admission
from ucd_ray.tune.database import Database
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.nodes import Node, fits
from ucd_ray.tune.tables import hold_table, study_table


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path}/studies.db")


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def study(database: Database, name: str, pid: int | None = None) -> None:
    """A study driven by this process, or by another one."""
    database.save_spec(name, "{}", {})
    database.claim(name)
    if pid is not None:
        with database.engine.begin() as connection:
            row = connection.execute(sa.select(study_table.c.driver)).first()
            assert row is not None
            driver = json.loads(row.driver)
            started = round(psutil.Process(pid).create_time(), 1)
            connection.execute(
                study_table.update()
                .where(study_table.c.name == name)
                .values(driver=json.dumps({**driver, "pid": pid, "started": started}))
            )


def node(name: str, gpus: float, *, free: float | None = None, cpus: float = 64) -> Node:
    return Node(
        name, {"CPU": cpus, "GPU": gpus}, {"CPU": cpus, "GPU": gpus if free is None else free}
    )


def admission(database: Database, name: str, gang: Gang) -> Admission:
    study(database, name)
    return Admission(database, name, "cluster:1", gang)


def test_a_gang_gets_its_hold_and_gives_it_back(database: Database) -> None:
    mine = admission(database, "a", Gang(4, 1.0, 1.0))
    nodes = [node("n1", 4)]
    assert mine.acquire("gang0", nodes) is None
    assert mine.acquire("gang1", nodes) == "needs 4 GPUs, 0 free; study 'a' holds 4"
    mine.release("gang0")
    assert mine.acquire("gang1", nodes) is None
    mine.release_all()
    with database.engine.connect() as connection:
        assert connection.execute(sa.select(hold_table)).all() == []


def test_the_reason_names_who_holds_what(database: Database) -> None:
    assert admission(database, "b", Gang(2, 1.0, 1.0)).acquire("gang0", [node("n1", 5)]) is None
    mine = admission(database, "a", Gang(4, 1.0, 1.0))
    assert mine.acquire("gang0", [node("n1", 5)]) == "needs 4 GPUs, 3 free; study 'b' holds 2"


def test_what_other_users_of_the_cluster_hold_counts(database: Database) -> None:
    mine = admission(database, "a", Gang(2, 1.0, 1.0))
    assert mine.acquire("gang0", [node("n1", 4, free=1)]) == "needs 2 GPUs, 1 free"


def test_a_gang_that_is_not_up_yet_is_not_among_what_ray_calls_free(database: Database) -> None:
    mine = admission(database, "a", Gang(1, 1.0, 1.0))
    assert mine.acquire("gang0", [node("n1", 2, free=2)]) is None
    assert mine.acquire("gang1", [node("n1", 2, free=1)]) is not None, "gang0 takes the free one"
    mine.placed("gang0")
    assert mine.acquire("gang1", [node("n1", 2, free=1)]) is None


def test_a_worker_needs_its_cards_on_one_node(database: Database) -> None:
    mine = admission(database, "a", Gang(1, 1.0, 2.0))
    reason = mine.acquire("gang0", [node("n1", 1), node("n2", 1)])
    assert reason is not None
    assert "2 GPUs on one node" in reason
    assert "n1 64 CPUs 1 GPU, n2 64 CPUs 1 GPU" in reason


def test_holds_of_a_study_whose_driver_died_do_not_count(
    database: Database, other_process: subprocess.Popen[bytes]
) -> None:
    gang = Gang(4, 1.0, 1.0)
    theirs = admission(database, "b", gang)
    study(database, "b", other_process.pid)
    assert theirs.acquire("gang0", [node("n1", 4)]) is None
    mine = admission(database, "a", gang)
    assert mine.acquire("gang0", [node("n1", 4)]) is not None
    other_process.kill()
    other_process.wait()
    assert mine.acquire("gang0", [node("n1", 4)]) is None


def test_who_waits_longest_goes_first_and_holders_let_go(database: Database) -> None:
    small, large = Gang(1, 1.0, 1.0), Gang(4, 1.0, 1.0)
    holder = admission(database, "a", small)
    assert holder.acquire("gang0", [node("n1", 4)]) is None
    waiter = admission(database, "b", large)
    assert not holder.others_wait()
    assert waiter.acquire("gang0", [node("n1", 4)]) is not None
    assert holder.others_wait()
    time.sleep(0.01)
    late = admission(database, "c", small)
    reason = late.acquire("gang0", [node("n1", 4)])
    assert reason is not None
    assert "study 'b' has waited longer and goes first" in reason
    waiter.stop_waiting()
    assert late.acquire("gang0", [node("n1", 4)]) is None


def test_other_clusters_do_not_count(database: Database) -> None:
    gang = Gang(4, 1.0, 1.0)
    assert admission(database, "a", gang).acquire("gang0", [node("n1", 4)]) is None
    study(database, "b")
    elsewhere = Admission(database, "b", "cluster:2", gang)
    assert elsewhere.acquire("gang0", [node("n1", 4)]) is None


def test_shares_of_a_card_add_up(database: Database) -> None:
    mine = admission(database, "a", Gang(1, 1.0, 0.25))
    answers = [mine.acquire(f"gang{i}", [node("n1", 1)]) for i in range(5)]
    assert answers[:4] == [None] * 4
    assert answers[4] == "needs 0.25 GPUs, 0 free; study 'a' holds 1"


@pytest.mark.parametrize(
    ("bundles", "expected"),
    [
        ([(1, 1), (1, 1)], True),
        ([(1, 2), (1, 1)], True),
        ([(1, 2), (1, 2)], False),
        ([(1, 1)] * 4, False),
        ([(65, 0)], False),
    ],
)
def test_bundles_fit_whole_on_nodes(bundles: list[tuple[float, float]], expected: bool) -> None:
    assert fits(bundles, [node("n1", 2), node("n2", 1)]) is expected
