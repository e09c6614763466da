"""The `cache` commands: what they show, find and remove."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import MakeJob
from ucd_ray import cli
from ucd_ray.checkpoint import StepCache, Store
from ucd_ray.cli import shared
from ucd_ray.errors import ConfigError
from ucd_ray.train import LocalContext, train_run
from ucd_ray.tune.cache import list_table, open_steps, parse_age, prune, show_age, show_size, verify

Run = Callable[..., tuple[int, str, str]]

SHORT = {"optim.iterations_base": 1, "optim.iterations_new": 1}


@pytest.fixture
def store(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A run of EWC over two steps: two steps and a memory; the commands' own step cache."""
    job = make_job(method="ewc", until=1, **SHORT)
    monkeypatch.setenv("UCD_RAY_STORAGE", str(Path(job.cache).parent))
    train_run(job, LocalContext(lambda report: None))
    return open_steps()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process.  Returns exit code, output and errors."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ucd-ray", "cache", *arguments])
        monkeypatch.setattr(cli, "console", Console(width=shared.WIDE))
        with pytest.raises(SystemExit) as done:
            cli.main()
        captured = capsys.readouterr()
        return int(done.value.code or 0), captured.out, captured.err

    return run_command


def entries(store: Store) -> list[Path]:
    return sorted(Path(store.url).glob("*/entry.json"))


def entry_of(store: Store, step: str) -> Path:
    """The folder of the entry that the listing shows under `step`."""
    (row,) = [row for row in listed(store).splitlines() if step in row]
    (folder,) = Path(store.url).glob(f"{row.split()[1]}*")
    return folder


def listed(store: Store) -> str:
    text = io.StringIO()
    Console(file=text, width=250).print(list_table(store))
    return text.getvalue()


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_the_list_says_what_every_entry_is(store: Store, run: Run) -> None:
    code, shown, _ = run("list")
    assert code == 0
    rows = [row for row in shown.splitlines() if "shapes" in row]
    assert len(rows) == len(entries(store)) == 3
    for step in ("step 0: 8 ", "step 1: 8 + 2 ", "ewc after step 0: 8 "):
        (row,) = [row for row in rows if f"│ {step}" in row]
        assert "overlapped, test_resnet, CrossEntropy" in row and "seed 42, 1 worker(s)" in row
    assert "EWC" in next(row for row in rows if "│ step 1" in row)


def test_the_list_of_an_empty_cache_is_empty(run: Run) -> None:
    code, shown, _ = run("list")
    assert code == 0 and "0 B" in shown


def test_the_list_says_who_uses_an_entry_and_which_is_damaged(store: Store) -> None:
    entry = entry_of(store, "step 1: 8 + 2")
    entry_of(store, "ewc after").joinpath("entry.json").write_bytes(b"{")
    from ucd_ray.step_eviction import hold

    with hold(store, [entry.name], "study/5"):
        shown = listed(store)
    (row,) = [row for row in shown.splitlines() if "step 1: 8 + 2" in row]
    assert f"study/5 (process {os.getpid()} on " in row
    assert shown.count("damaged") == 1 and shown.count("study/5") == 1


def test_a_whole_cache_is_verified(store: Store, run: Run) -> None:
    code, shown, _ = run("verify")
    assert code == 0 and "3 entries read, 0 damaged" in shown


@pytest.mark.parametrize("damage", ["weights", "entry", "truncated", "moved", "absent"])
def test_damage_is_found_listed_and_removed_on_request(store: Store, run: Run, damage: str) -> None:
    folder = entry_of(store, "step 1: 8 + 2")
    (weights,) = folder.glob("*.safetensors")
    if damage == "weights":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif damage == "entry":
        path = folder / "entry.json"
        path.write_text(path.read_text().replace('"iterations": 1', '"iterations": 2'))
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "moved":
        folder = folder.rename(folder.with_name("0" * 32))
    else:
        weights.unlink()
    code, shown, _ = run("verify")
    assert code == 1 and "3 entries read, 1 damaged" in shown
    assert folder.name in shown.replace("\n", "").replace("│", "").replace(" ", "")
    assert folder.exists()
    code, shown, _ = run("verify", "--delete")
    assert code == 1 and "1 damaged, removed" in shown
    assert not folder.exists() and len(entries(store)) == 2
    assert run("verify")[0] == 0


