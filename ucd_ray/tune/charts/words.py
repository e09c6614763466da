"""What is measured in which unit, on which images, as charts and reports say it."""

from __future__ import annotations

from dataclasses import dataclass

from ucd_ray.tune.goals import METRIC

GROUPS = {
    "all": "all classes",
    "base": "the classes of step 0",
    "added": "the classes after step 0",
    "old": "old classes",
    "new": "new classes",
}
DROP = "mIoU that the classes of step 0 lost"
UNITS = {"crop": "px", "epochs_base": "epochs", "epochs_new": "epochs"}  # by a key's last part
UNITS |= {"iterations_base": "updates", "iterations_new": "updates", "batch_size": "images"}
UNITS |= {"max_anchors": "px", "max_old": "px", "max_per_class": "px"}


@dataclass(frozen=True)
class Measure:
    """A metric in words."""

    label: str
    unit: str


def measure_of(metric: str) -> Measure:
    """What a metric measures."""
    found = METRIC.fullmatch(metric)
    step, name = found.groups() if found else (None, metric)
    after = "" if step is None else f" after step {step}"
    if name.startswith("miou_"):
        classes = GROUPS[name.removesuffix("_bg").removeprefix("miou_")]
        background = " and background" if name.endswith("_bg") else ""
        return Measure(f"mIoU of {classes}{background}{after}", "%")
    if name == "seconds":
        return Measure("training time" + (f" of step {step}" if step else ""), "s")
    return Measure({"drop": DROP}.get(name, name.replace("_", " ")) + after, "points")


def images_of(select_on: str) -> str:
    """The images that `eval.select_on` names."""
    if select_on == "val":
        return "val images, which the search saw"
    return "hold-out images"


def unit_of(key: str) -> str:
    """The unit of a searched key; most have none."""
    return UNITS.get(key.rpartition(".")[2], "")
