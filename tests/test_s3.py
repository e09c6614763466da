"""Storage on a server that speaks S3: steps, leases, holds, checkpoints, eviction, messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import MakeJob
from tests.steps import Process, wait_until
from ucd_ray import step_eviction, step_leases
from ucd_ray.checkpoint import StepCache, Store, TrialStore, key_digest
from ucd_ray.errors import CheckpointError
from ucd_ray.step_eviction import HOLDS, evict, in_use, remove_leftovers, stored_steps
from ucd_ray.step_leases import FOLDER, Leases
from ucd_ray.train import LocalContext, Report, step_reports, train_run

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto.server")

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "hidden",
    "AWS_EC2_METADATA_DISABLED": "true",
}
KEY, OTHER = {"number": 0}, {"number": 1}
WEIGHTS = {"weight": torch.arange(2500.0)}
SHORT = {"optim.iterations_base": 3, "optim.iterations_new": 2, "method": "finetune"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def url(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A prefix of this test alone."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    name = request.node.name.replace("[", "-").rstrip("]")
    return f"s3://bucket/{name}?endpoint_override={endpoint}&scheme=http&region=us-east-1"


@pytest.fixture
def cache(url: str) -> StepCache:
    return StepCache(Store(url), "study/1")


def paths(cache: StepCache, *parts: str) -> list[str]:
    return [file.path for file in cache.store.files(*parts)]


def test_a_step_is_stored_and_found_again(cache: StepCache) -> None:
    assert not cache.has(KEY) and cache.get(KEY) is None
    cache.put(KEY, WEIGHTS, {"value": 1})
    entry = StepCache(Store(cache.store.url)).get(KEY)
    assert entry is not None and entry.result == {"value": 1}
    assert torch.equal(entry.weights["weight"], WEIGHTS["weight"])
    (stored,) = stored_steps(cache.store)
    assert stored.complete and stored.size > 10_000
    assert sorted(file.name.rpartition(".")[2] for file in stored.files) == [
        "json",
        "safetensors",
        "used",
    ]


def test_a_damaged_step_is_refused(cache: StepCache) -> None:
    cache.put(KEY, WEIGHTS, {})
    (weights,) = [path for path in paths(cache) if path.endswith("safetensors")]
    content = bytearray(cache.store.read(weights) or b"")
    content[-1] ^= 1
    cache.store.write(bytes(content), weights)
    with pytest.raises(CheckpointError, match=f"bucket/.*/{key_digest(KEY)}' is damaged"):
        StepCache(cache.store).get(KEY)


def test_a_lease_is_had_by_one_renewed_and_released(
    cache: StepCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_leases, "BEAT_S", 0.2)
    monkeypatch.setattr(step_leases, "SETTLE_S", 0.2)
    lease = cache.lease(KEY)
    assert lease is not None
    other = Leases(Store(cache.store.url), "study/2")
    before = cache.store.files(FOLDER)
    assert other.take(key_digest(KEY)) is None
    assert (other.holder(key_digest(KEY)) or "").startswith("study/1 ")
    wait_for_change(cache, before)
    lease.release()
    assert paths(cache, FOLDER) == []
    again = other.take(key_digest(KEY))
    assert again is not None
    again.release()


def wait_for_change(cache: StepCache, before: Any) -> None:
    wait_until(lambda: cache.store.files(FOLDER)[0].modified > before[0].modified)
    assert [f.path for f in cache.store.files(FOLDER)] == [f.path for f in before]


def test_eviction_spares_what_is_held_or_trained(cache: StepCache) -> None:
    for number in range(4):
        cache.put({"number": number}, WEIGHTS, {})
    lease = cache.lease({"number": 2})
    assert lease is not None
    with cache.hold([{"number": 3}]):
        assert len(in_use(cache.store)) == 2
        removed = evict(cache.store, limit=0)
    lease.release()
    assert (len(removed.entries), removed.kept) == (2, 2)
    assert {stored.digest for stored in stored_steps(cache.store)} == {
        key_digest({"number": number}) for number in (2, 3)
    }
    assert paths(cache, HOLDS) == []


def test_a_put_over_the_limit_makes_room(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCD_RAY_CACHE_LIMIT", "15kB")
    cache = StepCache(Store(url), "study/1")
    cache.put(KEY, WEIGHTS, {})
    cache.put(OTHER, WEIGHTS, {})
    fresh = StepCache(Store(url))
    assert (fresh.has(KEY), fresh.has(OTHER)) == (False, True)


def test_leftovers_go(cache: StepCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put(KEY, WEIGHTS, {})
    cache.store.write(b"1", key_digest(OTHER), f"{'e' * 64}.safetensors")
    assert remove_leftovers(cache.store) == []
    monkeypatch.setattr(step_eviction, "LEFTOVER_S", -60.0)
    assert len(remove_leftovers(cache.store)) == 1
    assert StepCache(cache.store).get(KEY) is not None


def test_a_trials_checkpoint_is_kept_replaced_and_cleared(url: str) -> None:
    trial = TrialStore(Store(url), "study", "7")
    assert trial.load() is None
    for epoch in (1, 2):
        trial.save({"epoch": epoch, "weights": WEIGHTS})
    state = TrialStore(Store(url), "study", "7").load()
    assert state is not None and state["epoch"] == 2
    trial.clear()
    trial.clear()
    assert trial.load() is None
    assert Store(url).files() == []


def test_deleting_takes_objects_prefixes_and_what_is_absent(url: str) -> None:
    store = Store(url)
    store.write(b"x", "a", "b", "c")
    store.write(b"x", "d")
    for name in ("a", "d", "nothing"):
        store.delete(name)
    assert store.files() == []
    assert store.read("a") is None and not store.touch("d")


def test_a_run_leaves_and_finds_its_steps_there(make_job: MakeJob, url: str) -> None:
    job = replace(make_job(until=1, **SHORT), cache=url)
    first: list[Report] = []
    train_run(job, LocalContext(first.append))
    again: list[Report] = []
    train_run(job, LocalContext(again.append))
    assert [r["cached"] for r in step_reports(first + again)] == [False, False, True, True]
    assert Store(url).files(FOLDER) == [] and Store(url).files(HOLDS) == []


def test_two_processes_train_a_step_once(make_job: MakeJob, url: str, tmp_path: Path) -> None:
    jobs = [replace(make_job(number, until=0, **SHORT), cache=url) for number in range(2)]
    processes = [Process(job, tmp_path / job.name[-1]) for job in jobs]
    try:
        for process in processes:
            process.go()
        reports = [report for process in processes for report in process.end()]
    finally:
        for process in processes:
            process.reap()
    assert sorted(report["cached"] for report in step_reports(reports)) == [False, True]


def test_an_error_names_the_place_and_no_credentials(url: str) -> None:
    store = Store(f"s3://key:hidden@no-such-bucket/steps?{url.partition('?')[2]}")
    with pytest.raises(CheckpointError, match="cannot write 'no-such-bucket/steps/file'") as caught:
        store.write(b"x", "file")
    assert "hidden" not in str(caught.value)


def test_a_server_that_does_not_answer_is_an_error_and_no_absent_step() -> None:
    query = "endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    cache = StepCache(Store(f"s3://key:hidden@bucket/steps?{query}"), "study/1")
    with pytest.raises(CheckpointError, match="cannot read 'bucket/steps/") as caught:
        cache.has(KEY)
    assert "hidden" not in str(caught.value)