def test_storage_that_fails_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from ucd_ray.errors import CheckpointError

    def fail(*parts: str) -> bytes:
        raise CheckpointError("cannot read: the network is down")

    monkeypatch.setattr(store, "read", fail)
    with pytest.raises(CheckpointError, match="network is down"):
        verify(store, quiet(), delete=True)
    assert len(entries(store)) == 3


def test_pruning_to_a_limit_says_what_it_freed(store: Store, run: Run) -> None:
    code, shown, _ = run("prune", "--limit", "0", "--dry-run")
    assert code == 0 and "would be freed: 3 entries and 0 leftover files" in shown
    assert len(entries(store)) == 3
    code, shown, _ = run("prune", "--limit", "0")
    assert code == 0 and " freed: 3 entries and 0 leftover files" in shown
    assert "step 1: 8 + 2" in shown
    assert entries(store) == []


def test_pruning_by_age_keeps_what_was_used(store: Store, run: Run) -> None:
    old = entry_of(store, "step 1: 8 + 2")
    for path in old.iterdir():
        os.utime(path, (time.time() - 31 * 86400,) * 2)
    run("prune", "--older-than", "30d")
    assert not old.exists() and len(entries(store)) == 2


def test_pruning_without_options_takes_leftovers_alone(store: Store, run: Run) -> None:
    left = entry_of(store, "step 1: 8 + 2") / "x.tmp"
    left.write_bytes(b"123")
    os.utime(left, (0, 0))
    _, shown, _ = run("prune")
    assert "3 B freed: 0 entries and 1 leftover files" in shown and not left.exists()
    assert len(entries(store)) == 3


def test_pruning_spares_a_running_study(store: Store) -> None:
    job_key = {"any": "key"}
    cache = StepCache(store, "study/1")
    with cache.hold([job_key]):
        removed = prune(store, quiet(), limit="0")
    assert removed.kept == 0 and len(removed.entries) == 3
    import torch

    cache.put(job_key, {"weight": torch.zeros(3)}, {})
    with cache.hold([job_key]):
        console = quiet()
        assert prune(store, console, limit="0").kept == 1
        assert isinstance(console.file, io.StringIO)
        assert "1 more stay, as they are in use" in console.file.getvalue()
    assert cache.has(job_key)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--limit", "lots"), "--limit ('lots') must be a size such as 500MB"),
        (("--older-than", "30"), "--older-than ('30') must be a time such as 90m, 12h, 30d or 2w"),
    ],
)
def test_a_wrong_option_is_refused_by_name(
    run: Run, arguments: tuple[str, str], message: str
) -> None:
    code, _, errors = run("prune", *arguments)
    assert code == 2 and message in errors


def test_a_wrong_limit_in_the_environment_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_CACHE_LIMIT", "big")
    code, _, errors = run("list")
    assert code == 2 and "UCD_RAY_CACHE_LIMIT ('big') must be a size" in errors


def test_ages_and_sizes_are_short() -> None:
    assert [parse_age(text) for text in ("90s", "1.5h", "2w")] == [90, 5400, 14 * 86400]
    assert [show_age(s) for s in (-1, 59, 60, 7200, 3 * 86400)] == [
        "0 s",
        "59 s",
        "1 m",
        "2 h",
        "3 d",
    ]
    assert [show_size(n) for n in (0, 999, 1500, 2.5e9, 3e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 GB",
        "3.0 TB",
    ]
    with pytest.raises(ConfigError):
        parse_age("d30")
