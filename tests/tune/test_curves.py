"""Curves for TensorBoard, as TensorBoard reads them."""

from __future__ import annotations

import builtins
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import tiny_recipe
from tests.tune.test_bridge import spec_of
from tests.tune.told import curves_below
from ucd_ray.data.prepare import Prepared
from ucd_ray.errors import ConfigError
from ucd_ray.tune.curves import Curves
from ucd_ray.tune.event_data import event_data
from ucd_ray.tune.progress import Progress
from ucd_ray.tune.run import run


def epoch(number: int, loss: float, value: float | None = None) -> dict[str, Any]:
    return {"run_epoch": number, "losses": {"ce": loss, "kd": 2 * loss}, "lr": 0.5, "value": value}


def step(number: int, value: float, **more: Any) -> dict[str, Any]:
    means = {"miou_all": value, "miou_old": float("nan")}
    return {"run_epoch": number, "val": {"means": means}, "select": {"means": means}, **more}


def hear(curves: Curves, kind: str, who: str, report: dict[str, Any], **more: float) -> None:
    """An event as a driver tells it."""
    curves.event(kind, event_data(kind, who, report), **more)


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
    hear(curves, "epoch", "base step", epoch(1, 3.0))
    hear(curves, "started", "trial 0", {})
    hear(curves, "epoch", "trial 0", epoch(2, 1.5, value=40.0))
    hear(curves, "step", "trial 0", step(2, 41.0))
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
    hear(first, "step", "trial 0", step(1, 30.0, own=False))
    for number in (2, 3, 4):
        hear(first, "epoch", "trial 0", epoch(number, 10.0 * number, value=1.0))
    first.close()  # epoch 4 was reported, but its checkpoint not written
    again = Curves(tmp_path)
    hear(again, "step", "trial 0", step(1, 30.0, own=True))
    for number in (4, 5):
        hear(again, "epoch", "trial 0", epoch(number, float(number), value=2.0))
    hear(again, "step", "trial 0", step(5, 50.0, own=False))
    again.close()
    folder = tmp_path / "trial-0"
    assert points(folder, "loss/ce") == [(2, 20.0), (3, 30.0), (4, 4.0), (5, 5.0)]
    assert points(folder, "val/miou_all") == [(1, 30.0), (5, 50.0)]


