"""A picture of forgetting: images, truth, and a trial's predictions after its first and last step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ucd_ray.checkpoint import StepCache
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.job import Job
from ucd_ray.palette import palette
from ucd_ray.store import masked
from ucd_ray.tune.database import Database
from ucd_ray.tune.places import places
from ucd_ray.tune.prepare import prepare_job
from ucd_ray.tune.study import stored_spec

IMAGES = 5  # rows of the picture


def draw_best(study: str, path: Path) -> int:
    """Writes the picture of a study's best trial as PNG.  Returns the trial's number.

    Raises StudyError if no trial is complete or its steps are no longer in the step cache.
    """
    import optuna

    spec = stored_spec(study)
    storage = Database(places().database).optuna_storage()
    found = optuna.load_study(study_name=study, storage=storage)
    complete = [t for t in found.get_trials() if t.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        raise StudyError(f"study '{study}' has no complete trial to draw")
    best = found.best_trial
    recipe = spec.trial_recipe(best.params)
    job = prepare_job(recipe, places(), name=(study, str(best.number)), workers=spec.workers)
    title = f"{study}, trial {best.number}"
    draw(job, path, title=title)
    return best.number


def draw(job: Job, path: Path, *, title: str) -> None:
    """Writes the picture of one run whose steps are in the step cache."""
    last = len(job.recipe.steps.steps) - 1
    rows = _rows(job)
    first, final = (_predictions(job, step, rows) for step in (0, last))
    columns = ["image", "truth", "after step 0", f"after step {last}"]
    panels = [
        (image, truth, before, after)
        for (image, truth), before, after in zip(
            (_image(job, row) for row in rows), first, final, strict=True
        )
    ]
    _write(panels, columns, path, title, job)


def _rows(job: Job) -> NDArray[np.int64]:
    """Val images that show both classes of step 0 and later ones, else any."""
    from ucd_ray.data.step import presence

    shown = presence(job.prepared.val)
    scenario = job.recipe.scenario
    later = [c for classes in scenario.steps[1:] for c in classes]
    both = shown[:, list(scenario.steps[0])].any(1) & shown[:, later].any(1)
    rows = np.flatnonzero(both)
    return rows[:IMAGES] if len(rows) else np.arange(min(IMAGES, len(shown)))


def _image(job: Job, row: int) -> tuple[NDArray[Any], NDArray[Any]]:
    from ucd_ray.data.transforms import decode

    image, truth = decode(job.prepared.val, int(row), np.arange(256, dtype=np.uint8))
    return image.permute(1, 2, 0).numpy(), truth[0].numpy()


def _predictions(job: Job, step: int, rows: NDArray[np.int64]) -> list[NDArray[Any]]:
    """[H, W] predicted data set ids of every row, by the network after `step`."""
    import torch

    from ucd_ray.data.transforms import decode
    from ucd_ray.evaluate import predict
    from ucd_ray.models import build_segmenter
    from ucd_ray.runtime import choose_runtime

    runtime = choose_runtime(job.recipe.compute)
    entry = None
    for precision in dict.fromkeys((runtime.precision, "float32", "bfloat16")):
        entry = entry or StepCache(job.open_cache()).get(job.step_key(step, precision=precision))
    if entry is None:
        raise StudyError(
            f"step {step} of this trial is not in the step cache '{masked(job.cache)}'"
        )
    model, scenario = job.recipe.model, job.recipe.steps
    segmenter = build_segmenter(
        backbone=model.backbone,
        output_stride=model.output_stride,
        classes_per_step=scenario.classes_per_step()[: step + 1],
        normalisation=job.normalisation,
        width=model.width,
    )
    segmenter.load_state_dict(entry.weights)
    segmenter = segmenter.to(runtime.device).eval()
    ids = np.array(scenario.classes_until(step), dtype=np.uint8)
    plain = np.arange(256, dtype=np.uint8)
    images = (decode(job.prepared.val, int(row), plain)[0] for row in rows)
    with torch.no_grad():
        return [ids[predict(segmenter, image[None], runtime)[0].cpu().numpy()] for image in images]


def _write(
    panels: Sequence[tuple[NDArray[Any], ...]], columns: list[str], path: Path, title: str, job: Job
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colors = palette()
    figure = Figure(
        figsize=(2.6 * len(columns) + 2.2, 2.2 * len(panels) + 0.6), layout="constrained"
    )
    axes = figure.subplots(len(panels), len(columns), squeeze=False)
    for index, (line, panel) in enumerate(zip(axes, panels, strict=True)):
        for axis, pixels, column in zip(line, panel, columns, strict=True):
            axis.imshow(pixels if pixels.ndim == 3 else colors[pixels], interpolation="nearest")
            axis.set_axis_off()
            if index == 0:
                axis.set_title(column)
    shown = sorted({int(c) for panel in panels for mask in panel[1:] for c in np.unique(mask)})
    base = set(job.recipe.scenario.steps[0])
    handles = [Patch(color=colors[c] / 255, label=_label(job, c, base)) for c in shown if c != 255]
    figure.legend(handles=handles, loc="outside right upper", fontsize=7)
    figure.suptitle(title)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise ConfigError(f"cannot write '{path}': {error.strerror}") from None


def _label(job: Job, class_id: int, base: set[int]) -> str:
    name = job.prepared.classes[class_id]
    return name if class_id in base or class_id == 0 else f"{name} (new)"
