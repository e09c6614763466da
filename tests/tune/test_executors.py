"""What becomes of a trial that cannot be trained; no cluster is started."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import MakeJob
from ucd_ray.errors import ConfigError, TrainingDiverged
from ucd_ray.tune.executors import Gang, RunPerTrial, failure, run_trial, unpack


def test_a_trial_whose_values_do_not_fit_together_says_so(
    make_job: MakeJob, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", results.append)
    executor = RunPerTrial(make_job(), Gang(1, 1.0, 0.0), str(tmp_path))
    run_trial({"number": 3, "params": {"data.scale_min": 0.9, "data.scale_max": 0.5}}, executor)
    report = unpack(results[0])
    assert report is not None
    assert report["code"] == "USER_ERROR"
    assert "scale_min (0.9) is above scale_max (0.5)" in report["reason"]


def test_failures_carry_their_code() -> None:
    assert failure(TrainingDiverged("kd became nan"))["code"] == "NAN"
    assert failure(ConfigError("no"))["code"] == "USER_ERROR"
    assert failure(OSError("disk"))["reason"] == "OSError: disk"


def test_synchronised_norms_need_cards(make_job: MakeJob) -> None:
    recipe = make_job(**{"model.norm": "sync"}).recipe
    with pytest.raises(ConfigError, match=r"model\.norm \(sync\) needs GPUs"):
        Gang(2, 1.0, 0.0).check(recipe)
    Gang(2, 1.0, 1.0).check(recipe)


def test_workers_ask_for_cards_only_if_they_get_some() -> None:
    assert Gang(2, 1.0, 0.0).resources_per_worker() == {"CPU": 1.0}
    assert Gang(2, 1.0, 0.5).resources_per_worker() == {"CPU": 1.0, "GPU": 0.5}
