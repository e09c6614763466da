"""Training a recipe file again: what is not as it was, and whether its numbers came back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.console import Console

from ucd_ray.errors import ConfigError
from ucd_ray.job import Job
from ucd_ray.recipe import Recipe
from ucd_ray.tune.recipe_file import Measured, RecipeFile
from ucd_ray.tune.run import RunResult

SHORT = 12  # characters of a digest, for people
INPUTS = {  # what a run reads, and the option that says where it is
    "data": ("data set", "--data"),
    "weights": ("file of pretrained weights", "--weights"),
    "split_lists": ("lists of images", "--split-lists"),
    "base": ("base network", "--base"),
}


def as_before(file: RecipeFile, job: Job, *, other_data: bool = False, console: Console) -> Job:
    """The job of a file's recipe, computed as the file says; says what is not as it was.

    other_data: go on although what is read is not what was read
    Raises ConfigError if the data, weights or lists are others.
    """
    others = other_inputs(file, job)
    if others and not other_data:
        raise ConfigError(
            f"{file.source} was trained on other inputs: {'; '.join(others)}; its numbers will not "
            "come back (--other-data trains it nevertheless)"
        )
    for line in [*others, *warnings(file, job.recipe)]:
        console.print(f"warning: {line}", highlight=False, soft_wrap=True, markup=False)
    return replace(job, threads=file.threads(len(job.recipe.steps.steps)))


def other_inputs(file: RecipeFile, job: Job) -> list[str]:
    """What the job reads that is not what the file's run read, a clause each."""
    if file.inputs is None:
        return []
    then, now = file.inputs.model_dump(), job.inputs()
    return [
        f"{what} {_short(then[key])} there, {_short(now[key])} here ({option})"
        for key, (what, option) in INPUTS.items()
        if then[key] != now[key]
    ]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("digest")
    return "none" if value is None else str(value)[:SHORT]


def warnings(file: RecipeFile, recipe: Recipe) -> list[str]:
    """Why the numbers of a file may not come back, a sentence each; none is known for sure."""
    from ucd_ray.environment import differences, environment

    lines = []
    for part in file.trained:
        here = environment(precision=part.precision)
        if found := differences(part.model_dump(), here):
            steps = ", ".join(map(str, part.steps))
            lines.append(f"step {steps} trained otherwise: {'; '.join(found)}; numbers may differ")
        if part.hardware.get("device") != "CPU" and not recipe.compute.deterministic:
            lines.append(
                "it was trained on a GPU without compute.deterministic: the last digits may differ"
            )
    if file.measured and not file.trained:
        lines.append("the file does not say what it was trained with; numbers may differ")
    return list(dict.fromkeys(lines))


def verdict(file: RecipeFile, result: RunResult) -> str:
    """Whether a run gave the numbers of a file: on which it agrees, or where it first differs."""
    found = {
        report["step"]: {images: report[images]["means"] for images in ("select", "val")}
        for report in result.steps
    }
    for then in file.measured:
        now = found.get(then.step, {"select": {}, "val": {}})
        if clause := _difference(then, now):
            return f"not the numbers of {file.source}: after step {then.step} {clause}"
    last = file.measured[-1]
    shown = last.val.get("miou_all")
    value = "" if shown is None else f", mIoU {shown:.2f} on val"
    return f"the same numbers as {file.source}, to the last digit, after all steps{value}"


def _difference(then: Measured, now: dict[str, dict[str, float]]) -> str:
    """The largest difference of a step, in one clause; empty if there is none."""
    pairs = [
        (images, metric, value, _or_none(now[images].get(metric)))
        for images, means in (("select", then.select), ("val", then.val))
        for metric, value in means.items()
    ]
    other = [pair for pair in pairs if pair[2] != pair[3]]
    if not other:
        return ""
    images, metric, old, new = max(other, key=lambda pair: abs((pair[2] or 0.0) - (pair[3] or 0.0)))
    on = "val" if images == "val" else "what search looks at"
    return f"{metric} on {on} was {_digits(old)}, is {_digits(new)}"


def _or_none(value: float | None) -> float | None:
    """None for NaN, as in a file."""
    return None if value is None or value != value else value


def _digits(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
