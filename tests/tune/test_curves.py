"""Curves for TensorBoard, as TensorBoard reads them."""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import tiny_recipe
from tests.tune.test_bridge import spec_of
from ucd_ray.data.prepare import Prepared
from ucd_ray.errors import ConfigError
from ucd_ray.tune.curves import Curves
from ucd_ray.tune.progress import Progress
from ucd_ray.tune.run import run


def epoch(number: int, loss: float, value: float | None = None) -> dict[str, Any]:
    return {"run_epoch": number, "losses": {"ce": loss, "kd": 2 * loss}, "lr": 0.5, "value": value}


def step(number: int, value: float, **more: Any) -> dict[str, Any]:
    means = {"miou_all": value, "miou_old": float("nan")}
    return {"run_epoch": number, "val": {"means": means}, "select": {"means": means}, **more}


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, round(event.value, 4)) for event in found.Scalars(tag)]


def tags(folder: Path) -> set[str]:
    found = EventAccumulator(str(folder))
    found.Reload()
    return set(found.Tags()["scalars"])


def test_every_run_has_a_directory_with_losses_lr_objective_and_miou(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "curves")
    curves.event("epoch", "base step", epoch(1, 3.0))
    curves.event("started", "trial 0", {})
    curves.event("epoch", "trial 0", epoch(2, 1.5, value=40.0))
    curves.event("step", "trial 0", step(2, 41.0))
    curves.close()
    base, trial = tmp_path / "curves/base-step", tmp_path / "curves/trial-0"
    assert tags(base) == {"loss/ce", "loss/kd", "lr"}
    assert tags(trial) == {
        *("loss/ce", "loss/kd", "lr", "objective", "val/miou_all", "select/miou_all"),
    }
    assert points(trial, "loss/kd") == [(2, 3.0)]
    assert points(trial, "objective") == [(2, 40.0)]
    assert points(trial, "val/miou_all") == [(2, 41.0)]


def test_a_trial_that_goes_on_under_another_driver_replaces_what_it_repeats(tmp_path: Path) -> None:
    first = Curves(tmp_path)
    first.event("step", "trial 0", step(1, 30.0, own=False))
    for number in (2, 3, 4):
        first.event("epoch", "trial 0", epoch(number, 10.0 * number, value=1.0))
    first.close()  # epoch 4 was reported, but its checkpoint not written
    again = Curves(tmp_path)
    again.event("step", "trial 0", step(1, 30.0, own=True))
    for number in (4, 5):
        again.event("epoch", "trial 0", epoch(number, float(number), value=2.0))
    again.event("step", "trial 0", step(5, 50.0, own=False))
    again.close()
    folder = tmp_path / "trial-0"
    assert points(folder, "loss/ce") == [(2, 20.0), (3, 30.0), (4, 4.0), (5, 5.0)]
    assert points(folder, "val/miou_all") == [(1, 30.0), (5, 50.0)]


def test_a_trial_whose_workers_were_lost_replaces_what_it_repeats(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    curves.event("epoch", "trial 0", epoch(1, 1.0))
    curves.event("epoch", "trial 0", epoch(2, 2.0))
    curves.event("lost", "trial 0", {"nodes": ["a"]})
    curves.event("epoch", "trial 0", epoch(2, 9.0))
    curves.close()
    assert points(tmp_path / "trial-0", "loss/ce") == [(1, 1.0), (2, 9.0)]


def test_a_study_that_is_first_asked_for_curves_when_it_goes_on_has_them_from_there(
    tmp_path: Path,
) -> None:
    curves = Curves(tmp_path)
    curves.event("step", "trial 0", step(1, 30.0, own=True))
    curves.event("epoch", "trial 0", epoch(4, 1.0))
    curves.close()
    assert points(tmp_path / "trial-0", "val/miou_all") == [(1, 30.0)]
    assert points(tmp_path / "trial-0", "loss/ce") == [(4, 1.0)]


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"cannot write --tensorboard '.*file/x': Not a directory"
    ):
        Curves(tmp_path / "file/x")


def test_without_tensorboard_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def absent(name: str, *arguments: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ImportError(name=name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(
        ConfigError, match=r"needs TensorBoard: `pip install 'ucd-ray\[tensorboard\]'`"
    ):
        Curves(tmp_path / "curves")
    assert not (tmp_path / "curves").exists()


def test_a_disk_that_fills_up_ends_the_curves_and_not_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = Curves(tmp_path)
    told: list[str] = []
    curves.on_failure = told.append
    curves.event("epoch", "trial 0", epoch(1, 1.0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ucd_ray.tune.curves._Run.add", full)
    for number in (2, 3):
        curves.event("epoch", "trial 0", epoch(number, 1.0))
    curves.close()
    assert told == [f"no more curves for TensorBoard in '{tmp_path}': No space left on device"]


def test_the_driver_of_a_study_passes_its_events_on(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "curves")
    report = {"step": 1, "epoch": 1, "epochs": 2, "images_per_s": 1.0, "seconds_left": 0.0}
    with Progress(spec_of(), Console(quiet=True), finished=Counter(), curves=curves) as progress:
        progress.event("epoch", "trial 3", {**report, **epoch(4, 2.0, value=7.0)})
    assert points(tmp_path / "curves/trial-3", "objective") == [(4, 7.0)]


def test_a_run_writes_one_directory_with_all_its_epochs(tmp_path: Path, shapes: Prepared) -> None:
    recipe = tiny_recipe(**{"data.source": str(shapes.path), "method": "finetune"})
    result = run(recipe, tensorboard=tmp_path / "curves")
    (folder,) = (tmp_path / "curves").iterdir()
    assert folder.name.startswith("shapes-8-2-overlapped-finetune-")
    rates = points(folder, "lr")
    assert [step for step, _ in rates] == [1, 2, 3, 4, 5, 6]
    assert rates[1][1] < rates[0][1] < recipe.optim.lr_base
    assert rates[2][1] < recipe.optim.lr_new
    value = round(result.means()["miou_all"], 4)
    assert points(folder, "val/miou_all")[-1] == (6, pytest.approx(value, abs=1e-3))
    assert [step for step, _ in points(folder, "val/miou_old")] == [4, 6]
