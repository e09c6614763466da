"""What is shut: a public address without tokens, a token file that others read, a body that never comes."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from tests.service.live import serving
from ucd_ray.errors import ConfigError
from ucd_ray.service import serve as serve_module
from ucd_ray.service.app import create_app
from ucd_ray.service.database import open_database
from ucd_ray.service.ray_jobs import use_token
from ucd_ray.service.serve import serve
from ucd_ray.service.settings import Settings
from ucd_ray.service.tokens import create_token


class ListensError(Exception):
    """It would have listened."""


@pytest.fixture
def only_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` ends where it would listen."""

    def listener(*_: object) -> None:
        raise ListensError

    monkeypatch.setattr(serve_module, "listener", listener)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "lab.example"])
def test_a_public_address_is_refused_as_long_as_there_is_no_token(
    settings: Settings, only_listens: None, host: str
) -> None:
    public = settings.model_copy(update={"host": host})
    with pytest.raises(ConfigError, match=f"host '{host}' .* `ucd-ray token create OWNER`"):
        serve(public, print)
    create_token(open_database(settings.database), "ann", ["read"])
    with pytest.raises(ListensError):
        serve(public, print)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_token(settings: Settings, only_listens: None, host: str) -> None:
    with pytest.raises(ListensError):
        serve(settings.model_copy(update={"host": host}), print)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_a_token_file_that_others_can_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "before")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "before")
    file = tmp_path / "token"
    file.write_text("secret")
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600") as refused:
        use_token(file)
    assert "secret" not in str(refused.value)
    assert os.environ["RAY_AUTH_MODE"] == "before"
    file.chmod(0o600)
    use_token(file)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(file)


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent'.*No such file"):
        use_token(tmp_path / "absent")


@contextlib.contextmanager
def slow_body(settings: Settings, wait_s: float) -> Iterator[tuple[int, socket.socket]]:
    """The port of a service, and a connection whose body does not come."""
    app: FastAPI = create_app(settings.model_copy(update={"body_wait_s": wait_s}))
    lines = ("POST /v1/studies HTTP/1.1", "Host: x", "Connection: close", "Content-Length: 100")
    with serving(app) as port, socket.create_connection(("127.0.0.1", port), 60) as slow:
        slow.sendall("\r\n".join([*lines, "", "{"]).encode())
        yield port, slow


def test_while_a_body_does_not_come_others_are_answered(settings: Settings) -> None:
    with slow_body(settings, wait_s=300) as (port, slow):
        with socket.create_connection(("127.0.0.1", port), 60) as other:
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 200")
        assert not select.select([slow], [], [], 0)[0], "it is still waited for"


def test_a_body_that_does_not_come_is_given_up(settings: Settings) -> None:
    with slow_body(settings, wait_s=0.5) as (_, slow):
        answer = b"".join(iter(lambda: slow.recv(4000), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"the body did not arrive in time" in answer


def test_a_token_is_printed_alone_once_and_listed_whole_in_a_narrow_terminal(
    tmp_path: Path,
) -> None:
    def run(*words: str) -> str:
        environment = {**os.environ, "UCD_RAY_HOME": str(tmp_path), "COLUMNS": "50"}
        command = [sys.executable, "-m", "ucd_ray.cli", "token", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = run("create", "ann@lab.example", "--scope", "admin", "--days", "2")
    assert text.count("\n") == 1 and text.startswith("ucd_")
    _, key, secret = text.strip().split("_", 2)
    listed = run("list")
    assert key in listed
    assert "valid" in listed
    assert secret not in listed
    assert key in run("revoke", key)
    assert "revoked" in run("list")
