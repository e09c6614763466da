"""`ucd-ray serve` as a user starts it: a study on a real Ray head, and a restart in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.tune.finished import spec_of
from ucd_ray.data.prepare import Prepared
from ucd_ray.service.ray_jobs import job_environment

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Served:
    """One process of `ucd-ray serve`."""

    def __init__(self, home: Path, data: Path) -> None:
        environment = {**os.environ, "UCD_RAY_HOME": str(home), "UCD_RAY_SERVICE_TICK_S": "0.3"}
        command = [
            sys.executable,
            "-m",
            "ucd_ray.cli",
            "serve",
            "--port",
            "0",
            "--data",
            f"tiny={data}",
        ]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self._wait_for_url()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines += iter(self.process.stdout.readline, "")

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(r"serves (http://\S+)", "".join(self.lines)):
                return found.group(1)
            time.sleep(0.1)
        raise AssertionError("".join(self.lines))

    def end(self) -> int:
        """Ends it as `kill` or a container does."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def test_a_study_goes_on_over_a_restart_of_service_and_head(
    tmp_path: Path, shapes: Prepared
) -> None:
    spec = spec_of(shapes.path, trials=1).model_dump(mode="json")
    spec["recipe"]["data.source"] = "tiny"
    served = Served(tmp_path, shapes.path)
    try:
        answer = httpx.post(f"{served.url}/v1/studies", json={"spec": spec}, timeout=60)
        assert answer.status_code == 201, answer.text
        path = f"/v1/studies/{answer.json()['id']}"
        until(served, path, lambda study: study["job"] is not None)
        assert served.end() == 128 + signal.SIGTERM
        served = Served(tmp_path, shapes.path)
        study = until(served, path, lambda study: study["state"] not in ("QUEUED", "RUNNING"))
        told = json.dumps(study["conditions"]) + "".join(served.lines)
        assert (study["state"], study["attempt"]) == ("SUCCEEDED", 2), told
        budget = next(c for c in study["conditions"] if c["type"] == "BudgetExhausted")
        assert budget["reason"] == "TRIALS"
        assert "_raylet" not in Path(f"/proc/{served.process.pid}/maps").read_text()
        drawn = httpx.get(f"{served.url}{path}/plots/predictions?format=png", timeout=120)
        assert drawn.content.startswith(b"\x89PNG"), drawn.text
    finally:
        served.end()


def until(served: Served, path: str, ready: Any) -> dict[str, Any]:
    """The study once it is as wanted."""
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        study: dict[str, Any] = httpx.get(served.url + path, timeout=60).json()
        if ready(study):
            return study
        time.sleep(0.3)
    del study["spec"]
    raise AssertionError(json.dumps(study, indent=1) + "".join(served.lines))


def test_the_environment_of_a_job_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCD_RAY_SERVICE_QUOTAS", "{}")
    monkeypatch.setenv("PGPASSWORD", "secret")
    found = job_environment("postgresql://ann@db/studies")
    assert not [key for key in found if key.startswith(("UCD_RAY_SERVICE_", "PG"))]
