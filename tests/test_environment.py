from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import torch

from ucd_ray import environment as module
from ucd_ray.environment import commit, differences, environment, threads


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def checkout(folder: Path) -> Path:
    """A repository whose only file is in the package at its top."""
    package = folder / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("x = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return package


def test_a_commit_is_that_of_the_packages_own_checkout(tmp_path: Path) -> None:
    package = checkout(tmp_path / "repository")
    assert commit(package) == git(package, "rev-parse", "HEAD")
    (package / "notes.txt").write_text("not tracked\n")
    assert commit(package) == git(package, "rev-parse", "HEAD")
    (package / "code.py").write_text("x = 2\n")
    assert commit(package) == git(package, "rev-parse", "HEAD") + "+changes"


def test_a_copy_inside_another_repository_has_no_commit(tmp_path: Path) -> None:
    package = checkout(tmp_path / "repository")
    installed = package / "site-packages/ucd_ray"
    installed.mkdir(parents=True)
    assert commit(installed) is None
    assert commit(tmp_path) is None


def test_the_environment_tells_versions_machine_threads_and_precision() -> None:
    with threads(1):
        found = environment(precision="float32")
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert {"ucd-ray", "timm", "torchvision", "pillow"} <= set(found["packages"])
    assert all(found["hardware"].values())
    assert (found["threads"], found["precision"]) == (1, "float32")


def test_an_absent_package_is_left_out() -> None:
    assert module._version("ucd-ray-that-is-not-there") is None


def test_threads_are_as_before_after_the_block() -> None:
    before = torch.get_num_threads()
    with threads(before + 2):
        assert torch.get_num_threads() == before + 2
        with threads(None):
            assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before


def test_differences_name_both_values_and_leave_threads_out() -> None:
    then: dict[str, Any] = {
        "python": "3.11.2",
        "commit": "abc",
        "packages": {"torch": "2.10.0", "timm": "1.0", "gone": "1"},
        "hardware": {"cpu": "A", "device": "CPU"},
        "threads": 1,
    }
    now = {**then, "threads": 2}
    assert differences(then, now) == []
    now |= {
        "packages": {"torch": "2.11.0", "timm": "1.0"},
        "commit": None,
        "hardware": {"cpu": "B"},
    }
    assert differences(then, now) == [
        "gone 1 there, unknown here",
        "torch 2.10.0 there, 2.11.0 here",
        "commit abc there, unknown here",
        "cpu A there, B here",
        "device CPU there, unknown here",
    ]
