from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ucd_ray.cli import app
from ucd_ray.doctor.finding import Finding, examine
from ucd_ray.errors import ClusterError

COMMAND = importlib.import_module(
    "ucd_ray.cli.doctor"
)  # the package has the command under that name


def fine() -> Iterator[Finding]:
    yield Finding("fine", "ok", "all is well")


def fails() -> Iterator[Finding]:
    raise ZeroDivisionError("by\n zero")


def refuses() -> Iterator[Finding]:
    raise ClusterError("no cluster; start one")


def test_a_check_that_hangs_or_fails_is_a_finding_and_the_others_are_told() -> None:
    told = threading.Event()

    def hangs() -> Iterator[Finding]:
        told.wait()
        yield from ()

    checks = {"hangs": hangs, "fails": fails, "refuses": refuses, "fine": fine}
    found = examine(checks, limit_s=5)
    told.set()
    assert [finding.state for finding in found] == ["wrong", "wrong", "wrong", "ok"]
    assert "not done within 5 s" in found[0].found
    assert found[1].found == "ZeroDivisionError: by zero"
    assert (found[2].found, found[2].mend) == ("no cluster", "start one")


def test_nothing_wrong_is_exit_code_0_and_what_is_wrong_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(COMMAND, "checks", lambda *_: {"fine": fine})
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0 and "all is well" in done.output
    monkeypatch.setattr(COMMAND, "checks", lambda *_: {"fine": fine, "refuses": refuses})
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1 and "start one" in done.output


def test_the_whole_is_json_and_names_what_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_DATABASE", "postgresql://ann@127.0.0.1:9/studies")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    done = CliRunner().invoke(app, ["doctor", "--format", "json"])
    found = json.loads(done.output)
    wrong = {finding["check"] for finding in found if finding["state"] == "wrong"}
    assert done.exit_code == 1 and wrong >= {"database", "cluster", "ray token"}
    assert all(finding["mend"] for finding in found if finding["state"] == "wrong")
    assert {"python", "packages", "home", "storage", "ports", "clock"} <= {
        finding["check"] for finding in found
    }


def test_an_unknown_format_is_refused() -> None:
    done = CliRunner().invoke(app, ["doctor", "--format", "xml"])
    assert done.exit_code != 0
