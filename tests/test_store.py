"""Files in a store: exclusive creation, listing, and messages without credentials."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ucd_ray.errors import CheckpointError
from ucd_ray.store import Store, masked


def test_of_many_that_create_a_file_at_once_one_does(tmp_path: Path) -> None:
    start, made = threading.Barrier(16), []

    def create(number: int) -> None:
        start.wait()
        made.append(Store(tmp_path).create(str(number).encode(), "folder", "file"))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 15 + [True]


def test_a_touched_file_is_as_if_just_written_and_an_absent_one_stays_absent(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    store.write(b"content", "file")
    os.utime(tmp_path / "file", (0, 0))
    assert store.modified("file") == 0
    assert store.touch("file")
    modified = store.modified("file")
    assert modified is not None and abs(modified - time.time()) < 60
    assert store.read("file") == b"content"
    assert not store.touch("other")
    assert store.modified("other") is None
    assert os.listdir(tmp_path) == ["file"]


def test_files_are_listed_with_path_and_size(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(b"12", "b", "c", "d")
    store.write(b"1", "a")
    assert [(f.path, f.name, f.size) for f in store.files()] == [("a", "a", 1), ("b/c/d", "d", 2)]
    assert [f.path for f in store.files("b")] == ["c/d"]
    assert store.files("nothing") == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:se/c?r@t@bucket/p?region=x", "s3://***@bucket/p?region=x"),
        ("cannot open 's3://key:secret@bucket'", "cannot open 's3://***@bucket'"),
        ("s3://k:s@b/p and s3://k:s@c", "s3://***@b/p and s3://***@c"),
        ("gs://token@bucket/p", "gs://***@bucket/p"),
        ("abfs://box/p?account_key=se%2Fcret&x=1", "abfs://box/p?account_key=***&x=1"),
        ("s3://bucket/a@b/c?scheme=http", "s3://bucket/a@b/c?scheme=http"),
        ("/home/me@work/steps", "/home/me@work/steps"),
    ],
)
def test_credentials_are_not_shown(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize(
    "url", ["s3://key:hidden@bucket/p?nothing=1", "s3://key:hid/den@bucket", "s4://key:hidden@b"]
)
def test_a_store_that_cannot_be_opened_is_named_without_its_password(url: str) -> None:
    with pytest.raises(CheckpointError, match=r"cannot open storage 's\d://\*\*\*@b") as caught:
        Store(url)
    assert "hid" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
