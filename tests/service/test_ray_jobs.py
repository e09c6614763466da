"""What the service asks of a Ray cluster over HTTP, and what it makes of the answers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ucd_ray.errors import ClusterError, ConfigError
from ucd_ray.service.jobs import JobStatus, Resources
from ucd_ray.service.ray_api import RayApi
from ucd_ray.service.ray_jobs import RayJobs, cluster
from ucd_ray.service.settings import Settings

URL = "http://head:8265"
FAILED = "Traceback (most recent call last):\n  File x\nValueError: it was refused\n"
Answer = httpx.Response | Exception


class Dashboard(httpx.BaseTransport):
    """Answers as it is told, by method and path, and keeps the requests."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers[f"{request.method} {request.url.path}"]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)


@pytest.fixture(autouse=True)
def _ray_without_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODE", "TOKEN", "TOKEN_PATH"):
        monkeypatch.delenv(f"RAY_AUTH_{name}", raising=False)
    monkeypatch.delenv("RAY_ENABLE_K8S_TOKEN_AUTH", raising=False)


def asking(answers: dict[str, Answer], url: str = URL) -> tuple[RayJobs, Dashboard]:
    dashboard = Dashboard(answers)
    return RayJobs(RayApi(url, transport=dashboard), "sqlite:////db", "python3"), dashboard


def ok(**content: Any) -> httpx.Response:
    return httpx.Response(200, json=content)


def said(status: int, text: str) -> httpx.Response:
    return httpx.Response(status, text=text)


def nodes(*found: dict[str, Any], **more: Any) -> httpx.Response:
    listed = {"result": found, "total": len(found), "num_after_truncation": len(found), **more}
    return ok(result=True, msg="", data={"result": listed})


def test_a_job_is_submitted_with_its_study_and_the_places_of_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UCD_RAY_HOME", "/home/of")
    jobs, dashboard = asking({"POST /api/jobs/": ok(submission_id="ucd-a-1")})
    jobs.submit("ucd-a-1", "my study")
    body = json.loads(dashboard.requests[0].content)
    assert shlex.split(body["entrypoint"]) == ["python3", "-m", "ucd_ray.service.job", "my study"]
    assert (body["submission_id"], body["metadata"]) == ("ucd-a-1", {"study": "my study"})
    environment = body["runtime_env"]["env_vars"]
    assert environment["UCD_RAY_HOME"] == "/home/of"
    assert environment["UCD_RAY_DATABASE"] == "sqlite:////db"


@pytest.mark.parametrize("refusal", [said(500, FAILED), httpx.ReadTimeout("timed out")])
def test_a_job_that_is_there_already_is_not_submitted_again(refusal: Answer) -> None:
    answers = {"POST /api/jobs/": refusal, "GET /api/jobs/ucd-a-1": ok(status="RUNNING")}
    asking(answers)[0].submit("ucd-a-1", "study")
    answers["GET /api/jobs/ucd-a-1"] = said(404, "Job ucd-a-1 does not exist")
    with pytest.raises(ClusterError, match=r"refused|timed out"):
        asking(answers)[0].submit("ucd-a-1", "study")


def test_the_status_of_a_job() -> None:
    path = "GET /api/jobs/j"
    failed = ok(status="FAILED", message="it ended", driver_exit_code=78, type="SUBMISSION")
    assert asking({path: failed})[0].status("j") == JobStatus("FAILED", "it ended", 78)
    early = ok(status="PENDING", message=None, driver_exit_code=None)
    assert asking({path: early})[0].status("j") == JobStatus("PENDING")
    assert asking({path: said(404, "Job j does not exist")})[0].status("j") is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (said(404, "404 page not found"), "answers 404: 404 page not found"),
        (said(404, "Job jj does not exist"), "answers 404"),
        (said(500, FAILED), "answers 500: ValueError: it was refused$"),
        (said(502, ""), "answers 502: Bad Gateway$"),
        (said(401, "Unauthorized: Missing"), "answers 401: Unauthorized.*--ray-token-file names"),
        (said(403, "Forbidden"), "answers 403: Forbidden.*--ray-token-file names"),
        (said(307, ""), "answers 307"),
        (said(200, "<html>"), "its answer to /api/jobs/j is not one of Ray's"),
        (ok(status="DREAMING"), "is not one of Ray's"),
        (httpx.ConnectError("Connection refused\nmore"), "Connection refused$"),
        (httpx.ReadTimeout(""), "ReadTimeout$"),
        (httpx.RemoteProtocolError("gone"), "gone$"),
    ],
)
def test_what_is_no_word_on_a_job_is_an_error_of_one_line(answer: Answer, told: str) -> None:
    with pytest.raises(ClusterError, match=f"^the Ray cluster at {URL} failed: .*{told}"):
        asking({"GET /api/jobs/j": answer})[0].status("j")


