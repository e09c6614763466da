"""Damage is never silent: an entry of the step cache is refused, a checkpoint starts anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from ucd_ray.checkpoint import StepCache, Store, TrialStore, key_digest, key_text
from ucd_ray.errors import CheckpointError

KEY = {"data": "abc", "recipe": {"seed": 1, "optim.lr_base": 0.01}}
WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)}
RESULT = {"select": [[5, 1], [0, 7]], "losses": {"ce": 0.25}, "seconds": 1.5}


@pytest.fixture
def cache(tmp_path: Path) -> StepCache:
    cache = StepCache(Store(tmp_path / "steps"))
    cache.put(KEY, WEIGHTS, RESULT)
    return cache


def weights_of(cache: StepCache) -> Path:
    """The only file of weights of the stored step."""
    (path,) = file_of(cache, "").glob("*.safetensors")
    return path


def file_of(cache: StepCache, name: str) -> Path:
    return Path(cache.store.path(key_digest(KEY), name))


def test_a_stored_step_comes_back_with_its_weights(cache: StepCache) -> None:
    entry = cache.get(KEY)
    assert entry is not None
    assert entry.result == RESULT
    assert entry.weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(entry.weights[name], WEIGHTS[name]) for name in WEIGHTS)


def test_another_process_finds_the_step_under_an_equal_key(cache: StepCache) -> None:
    reordered = json.loads(json.dumps(dict(reversed(KEY.items()))))
    other = StepCache(Store(cache.store.url))
    assert other.has(reordered)
    assert other.result(reordered) == RESULT


def test_an_unknown_key_is_absent(cache: StepCache) -> None:
    other = {**KEY, "data": "abd"}
    assert not cache.has(other)
    assert cache.get(other) is None
    assert cache.result(other) is None


def test_keys_differ_by_any_value() -> None:
    assert key_text({"a": 1, "b": [2]}) == key_text({"b": [2], "a": 1})
    texts = {
        key_text(k) for k in ({"a": 1}, {"a": 2}, {"a": "1"}, {"a": None}, {"b": 1}, {"a": 1.5})
    }
    assert len(texts) == 6


def test_a_second_put_keeps_the_first_result(cache: StepCache) -> None:
    cache.put(KEY, WEIGHTS, {**RESULT, "seconds": 9.0})
    assert cache.result(KEY) == RESULT


def test_transposed_and_shared_tensors_can_be_stored(tmp_path: Path) -> None:
    cache = StepCache(Store(tmp_path))
    weight = torch.arange(6.0).view(2, 3)
    cache.put(KEY, {"a": weight.T, "b": weight}, RESULT)
    entry = cache.get(KEY)
    assert entry is not None
    assert torch.equal(entry.weights["a"], weight.T)


def test_truncated_weights_are_refused_naming_the_entry(cache: StepCache) -> None:
    path = weights_of(cache)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="weights are absent or not those") as caught:
        cache.get(KEY)
    assert str(path.parent) in str(caught.value)
    assert "delete it to retrain" in str(caught.value)


def test_absent_weights_are_refused(cache: StepCache) -> None:
    weights_of(cache).unlink()
    with pytest.raises(CheckpointError, match="weights are absent"):
        cache.get(KEY)


def test_an_entry_of_another_key_is_refused(cache: StepCache) -> None:
    other = {**KEY, "data": "other"}
    file_of(cache, "").rename(cache.store.path(key_digest(other)))
    for look in (cache.has, cache.get, cache.result):
        with pytest.raises(CheckpointError, match="stored under another key"):
            look(other)


def test_a_changed_key_text_is_refused(cache: StepCache) -> None:
    path = file_of(cache, "entry.json")
    path.write_text(path.read_text().replace("0.01", "0.02"))
    with pytest.raises(CheckpointError, match="not what was stored"):
        cache.has(KEY)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"null"])
def test_an_entry_that_is_not_one_is_refused(cache: StepCache, content: bytes) -> None:
    file_of(cache, "entry.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        cache.has(KEY)


@pytest.mark.parametrize("name", ["weights", "entry.json"])
def test_no_flipped_byte_changes_a_stored_step_silently(cache: StepCache, name: str) -> None:
    path = weights_of(cache) if name == "weights" else file_of(cache, name)
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x01
        path.write_bytes(damaged)
        try:
            entry = StepCache(cache.store).get(KEY)  # a run reads an entry once
        except CheckpointError:
            continue
        assert entry is not None, position
        assert entry.result == RESULT, position  # such as another kind of white space
        assert all(torch.equal(entry.weights[n], WEIGHTS[n]) for n in WEIGHTS), position


def test_an_entry_appears_only_after_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    write = store.write

    def write_until_entry(content: bytes, *parts: str) -> None:
        if parts[-1] == "entry.json":
            raise CheckpointError("disk full")
        write(content, *parts)

    monkeypatch.setattr(store, "write", write_until_entry)
    cache = StepCache(store)
    with pytest.raises(CheckpointError, match="disk full"):
        cache.put(KEY, WEIGHTS, RESULT)
    assert not cache.has(KEY)
    assert StepCache(Store(tmp_path)).get(KEY) is None


# Files.


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.write(b"old", "folder", "file")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        store.write(b"new", "folder", "file")
    assert store.read("folder", "file") == b"old"
    assert os.listdir(tmp_path / "folder") == ["file"]


def test_reading_what_is_absent_or_a_directory_gives_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(b"x", "folder", "file")
    assert store.read("folder", "other") is None
    assert store.read("folder") is None


def test_a_place_below_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"cannot write '.*file/x'"):
        store.write(b"", "x")


def test_deleting_takes_files_and_folders_and_what_is_absent(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(b"x", "a", "b")
    store.write(b"x", "c")
    for name in ("a", "c", "nothing"):
        store.delete(name)
    assert os.listdir(tmp_path) == []


def test_a_store_may_be_a_url(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/store")
    store.write(b"content", "a", "b")
    assert (tmp_path / "store/a/b").read_bytes() == b"content"
    assert Store(tmp_path / "store").read("a", "b") == b"content"


def test_a_store_in_another_file_system_is_written_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.fs = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    store.root = "bucket/prefix"
    cache = StepCache(store)
    cache.put(KEY, WEIGHTS, RESULT)
    assert cache.result(KEY) == RESULT
    assert (tmp_path / "bucket/prefix" / key_digest(KEY) / "entry.json").is_file()


@pytest.mark.parametrize("url", ["nothing://bucket/prefix", "s3//x://y"])
def test_an_unknown_kind_of_store_is_refused(url: str) -> None:
    with pytest.raises(CheckpointError, match=f"cannot open storage '{url}'"):
        Store(url)


# Checkpoints of open trials.

STATE = {"epoch": 3, "key": "k", "seconds": 2.5, "segmenter": WEIGHTS, "optimizer": {"state": {}}}


@pytest.fixture
def trial(tmp_path: Path) -> TrialStore:
    trial = TrialStore(Store(tmp_path), "study", "7")
    trial.save(STATE)
    return trial


def state_file(trial: TrialStore) -> Path:
    return Path(trial.store.path("study", "7", "state.pt"))


def same_state(state: dict[str, Any] | None) -> bool:
    if state is None:
        return False
    weights = state.pop("segmenter")
    rest = {key: value for key, value in STATE.items() if key != "segmenter"}
    return state == rest and all(torch.equal(weights[n], WEIGHTS[n]) for n in WEIGHTS)


def test_a_checkpoint_comes_back_and_is_replaced(trial: TrialStore) -> None:
    assert same_state(trial.load())
    trial.save({"epoch": 4})
    assert trial.load() == {"epoch": 4}


def test_a_cleared_or_other_trial_has_no_checkpoint(trial: TrialStore) -> None:
    assert TrialStore(trial.store, "study", "8").load() is None
    trial.clear()
    assert trial.load() is None


@pytest.mark.parametrize("kept", [0, 10, 300, -1, -100])
def test_a_truncated_checkpoint_counts_as_none(trial: TrialStore, kept: int) -> None:
    path = state_file(trial)
    path.write_bytes(path.read_bytes()[:kept])
    assert trial.load() is None


def test_no_flipped_byte_changes_a_checkpoint_silently(trial: TrialStore) -> None:
    path = state_file(trial)
    content = path.read_bytes()
    for position in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        state = trial.load()
        assert state is None or same_state(state), position


def test_a_file_that_we_did_not_write_counts_as_none(trial: TrialStore) -> None:
    torch.save(STATE, state_file(trial))
    assert trial.load() is None


def test_two_writers_of_one_step_leave_an_entry_that_finds_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (StepCache(Store(tmp_path)) for _ in range(2))
    write = first.store.write

    def overtaken(content: bytes, *parts: str) -> None:
        if parts[-1] == "entry.json":  # the other writer finishes between weights and entry
            second.put(KEY, {name: value + 1 for name, value in WEIGHTS.items()}, RESULT)
        write(content, *parts)

    monkeypatch.setattr(first.store, "write", overtaken)
    first.put(KEY, WEIGHTS, RESULT)
    entry = StepCache(Store(tmp_path)).get(KEY)
    assert entry is not None
    assert all(torch.equal(entry.weights[name], WEIGHTS[name]) for name in WEIGHTS)
