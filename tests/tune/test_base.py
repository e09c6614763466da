"""Runs and studies that start from a base network: the same as from a trained step 0, or refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from tests.conftest import tiny_recipe
from tests.test_train import measured, reports_of, same
from ucd_ray.checkpoint import StepCache, key_text
from ucd_ray.data.prepare import Prepared
from ucd_ray.errors import ConfigError, UcdRayError, WeightsError
from ucd_ray.job import Job
from ucd_ray.models.base import BaseNetwork, channel_ids, check_base, read_class_names
from ucd_ray.models.weights import file_digest
from ucd_ray.train import step_reports
from ucd_ray.tune.cache import about_key
from ucd_ray.tune.places import places
from ucd_ray.tune.prepare import prepare_job
from ucd_ray.tune.run import plan_table, run, run_job
from ucd_ray.tune.space import SearchSpace, build_spec

SHORT = {"optim.iterations_base": 6, "optim.iterations_new": 2}
Values = dict[str, Any]


def at(folder: Path, data: Prepared, **values: Any) -> Job:
    """A run with a step cache in `folder`, and its base network as `prepare_job` would check it."""
    recipe = tiny_recipe(**{**SHORT, "data.source": str(data.path), **values})
    job = Job(
        recipe=recipe,
        data=str(data.path),
        cache=str(folder / "steps"),
        weights=None,
        store=str(folder / "runs"),
        name=("train", "test"),
    )
    path, model = recipe.model.base, recipe.model
    if path is None or model.base_classes is None:
        return job
    channels = channel_ids(
        read_class_names(model.base_classes),
        known=data.classes,
        wanted=recipe.steps.classes_until(0),
        path=model.base_classes,
    )
    options = {"backbone": model.backbone, "output_stride": 16, "width": model.width}
    normalisation = check_base(path, channels, **options)
    return replace(job, base_network=BaseNetwork(path, file_digest(path), channels, normalisation))


def stored(job: Job, step: int) -> dict[str, torch.Tensor]:
    entry = StepCache(job.open_cache()).get(job.step_key(step, precision="float32"))
    assert entry is not None
    return entry.weights


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(shapes: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run from scratch whose step 0 is in its cache."""
    job = at(tmp_path_factory.mktemp("trained"), shapes)
    reports_of(job.base())
    return job


