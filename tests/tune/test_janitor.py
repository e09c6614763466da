"""Which placement groups are removed, and of which cluster; Ray's state is stood in for."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
from ray.util import state

from ucd_ray.tune.janitor import remove_leftover_groups

groups_of_ray = importlib.import_module("ray.util.placement_group")  # also the name of a function
HERE = "127.0.0.1:6379"
OURS, OTHERS, RUNNING = "01000000", "02000000", "03000000"
JOBS = [
    SimpleNamespace(job_id=OURS, status="FAILED", entrypoint="ucd-ray study run a"),
    SimpleNamespace(job_id=OTHERS, status="FAILED", entrypoint="python other.py"),
    SimpleNamespace(job_id=RUNNING, status="RUNNING", entrypoint="ucd-ray study run b"),
]


def group(job: str, place: int, kind: str = "CREATED") -> SimpleNamespace:
    """A placement group of a job."""
    return SimpleNamespace(
        creator_job_id=job, placement_group_id=f"{place:02x}" * 14 + job, state=kind
    )


def test_groups_of_our_ended_jobs_go_and_the_cluster_is_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = [group(OURS, 1), group(OURS, 2, "REMOVED"), group(OTHERS, 3), group(RUNNING, 4)]
    asked: list[Any] = []
    removed: list[str] = []

    def listed(found: list[Any]) -> Any:
        return lambda address=None, **_: (asked.append(address), found)[1]

    monkeypatch.setattr(state, "list_jobs", listed(JOBS))
    monkeypatch.setattr(state, "list_placement_groups", listed(groups))
    monkeypatch.setattr(
        groups_of_ray, "remove_placement_group", lambda found: removed.append(found.id.hex())
    )
    assert remove_leftover_groups(HERE) == 1
    assert removed == [groups[0].placement_group_id]
    assert asked == [HERE, HERE]
