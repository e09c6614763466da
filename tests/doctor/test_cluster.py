from __future__ import annotations

import os
import socket
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.doctor.answering import answering
from ucd_ray.doctor import cluster, network
from ucd_ray.doctor.finding import Finding


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", *cluster.FILES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def token(own_home: Path) -> Path:
    """The token of a head of our own."""
    own_home.mkdir()
    path = own_home / "ray-token"
    path.write_text("secret")
    path.chmod(0o600)
    return path


def one(found: object) -> Finding:
    (finding,) = found  # type: ignore[misc]
    assert isinstance(finding, Finding)
    return finding


def test_a_token_that_only_its_owner_reads_is_fine(token: Path) -> None:
    assert one(cluster.token()).state == "ok"
    token.unlink()
    assert one(cluster.token()).state == "ok"  # a head makes one


def test_a_token_that_others_read_is_named_with_the_command_that_helps(token: Path) -> None:
    token.chmod(0o644)
    found = one(cluster.token())
    assert found.state == "wrong" and "0644" in found.found and found.mend == f"chmod 600 {token}"
    token.chmod(0o600)
    token.write_text("\n")
    assert "is empty" in one(cluster.token()).found


@pytest.mark.parametrize("name", cluster.FILES)
def test_a_token_file_that_is_not_there_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, str(tmp_path / "absent"))
    found = one(cluster.token())
    assert found.state == "wrong" and name in found.found and name in found.mend


def test_a_token_in_the_environment_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    found = one(cluster.token())
    assert found.state == "note" and "secret" not in found.found + found.mend


def test_a_cluster_of_our_version_is_fine(token: Path) -> None:
    answers = {"/api/version": (200, {"ray_version": version("ray")})}
    with answering(answers, token="secret") as url:
        assert one(cluster.cluster(url)).state == "ok"
        token.write_text("another")
        found = one(cluster.cluster(url))
    assert found.state == "wrong" and "refuses our token" in found.found


def test_a_cluster_of_another_version_is_named() -> None:
    with answering({"/api/version": (200, {"ray_version": "2.1.0"})}) as url:
        found = one(cluster.cluster(url))
    assert found.state == "wrong" and "2.1.0" in found.found and "ray==2.1.0" in found.mend


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "http://127.0.0.1:9"])
def test_a_cluster_that_does_not_answer_is_named(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = one(cluster.cluster(None))
    assert found.state == "wrong" and address in found.found and "RAY_ADDRESS" in found.mend


def test_what_is_no_cluster_is_named() -> None:
    with answering({}) as url:
        assert "no Ray dashboard" in one(cluster.cluster(url)).found
    assert "no address" in one(cluster.cluster("head:port")).found


def test_a_free_port_is_fine_and_one_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.listen()
        port = other.getsockname()[1]
        found = [f for f in network.ports("127.0.0.1", port) if str(port) in f.found]
        assert found[0].state == "wrong" and "--port" in found[0].mend
    assert one(f for f in network.ports("127.0.0.1", port) if str(port) in f.found).state == "ok"


def test_a_service_that_has_its_port_is_recognised() -> None:
    with answering({"/healthz": (200, {"status": "ok"})}) as url:
        port = int(url.rpartition(":")[2])
        found = one(f for f in network.ports("127.0.0.1", port) if str(port) in f.found)
    assert found.state == "ok" and "service answers" in found.found


@pytest.mark.parametrize(
    ("answer", "state", "told"),
    [
        ((200, {"status": "ok", "problem": None}), "ok", "answers"),
        ((200, {"status": "ok", "problem": "no head"}), "wrong", "no head"),
        ((503, {"detail": "the database is away"}), "wrong", "the database is away"),
    ],
    ids=["well", "no-cluster", "no-database"],
)
def test_a_service_tells_what_it_lacks(
    answer: tuple[int, dict[str, object]], state: str, told: str
) -> None:
    with answering({"/readyz": answer}) as url:
        found = one(network.server(url))
    assert found.state == state and told in found.found


@pytest.mark.parametrize(
    ("ahead", "word"), [(0, None), (60, "ahead"), (-60, "behind")], ids=["right", "fast", "slow"]
)
def test_a_clock_that_differs_is_named(ahead: float, word: str | None) -> None:
    with answering({"/healthz": (200, {})}, ahead_s=ahead) as url:
        found = one(network.clock(url, None))
    if word is None:
        assert found.state == "ok" and url in found.found
    else:
        assert found.state == "wrong" and word in found.found and "NTP" in found.mend
        assert 58 < float(found.found.split(" s ")[0].split()[-1]) < 62


def test_a_path_that_cannot_be_read_is_named(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be read" in one(cluster.token()).found