@pytest.fixture(scope="module")
def exported(trained: Job, shapes: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Values:
    """The keys that import the stored step 0 as it lies in the cache."""
    (file,) = Path(trained.cache).rglob("*.safetensors")
    names = tmp_path_factory.mktemp("exported") / "classes.txt"
    names.write_text("\n".join(shapes.classes[:9]))
    return {"model.base": str(file), "model.base_classes": str(names)}


def scores(reports: list[Values]) -> list[Values]:
    """The step reports without what tells an imported step from a trained one."""
    left_out = ("iterations", "images", "entries", "environment", "run_epoch")
    return [{k: v for k, v in report.items() if k not in left_out} for report in measured(reports)]


def test_a_run_from_the_exported_base_step_is_the_run_that_trained_it(
    trained: Job, exported: Values, shapes: Prepared, tmp_path: Path
) -> None:
    imported = at(tmp_path, shapes, **exported)
    found, expected = reports_of(imported), reports_of(trained)
    assert same(scores(found), scores(expected))
    assert all(equal(stored(imported, step), stored(trained, step)) for step in range(3))


def test_step_0_is_a_reported_step_without_updates(
    exported: Values, shapes: Prepared, tmp_path: Path
) -> None:
    job = at(tmp_path, shapes, **exported)
    reports = reports_of(job)
    key = json.loads(key_text(job.step_key(0, precision="float32")))
    digest = file_digest(exported["model.base"])[:12]
    assert about_key(key) == ("shapes", "step 0: 8", f"base network {digest}, float32")
    assert any("step 0 is the base network" in note for note in reports[0]["notes"])
    steps = list(step_reports(reports))
    assert [step["iterations"] for step in steps] == [0, 2, 2]
    assert steps[0]["images"] == 0 < steps[1]["images"]
    assert [step["cached"] for step in steps] == [False] * 3
    assert {report["step"] for report in reports if report["kind"] == "epoch"} == {1, 2}
    again = list(step_reports(reports_of(at(tmp_path, shapes, **exported, method="mib"))))
    assert [step["cached"] for step in again] == [True, False, False]


def test_the_order_of_channels_in_the_file_does_not_matter(
    exported: Values, shapes: Prepared, tmp_path: Path
) -> None:
    state = load_file(exported["model.base"])
    order = [0, *range(8, 0, -1)]
    for kind in ("weight", "bias"):
        state[f"classifiers.0.{kind}"] = state[f"classifiers.0.{kind}"][order]
    save_file(state, tmp_path / "turned.safetensors")
    names = tmp_path / "turned.yaml"
    names.write_text("".join(f"- {shapes.classes[channel]}\n" for channel in order))
    turned = {"model.base": str(tmp_path / "turned.safetensors"), "model.base_classes": str(names)}
    one, other = at(tmp_path, shapes, **exported), at(tmp_path, shapes, **turned)
    assert same(scores(reports_of(one)), scores(reports_of(other)))
    assert all(equal(stored(one, step), stored(other, step)) for step in range(3))


@pytest.mark.parametrize("method", ["ewc", "plop", "sdr+ucd"])
def test_memories_that_a_pass_collects_work(
    exported: Values, shapes: Prepared, tmp_path: Path, method: str
) -> None:
    job = at(tmp_path, shapes, **exported, method=method)
    assert [step["step"] for step in step_reports(reports_of(job))] == [0, 1, 2]


def test_a_memory_of_step_0_is_not_that_of_other_crops(
    exported: Values, shapes: Prepared, tmp_path: Path
) -> None:
    def passes(**values: Any) -> list[int]:
        job = at(tmp_path, shapes, **exported, method="ewc", **values)
        return [report["step"] for report in reports_of(job) if report["kind"] == "pass"]

    assert passes() == [1, 2]
    assert passes(**{"ewc.weight": 3.0}) == [2]
    assert passes(**{"data.crop": 96}) == [1, 2]


# What is refused before anything starts.

NAMED = {"model.base": "a.pth", "model.base_classes": "a.txt"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "pi"}, r"'pi' cannot start from --base.*use ewc"),
        ({"method": "rw+ucd"}, r"'rw\+ucd' cannot start from --base.*use ewc"),
        ({"method": "joint"}, r"'joint' trains all classes in one step"),
        ({"model.base_classes": None}, r"--base-classes \(model.base_classes\) is absent"),
        ({"model.base": None}, r"--base \(model.base\) is absent"),
    ],
)
def test_recipes_that_cannot_start_from_a_base_network_are_refused(
    values: Values, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_recipe(**{**NAMED, **values})


def test_a_scenario_of_one_step_is_refused() -> None:
    alone = {"scenario": {"dataset": "shapes", "steps": [[1, 2]]}, "method": "finetune"}
    with pytest.raises(ConfigError, match="has step 0 only, so nothing is left to learn"):
        tiny_recipe(**NAMED, **alone)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"model.base": "/absent.pth"}, WeightsError, r"cannot read weights '/absent.pth'"),
        ({"model.base_classes": "/absent.txt"}, ConfigError, r"--base-classes '/absent.txt'"),
        ({"model.width": 32}, WeightsError, r"not the network of this recipe.*\[16,.*not \[32,"),
        ({"model.backbone": "resnet18"}, WeightsError, r"not the network.*unknown.*backbone"),
        ({"scenario": "shapes-6-2"}, ConfigError, r"2 not learned in step 0"),
        ({"model.weights_mean": (0.5, 0.5, 0.5)}, ConfigError, r"--weights-mean.*leave it out"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    trained: Job, exported: Values, values: Values, error: type[UcdRayError], message: str
) -> None:
    recipe = trained.recipe.with_overrides({**exported, **values})
    with pytest.raises(error, match=message):
        prepare_job(recipe, places(), name=("train", "test"), workers=1)
    assert not Path(places().steps).exists()


@pytest.mark.parametrize("key", ["optim.lr_base", "model.width"])
def test_what_only_shapes_step_0_is_not_searched(key: str) -> None:
    space = SearchSpace.model_validate(
        {"scenario": "shapes-8-4", "search": {key: {"choices": [8, 16]}}}
    )
    with pytest.raises(ConfigError, match=f"'{key}' cannot be searched.*leave --base out"):
        build_spec(space, overrides=NAMED)


# The same through the commands' own functions.


def test_a_run_checks_imports_and_trains(trained: Job, exported: Values) -> None:
    recipe = trained.recipe.with_overrides(exported)
    text = Console(width=400, record=True, file=io.StringIO())
    text.print(plan_table(run_job(recipe)))
    plan = text.export_text()
    digest = file_digest(exported["model.base"])[:12]
    told = f"base step: imported from {exported['model.base']} (digest {digest}); not yet in"
    assert "".join(told.split()) in "".join(plan.split())  # the caption is wrapped
    rows = [line.split("│") for line in plan.splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in rows[0]][6:8] == ["0", "0"]
    steps = run(recipe).steps
    assert same(steps[0]["val"], next(step_reports(reports_of(trained)))["val"])


def test_the_check_leaves_the_driver_without_torch(trained: Job, exported: Values) -> None:
    code = (
        "import json, sys\n"
        "from ucd_ray.recipe import Recipe\n"
        "from ucd_ray.tune.places import places\n"
        "from ucd_ray.tune.prepare import prepare_job\n"
        "recipe = Recipe.from_flat(json.loads(sys.argv[1]))\n"
        "job = prepare_job(recipe, places(), name=('train', 'test'), workers=1)\n"
        "print(len(job.base_network.channels), 'torch' in sys.modules)\n"
    )
    flat = json.dumps(trained.recipe.with_overrides(exported).flat())
    done = subprocess.run(
        [sys.executable, "-c", code, flat], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["9", "False"]
