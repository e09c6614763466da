"""Room in the step cache: the least recently used goes, never what is in use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ucd_ray import step_eviction
from ucd_ray.checkpoint import StepCache, Store, key_digest
from ucd_ray.errors import CheckpointError, ConfigError
from ucd_ray.presence import Owner
from ucd_ray.step_eviction import HOLDS, evict, in_use, parse_size, remove_leftovers, stored_steps

WEIGHTS = {"weight": torch.zeros(2500)}  # 10 kB
HOUR = 3600.0


def key_of(number: int) -> dict[str, Any]:
    return {"number": number}


@pytest.fixture
def cache(tmp_path: Path) -> StepCache:
    """Three entries, stored three, two and one hours ago."""
    cache = StepCache(Store(tmp_path / "steps"), "study/1")
    for number in range(3):
        cache.put(key_of(number), WEIGHTS, {"number": number})
        make_old(cache, number, (3 - number) * HOUR)
    return cache


def folder_of(cache: StepCache, number: int) -> Path:
    return Path(cache.store.path(key_digest(key_of(number))))


def make_old(cache: StepCache, number: int, seconds: float) -> None:
    for path in folder_of(cache, number).iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def stored(cache: StepCache) -> list[int]:
    fresh = StepCache(cache.store)
    return [number for number in range(9) if fresh.has(key_of(number))]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50GB", 50 * 10**9),
        ("1.5 TB", 1500 * 10**9),
        ("40GiB", 40 * 2**30),
        ("7kb", 7000),
        ("12", 12),
        ("0", 0),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["50 apples", "GB", "-1GB", "1e9", "5,0GB", "1 2GB", "inf"])
def test_a_limit_that_is_no_size_is_refused_by_name(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_CACHE_LIMIT", text)
    with pytest.raises(ConfigError, match=rf"UCD_RAY_CACHE_LIMIT \('{text}'\) must be a size"):
        StepCache(Store(tmp_path))


def test_without_a_limit_nothing_goes(cache: StepCache) -> None:
    cache.put(key_of(3), WEIGHTS, {})
    assert evict(cache.store).entries == []
    assert stored(cache) == [0, 1, 2, 3]


def test_a_put_over_the_limit_removes_the_least_recently_used(
    cache: StepCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.get(key_of(0))  # now the last used
    monkeypatch.setenv("UCD_RAY_CACHE_LIMIT", "25kB")
    StepCache(cache.store).put(key_of(3), WEIGHTS, {})
    assert stored(cache) == [0, 3]
    assert not folder_of(cache, 1).exists()


def test_what_was_just_stored_stays_even_if_it_alone_is_too_large(
    cache: StepCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_CACHE_LIMIT", "1kB")
    StepCache(cache.store).put(key_of(3), WEIGHTS, {})
    assert stored(cache) == [3]


def test_use_is_noted_once_in_minutes(cache: StepCache) -> None:
    note = folder_of(cache, 0) / step_eviction.USED
    cache.result(key_of(0))
    first = note.stat().st_mtime_ns
    StepCache(cache.store).get(key_of(0))
    assert note.stat().st_mtime_ns == first
    make_old(cache, 0, HOUR)
    StepCache(cache.store).result(key_of(0))
    assert note.stat().st_mtime_ns >= first


def test_held_steps_stay_stored_or_not_until_the_holder_ends(cache: StepCache) -> None:
    with cache.hold([key_of(0), key_of(5)]):
        assert set(in_use(cache.store)) == {key_digest(key_of(0)), key_digest(key_of(5))}
        StepCache(cache.store).put(key_of(5), WEIGHTS, {})
        removed = evict(cache.store, limit=0)
        assert (len(removed.entries), removed.kept) == (2, 2)
        assert stored(cache) == [0, 5]
    assert cache.store.files(HOLDS) == []
    evict(cache.store, limit=0)
    assert stored(cache) == []


def test_a_step_that_is_being_trained_stays(cache: StepCache) -> None:
    lease = cache.lease(key_of(1))
    assert lease is not None
    evict(cache.store, unused_s=0)
    assert stored(cache) == [1]
    lease.release()
    evict(cache.store, unused_s=0)
    assert stored(cache) == []


def test_the_hold_of_a_killed_process_is_ignored(cache: StepCache) -> None:
    code = (
        "import sys, time; from ucd_ray.checkpoint import StepCache, Store\n"
        "with StepCache(Store(sys.argv[1]), 'study/9').hold([{'number': 0}]):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, cache.store.url], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    evict(cache.store, limit=0)
    assert stored(cache) == [0]
    process.kill()
    process.wait()
    evict(cache.store, limit=0)
    assert stored(cache) == []


def test_the_hold_of_another_machine_counts_until_it_is_stale(cache: StepCache) -> None:
    far = replace(Owner.here("study/9"), machine="another boot")
    cache.store.write(far.encode(digests=[key_digest(key_of(0))]), HOLDS, "a")
    evict(cache.store, limit=0)
    assert stored(cache) == [0]
    path = Path(cache.store.path(HOLDS, "a"))
    os.utime(path, (time.time() - HOUR,) * 2)
    evict(cache.store, limit=0)
    assert stored(cache) == []


def test_a_hold_is_renewed(cache: StepCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_eviction, "BEAT_S", 0.1)
    with cache.hold([key_of(0)]):
        (hold,) = Path(cache.store.path(HOLDS)).iterdir()
        os.utime(hold, (0, 0))
        began = time.monotonic()
        while hold.stat().st_mtime < 1:
            assert time.monotonic() - began < 60
            time.sleep(0.05)


def test_only_what_was_not_used_for_long_goes(cache: StepCache) -> None:
    removed = evict(cache.store, unused_s=1.5 * HOUR)
    assert [entry.digest for entry in removed.entries] == [key_digest(key_of(n)) for n in (0, 1)]
    assert stored(cache) == [2]


def test_a_dry_run_removes_nothing(cache: StepCache) -> None:
    (folder_of(cache, 0) / "x.tmp").write_bytes(b"123")
    make_old(cache, 0, 5 * HOUR)
    removed = evict(cache.store, limit=0, dry_run=True)
    removed.leftovers = remove_leftovers(cache.store, dry_run=True)
    assert len(removed.entries) == 3 and len(removed.leftovers) == 1
    assert removed.size > 30_000
    assert stored(cache) == [0, 1, 2]
    assert (folder_of(cache, 0) / "x.tmp").exists()


def test_an_entry_goes_before_its_weights(
    cache: StepCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, seen = cache.store.delete, []

    def watched(*parts: str) -> None:
        delete(*parts)
        seen.append(StepCache(Store(cache.store.url)).get(key_of(0)))

    monkeypatch.setattr(cache.store, "delete", watched)
    evict(cache.store, unused_s=2.5 * HOUR)
    assert seen == [None] * 2


def test_an_entry_that_goes_while_it_is_read_is_absent(
    cache: StepCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.has(key_of(0))
    evict(Store(cache.store.url), limit=0)
    assert cache.get(key_of(0)) is None
    assert not cache.has(key_of(0))


def test_an_entry_that_is_stored_anew_while_it_goes_is_whole(
    cache: StepCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = cache.store.delete
    others = {"weight": torch.ones(2500)}

    def overtaken(*parts: str) -> None:
        delete(*parts)
        if parts[-1] == "entry.json":
            StepCache(Store(cache.store.url)).put(key_of(0), others, {"anew": True})

    monkeypatch.setattr(cache.store, "delete", overtaken)
    evict(cache.store, unused_s=2.5 * HOUR)
    entry = StepCache(Store(cache.store.url)).get(key_of(0))
    assert entry is not None and entry.result == {"anew": True}


def test_old_files_that_belong_to_nothing_go_and_no_other(cache: StepCache) -> None:
    root = Path(cache.store.url)
    (folder_of(cache, 0) / "x.safetensors.0a1b.tmp").write_bytes(b"1")
    (folder_of(cache, 0) / f"{'e' * 64}.safetensors").write_bytes(b"2")
    (root / ("d" * 32)).mkdir()
    (root / ("d" * 32) / f"{'e' * 64}.safetensors").write_bytes(b"3")
    (root / "leases").mkdir()
    (root / "leases" / f"{'d' * 32}.00000001").write_bytes(b"4")
    (root / "notes.txt").write_bytes(b"the user's")
    for path in root.rglob("*"):
        os.utime(path, (time.time() - 5 * HOUR,) * 2)
    (folder_of(cache, 1) / "y.tmp").write_bytes(b"being written")
    gone = remove_leftovers(cache.store)
    assert len(gone) == 4
    assert stored(cache) == [0, 1, 2]
    assert all(StepCache(cache.store).get(key_of(number)) for number in range(3))
    assert (root / "notes.txt").exists() and not (root / ("d" * 32)).exists()
    assert (folder_of(cache, 1) / "y.tmp").exists()


def test_the_weights_of_a_damaged_entry_are_no_leftover(cache: StepCache) -> None:
    (folder_of(cache, 0) / "entry.json").write_bytes(b"{")
    make_old(cache, 0, 5 * HOUR)
    assert remove_leftovers(cache.store) == []
    with pytest.raises(CheckpointError, match="is damaged"):
        StepCache(cache.store).has(key_of(0))


def test_a_step_is_stored_even_if_no_room_can_be_made(
    cache: StepCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_CACHE_LIMIT", "1kB")
    full = StepCache(Store(cache.store.url))

    def fail(*parts: str) -> None:
        raise CheckpointError("cannot delete: permission denied")

    monkeypatch.setattr(full.store, "delete", fail)
    full.put(key_of(3), WEIGHTS, {})
    assert stored(cache) == [0, 1, 2, 3]


def test_an_entry_is_read_once_by_a_run(cache: StepCache, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = StepCache(Store(cache.store.url))
    read, seen = fresh.store.read, []

    def counted(*parts: str) -> bytes | None:
        seen.append(parts[-1])
        return read(*parts)

    monkeypatch.setattr(fresh.store, "read", counted)
    for _ in range(3):
        assert fresh.has(key_of(0))
        assert fresh.result(key_of(0)) == {"number": 0}
    assert seen == ["entry.json"]


def test_stored_steps_are_listed_by_last_use(cache: StepCache) -> None:
    cache.result(key_of(0))
    order = [key_digest(key_of(number)) for number in (1, 2, 0)]
    assert [entry.digest for entry in stored_steps(cache.store)] == order
    assert all(entry.size > 10_000 for entry in stored_steps(cache.store))