def test_a_trial_whose_workers_were_lost_replaces_what_it_repeats(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    hear(curves, "epoch", "trial 0", epoch(1, 1.0))
    hear(curves, "epoch", "trial 0", epoch(2, 2.0))
    hear(curves, "lost", "trial 0", {"nodes": ["a"]})
    hear(curves, "epoch", "trial 0", epoch(2, 9.0))
    curves.close()
    assert points(tmp_path / "trial-0", "loss/ce") == [(1, 1.0), (2, 9.0)]


def test_a_study_that_is_first_asked_for_curves_when_it_goes_on_has_them_from_there(
    tmp_path: Path,
) -> None:
    curves = Curves(tmp_path)
    hear(curves, "step", "trial 0", step(1, 30.0, own=True))
    hear(curves, "epoch", "trial 0", epoch(4, 1.0))
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


def test_a_disk_that_fills_up_ends_the_curves_and_is_told_once(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from tests.tune.test_curves import epoch, hear
from ucd_ray.tune.curves import Curves
curves = Curves(Path(sys.argv[1]))
curves.on_failure = print
hear(curves, "epoch", "trial 0", epoch(1, 1.0))
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
for number in range(2, 40):
    for trial in range(3):
        hear(curves, "epoch", f"trial {trial}", epoch(number, 1.0))
curves.close()
print("goes on")
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = f"no more curves for TensorBoard in '{tmp_path}': File too large"
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, [told, "goes on"], "")
    assert points(tmp_path / "trial-0", "loss/ce")[:2] == [(1, 1.0), (2, 1.0)]


def history(epochs: int, *, again: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """A trial whose workers were lost after some epochs, if `again`: it goes on after that epoch."""
    told = [("started", {}), ("start", {"first_step": 1}), ("step", step(2, 9.0, own=False))]
    for number in range(3, epochs + 1):
        told.append(("epoch", epoch(number, 1 / number, value=float(number))))
        if number == 5 and again:
            told += [("lost", {"nodes": ["a"]}), ("start", {"first_step": 1})]
            told += [("step", step(2, 9.0, own=True))]
            told += [("epoch", epoch(n, 1 / n, value=float(n))) for n in range(again + 1, 6)]
    return [*told, ("step", step(epochs, 8.0, own=False))]


def replayed(folder: Path, events: list[tuple[str, dict[str, Any]]], study: str = "abc") -> None:
    curves = Curves(folder)
    curves.replay(study)
    for place, (kind, report) in enumerate(events):
        hear(curves, kind, "trial 0", report, at=1e9 + place)
    curves.close()


def test_events_told_again_from_the_first_give_the_same_curves(tmp_path: Path) -> None:
    whole = Curves(tmp_path / "whole")
    for kind, report in history(8):
        hear(whole, kind, "trial 0", report)
    whole.close()
    wanted = curves_below(tmp_path / "whole")
    assert wanted["trial-0"]["objective"] == [(n, float(n)) for n in range(3, 9)]
    told = history(8, again=3)
    for _ in range(12):  # interrupted anywhere, then the same again
        replayed(tmp_path / "again", told[: len(told) // 2])
        replayed(tmp_path / "again", told)
        assert curves_below(tmp_path / "again") == wanted
    assert len(list((tmp_path / "again/trial-0").iterdir())) == 1, "nothing piles up"


def test_points_have_the_time_of_their_events(tmp_path: Path) -> None:
    replayed(tmp_path, history(4))
    found = EventAccumulator(str(tmp_path / "trial-0")).Reload().Scalars("lr")
    assert [point.wall_time - 1e9 for point in found] == [3.0, 4.0]


def test_what_another_study_wrote_is_kept_and_not_shown(tmp_path: Path) -> None:
    here = Curves(tmp_path)
    for number in range(1, 20):
        hear(here, "epoch", "trial 0", epoch(number, 7.0))
    here.close()
    (file,) = (tmp_path / "trial-0").iterdir()
    content = file.read_bytes()
    replayed(tmp_path, history(8), study="abc")
    replayed(tmp_path, history(6), study="abd")
    assert file.read_bytes() == content
    assert points(tmp_path / "trial-0", "objective") == [(n, float(n)) for n in range(3, 7)]
    assert len(list((tmp_path / "trial-0").iterdir())) == 3


def test_a_line_about_a_run_that_has_ended_takes_nothing_away(tmp_path: Path) -> None:
    end = ("finished", {"state": "COMPLETE", "reason": None})
    late = ("epoch", epoch(9, 0.5, value=9.0))
    replayed(tmp_path, [*history(8), end, late])
    assert points(tmp_path / "trial-0", "objective") == [(n, float(n)) for n in range(3, 10)]


def test_events_of_an_earlier_version_are_left_out_and_that_is_told_once(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    told: list[str] = []
    curves.on_failure = told.append
    for place in (1, 2):
        curves.event("epoch", {"of": "trial 0", "epoch": place, "losses": {"ce": 1.0}, "value": 1})
    hear(curves, "epoch", "trial 1", epoch(1, 3.0))
    curves.close()
    assert told == [
        f"curves for TensorBoard in '{tmp_path}' lack what an earlier version of ucd-ray trained"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["trial-1"]


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "..", ".", "", ".hidden"])
def test_a_run_whose_name_leads_elsewhere_is_not_written(name: str, tmp_path: Path) -> None:
    curves = Curves(tmp_path / "in" / "curves")
    hear(curves, "epoch", name, epoch(1, 3.0))
    curves.close()
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "curves"]


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
