"""The Ray cluster: its token, and whether it answers."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from ucd_ray.doctor.finding import Finding
from ucd_ray.tune.places import places

CONNECT_S = 3.0
HEALTH_S = 12.0  # Ray takes its time to load
GCS_PORT = 6379
FILES = ("UCD_RAY_SERVICE_RAY_TOKEN_FILE", "RAY_AUTH_TOKEN_PATH")


def token_file() -> tuple[str, Path]:
    """The file that Ray's token is read from, and who names it."""
    for name in FILES:
        if os.environ.get(name):
            return name, Path(os.environ[name])
    own = places().home / "ray-token"
    return (
        ("home", own) if own.exists() else ("Ray's default", Path("~/.ray/auth_token").expanduser())
    )


def token() -> Iterator[Finding]:
    """The token of the cluster is in a file that only its owner reads."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        mend = "put it into a file of mode 0600, name that in RAY_AUTH_TOKEN_PATH"
        yield Finding("ray token", "note", "RAY_AUTH_TOKEN holds it: child processes see it", mend)
        return
    origin, path = token_file()
    if not path.exists():
        if origin in FILES:
            mend = f"write the cluster's token there with mode 0600, or unset {origin}"
            yield Finding("ray token", "wrong", f"{path} ({origin}) is not there", mend)
        else:
            yield Finding("ray token", "ok", "none yet; a head of our own makes one")
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        told = f"{path} can be read by others (mode {mode:04o})"
        yield Finding("ray token", "wrong", told, f"chmod 600 {path}")
    elif not os.access(path, os.R_OK):
        yield Finding("ray token", "wrong", f"{path} cannot be read by us", f"chown it to {_me()}")
    elif not path.read_text().strip():
        yield Finding("ray token", "wrong", f"{path} is empty", "write the cluster's token there")
    else:
        yield Finding("ray token", "ok", f"{path}, mode {mode:04o}")


def cluster(address: str | None) -> Iterator[Finding]:
    """The cluster at `address`, or RAY_ADDRESS, answers and is of our version of Ray."""
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        yield Finding("cluster", "ok", "none is named: each study starts a Ray head of its own")
    elif address.startswith(("http://", "https://")):
        yield _dashboard(address)
    elif address == "auto":
        yield _health(address)
    else:
        yield _gcs(address)


def headers() -> dict[str, str]:
    """Those that the cluster's HTTP side wants; empty without a token."""
    text = os.environ.get("RAY_AUTH_TOKEN")
    if not text:
        try:
            text = token_file()[1].read_text().strip()
        except OSError:
            return {}
    return {"Authorization": f"Bearer {text}"} if text else {}


def _dashboard(url: str) -> Finding:
    try:
        answer = httpx.get(f"{url.rstrip('/')}/api/version", headers=headers(), timeout=CONNECT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _away(url, str(error) or type(error).__name__)
    if answer.status_code in (401, 403):
        mend = "write the cluster's token into the file that RAY_AUTH_TOKEN_PATH names"
        return Finding("cluster", "wrong", f"{url} refuses our token", mend)
    try:
        there = str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError):
        mend = "give the address of the Ray dashboard, such as http://head:8265"
        return Finding("cluster", "wrong", f"{url} answers, but is no Ray dashboard", mend)
    return _versions(url, there)


def _versions(url: str, there: str) -> Finding:
    here = version("ray")
    if there == here:
        return Finding("cluster", "ok", f"{url} answers, Ray {there}")
    mend = f"pip install 'ray=={there}' here, or bring the cluster to {here}"
    return Finding("cluster", "wrong", f"{url} has Ray {there}, here is {here}", mend)


def _gcs(address: str) -> Finding:
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname or "", parts.port or GCS_PORT
    except ValueError:
        mend = "give HOST:PORT, such as head:6379"
        return Finding("cluster", "wrong", f"'{address}' is no address", mend)
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        return _away(address, error.strerror or str(error))
    if address.startswith("ray://"):
        return Finding("cluster", "ok", f"{address} listens")
    return _health(address)


def _health(address: str) -> Finding:
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token_file()[1])}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=HEALTH_S, env=environment
        )
    except subprocess.TimeoutExpired:
        return _away(address, f"no answer within {HEALTH_S:g} s")
    if done.returncode == 0:
        return Finding("cluster", "ok", f"{address} answers, Ray {version('ray')}")
    lines = (done.stderr or done.stdout).strip().splitlines()
    return _away(address, lines[-1][:200] if lines else f"exit code {done.returncode}")


def _away(address: str, cause: str) -> Finding:
    mend = "start it with `ray start --head`, or correct --address or RAY_ADDRESS"
    return Finding("cluster", "wrong", f"{address} does not answer: {cause}", mend)


def _me() -> str:
    return f"user {os.geteuid()}"