def test_a_job_is_stopped_and_its_log_read() -> None:
    answers = {"POST /api/jobs/j/stop": ok(stopped=True), "GET /api/jobs/j/logs": ok(logs="a\nb")}
    jobs, dashboard = asking(answers)
    jobs.stop("j")
    assert jobs.logs("j") == "a\nb"
    assert len(dashboard.requests) == 2
    with pytest.raises(ClusterError, match="answers 404: Job j does not exist"):
        asking({"POST /api/jobs/j/stop": said(404, "Job j does not exist")})[0].stop("j")


def test_the_resources_are_those_of_living_nodes() -> None:
    found = nodes(
        {"state": "ALIVE", "resources_total": {"CPU": 4.0, "GPU": 2.0, "memory": 1e9}},
        {"state": "ALIVE", "resources_total": {"CPU": 1.5, "node:127.0.0.1": 1}},
        {"state": "ALIVE", "resources_total": None},
        {"state": "DEAD", "resources_total": {"CPU": 64.0, "GPU": 8.0}},
    )
    jobs, dashboard = asking({"GET /api/v0/nodes": found})
    assert jobs.resources() == Resources(5.5, 2.0)
    assert dict(dashboard.requests[0].url.params) == {"detail": "true", "limit": "10000"}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (nodes(total=3), "its list of nodes is cut short"),
        (nodes(partial_failure_warning="2 of 3 answer"), "failed: 2 of 3 answer"),
        (httpx.Response(500, json={"result": False, "msg": "GCS is away"}), "500: GCS is away"),
    ],
)
def test_resources_that_are_not_known_in_full_are_an_error(answer: Answer, told: str) -> None:
    with pytest.raises(ClusterError, match=told):
        asking({"GET /api/v0/nodes": answer})[0].resources()


def test_every_request_has_a_time_limit_and_the_url_of_the_dashboard_as_it_was_given() -> None:
    answers = {
        "POST /ray/api/jobs/": ok(),
        "POST /ray/api/jobs/j/stop": ok(),
        "GET /ray/api/jobs/j": ok(status="RUNNING"),
        "GET /ray/api/jobs/j/logs": ok(logs=""),
        "GET /ray/api/v0/nodes": nodes(),
    }
    jobs, dashboard = asking(answers, "https://lab.example/ray/")
    calls: tuple[Callable[[], Any], ...] = (
        *(lambda: jobs.submit("j", "s"), lambda: jobs.stop("j"), lambda: jobs.status("j")),
        *(lambda: jobs.logs("j"), jobs.resources),
    )
    for call in calls:
        call()
    assert len(dashboard.requests) == len(answers)
    for request in dashboard.requests:
        assert None not in request.extensions["timeout"].values()
        assert str(request.url).startswith("https://lab.example/ray/api/")


@pytest.mark.parametrize("url", ["head:8265", "head", "ray://head:10001", "http://", "http://a:b"])
def test_a_dashboard_that_is_no_url_is_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(ConfigError, match=f"ray_dashboard '{url}' must be a URL such as http"):
        RayApi(url)


def sent(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str | None:
    """The header that carries a token."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    jobs, dashboard = asking({"GET /api/jobs/j/logs": ok(logs="")})
    jobs.logs("j")
    return dashboard.requests[0].headers.get("authorization")


def test_the_token_is_found_where_ray_looks_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("usual\n")
    file = tmp_path / "token"
    file.write_text(" named \n")
    assert sent(monkeypatch) is None
    assert sent(monkeypatch, RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN_PATH=str(file)) is None
    assert sent(monkeypatch, RAY_AUTH_MODE="Token") == "Bearer named"
    file.write_text("renewed")
    assert sent(monkeypatch) == "Bearer renewed"
    assert sent(monkeypatch, RAY_AUTH_TOKEN=" own ") == "Bearer own"
    assert sent(monkeypatch, RAY_AUTH_TOKEN="", RAY_AUTH_TOKEN_PATH="") == "Bearer usual"


@pytest.mark.parametrize("text", ["", "two\nlines", "sécret", "two words"])
def test_a_text_that_is_no_token_is_not_sent_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ClusterError, match=r"token', Ray's token, is empty or has") as refused:
        sent(monkeypatch, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(file))
    assert not text or text not in str(refused.value)


def test_a_token_file_that_is_gone_is_an_error_of_the_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = str(tmp_path / "absent")
    with pytest.raises(ClusterError, match="absent', the file of Ray's token: No such file"):
        sent(monkeypatch, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=path)


def test_a_cluster_of_the_settings_is_not_asked_before_it_is_used(settings: Settings) -> None:
    remote = settings.model_copy(update={"ray_dashboard": "http://127.0.0.1:9"})
    with cluster(remote) as (jobs, dashboard):
        assert dashboard == "http://127.0.0.1:9"
        with pytest.raises(ClusterError, match=r"the Ray cluster at http://127.0.0.1:9 failed"):
            jobs.resources()
