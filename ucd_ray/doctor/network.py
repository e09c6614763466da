"""Ports, a service that runs already, and clocks."""

from __future__ import annotations

import contextlib
import email.utils
import os
import socket
import time
from collections.abc import Iterator

import httpx

from ucd_ray.doctor.cluster import headers
from ucd_ray.doctor.finding import Finding
from ucd_ray.errors import StudyError
from ucd_ray.tune.inspection import inspect
from ucd_ray.tune.places import places

CONNECT_S = 3.0
SKEW_S = 5.0  # leases of drivers and of the service last 20 to 30 seconds by these clocks
DASHBOARD_PORT = 8265


def ports(host: str, port: int) -> Iterator[Finding]:
    """Where `ucd-ray serve` would listen, and where Ray's dashboard does by default."""
    if _is_free(host, port):
        yield Finding("ports", "ok", f"{host}, port {port} (ucd-ray serve) is free")
    elif _is_ours(host, port):
        yield Finding("ports", "ok", f"{host}, port {port}: a ucd-ray service answers")
    else:
        mend = "`ucd-ray serve --port` with another, or end the program that has it"
        told = f"{host}, port {port} (ucd-ray serve) is in use by another program"
        yield Finding("ports", "wrong", told, mend)
    if _is_free("127.0.0.1", DASHBOARD_PORT):
        told = f"127.0.0.1, port {DASHBOARD_PORT} (dashboard of `ray start`) is free"
        yield Finding("ports", "ok", told)
    else:
        told = f"127.0.0.1, port {DASHBOARD_PORT} is in use: by the dashboard of a cluster?"
        yield Finding("ports", "note", told, "`ray start --head --dashboard-port` takes another")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError:
        return False
    return True


def _is_ours(host: str, port: int) -> bool:
    named = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{named}]" if ":" in named else named
    try:
        answer = httpx.get(f"http://{shown}:{port}/healthz", timeout=CONNECT_S)
        return bool(answer.json()["status"] == "ok")
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def server(url: str) -> Iterator[Finding]:
    """A service that somebody runs: it answers, and so do its database and cluster."""
    try:
        answer = httpx.get(f"{url.rstrip('/')}/readyz", timeout=CONNECT_S)
        content = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        mend = "start it with `ucd-ray serve`, or correct --server"
        yield Finding("server", "wrong", f"{url} does not answer as a service: {error}", mend)
        return
    problem = content.get("problem") or content.get("detail")
    if answer.status_code != 200:
        mend = "mend the database that the service uses"
        yield Finding("server", "wrong", f"{url} is not ready: {problem}", mend)
    elif problem:
        mend = "mend the cluster; studies are taken and wait until it answers"
        yield Finding("server", "wrong", f"{url} answers, but starts no study: {problem}", mend)
    else:
        yield Finding("server", "ok", f"{url} answers, with its database and cluster")


def clock(server: str | None, address: str | None) -> Iterator[Finding]:
    """This machine's clock against the database's, the service's and the cluster's."""
    found: dict[str, float | None] = {}
    if not places().database.startswith("sqlite"):
        with contextlib.suppress(StudyError):  # the check of the database says so
            found["the database"] = inspect(places().database).ahead_s
    address = address or os.environ.get("RAY_ADDRESS") or ""
    if address.startswith("http"):
        found[address] = _ahead(address, headers())
    if server:
        found[server] = _ahead(f"{server.rstrip('/')}/healthz")
    known = {name: ahead for name, ahead in found.items() if ahead is not None}
    for name, ahead in known.items():
        told = f"the clock of {name} is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}"
        if abs(ahead) > SKEW_S:
            mend = "set both by NTP: `timedatectl set-ntp true`"
            yield Finding("clock", "wrong", told, mend)
    if not any(abs(ahead) > SKEW_S for ahead in known.values()):
        told = f"agrees with {' and '.join(known)}" if known else "nothing to compare it with"
        yield Finding("clock", "ok", told)


def _ahead(url: str, sent: dict[str, str] | None = None) -> float | None:
    """Seconds by which the `Date` of an answer is ahead; None: no answer, or none with a date."""
    try:
        before = time.time()
        date = httpx.get(url, headers=sent, timeout=CONNECT_S).headers["date"]
        after = time.time()
        there = email.utils.parsedate_to_datetime(date).timestamp()
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError):
        return None
    least, most = there - after, there + 1 - before  # the header has whole seconds
    return least if least > 0 else min(most, 0.0)
