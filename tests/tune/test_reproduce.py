"""What is not as it was when a recipe file was written, and whether its numbers came back."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from tests.conftest import MakeJob
from ucd_ray.environment import environment
from ucd_ray.errors import ConfigError
from ucd_ray.job import Job
from ucd_ray.tune.recipe_file import RecipeFile
from ucd_ray.tune.reproduce import as_before, verdict, warnings
from ucd_ray.tune.run import RunResult

NAN = float("nan")


def file_of(job: Job, **values: Any) -> RecipeFile:
    """The file of a job's recipe, trained here."""
    here = environment(precision="float32")
    content = {
        "study": "s",
        "trial": 4,
        "recipe": job.recipe.flat(),
        "inputs": job.inputs(),
        "trained": [{"steps": [0, 1, 2], **here}],
        "measured": [{"step": 0, "select": {"miou_all": 5.0}, "val": {"miou_all": 6.0}}],
    }
    return RecipeFile.model_validate({**content, **values})


def said(file: RecipeFile, job: Job, **options: bool) -> tuple[Job, str]:
    console = Console(width=500)
    with console.capture() as captured:
        found = as_before(file, job, console=console, **options)
    return found, captured.get()


def test_nothing_is_said_where_all_is_as_it_was(make_job: MakeJob) -> None:
    job = make_job()
    found, text = said(file_of(job), job)
    assert text == ""
    threads = environment(precision="float32")["threads"]
    assert found.threads == (threads,) * 3


def test_other_data_are_refused_unless_asked_for(make_job: MakeJob) -> None:
    job = make_job()
    file = file_of(job, inputs={**job.inputs(), "data": "f" * 64, "weights": "a" * 64})
    with pytest.raises(ConfigError) as error:
        as_before(file, job, console=Console(quiet=True))
    text = str(error.value)
    assert "trial 4 of study 's' was trained on other inputs" in text
    assert f"data set ffffffffffff there, {job.prepared.fingerprint[:12]} here (--data)" in text
    assert "file of pretrained weights aaaaaaaaaaaa there, none here (--weights)" in text
    assert "--other-data" in text
    _, said_now = said(file, job, other_data=True)
    assert said_now.startswith("warning: data set ffffffffffff there")


def test_other_versions_and_machines_are_warned_of(make_job: MakeJob) -> None:
    job = make_job()
    here = environment(precision="float32")
    packages = {**here["packages"], "torch": "1.0.0"}
    parts = [
        {"steps": [0], **here, "packages": packages},
        {"steps": [1, 2], **here, "hardware": {**here["hardware"], "cpu": "an abacus"}},
    ]
    _, text = said(file_of(job, trained=parts), job)
    first, second = text.splitlines()
    assert first.startswith("warning: step 0 trained otherwise: torch 1.0.0 there, ")
    assert second.startswith("warning: step 1, 2 trained otherwise: cpu an abacus there, ")


def test_a_gpu_without_determinism_and_an_unknown_origin_are_warned_of(make_job: MakeJob) -> None:
    job = make_job(**{"compute.deterministic": False})
    here = environment(precision="bfloat16")
    gpu = {"steps": [0, 1, 2], **here, "hardware": {**here["hardware"], "device": "H100"}}
    lines = warnings(file_of(job, trained=[gpu]), job.recipe)
    assert any("GPU without compute.deterministic" in line for line in lines)
    assert warnings(file_of(job, trained=[]), job.recipe) == [
        "the file does not say what it was trained with; numbers may differ"
    ]
    assert warnings(file_of(job, trained=[], measured=[]), job.recipe) == []


def result(job: Job, **val: float) -> RunResult:
    step = {"step": 0, "select": {"means": {"miou_all": 5.0}}, "val": {"means": val}}
    return RunResult(job.recipe, [step])


def test_the_verdict_tells_the_same_numbers_from_the_first_that_differ(make_job: MakeJob) -> None:
    job = make_job()
    measured = {"step": 0, "select": {"miou_all": 5.0}, "val": {"miou_all": 6.0, "miou_old": None}}
    file = file_of(job, measured=[measured])
    assert verdict(file, result(job, miou_all=6.0, miou_old=NAN)) == (
        "the same numbers as trial 4 of study 's', to the last digit, after all steps, mIoU 6.00 on val"
    )
    assert verdict(file, result(job, miou_all=6.25, miou_old=NAN)) == (
        "not the numbers of trial 4 of study 's': after step 0 miou_all on val was 6, is 6.25"
    )
    assert "miou_old on val was none, is 3" in verdict(
        file, result(job, miou_all=6.0, miou_old=3.0)
    )
