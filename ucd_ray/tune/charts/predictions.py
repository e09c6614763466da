"""Images, truth, and what the best trial and fine-tuning make of them, from stored networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from ucd_ray.checkpoint import StepCache
from ucd_ray.drawing.chart import Chart, Pixels, Plane
from ucd_ray.drawing.colors import BLACK, LIGHT, regions, rgb
from ucd_ray.errors import NotDrawn
from ucd_ray.job import Job
from ucd_ray.recipe import Recipe
from ucd_ray.step_eviction import stored_steps
from ucd_ray.store import Store, masked
from ucd_ray.tune.charts.source import Source
from ucd_ray.tune.charts.steps import VAL
from ucd_ray.tune.charts.trials import joined
from ucd_ray.tune.finetuning import finetuned
from ucd_ray.tune.places import places
from ucd_ray.tune.prepare import prepare_job
from ucd_ray.tune.spec import StudySpec

IMAGES = 5  # rows
LONGEST = 320  # pixels of a side, as drawn
IGNORE = 255
WIDTH = 2.1  # inches of a panel


def predictions(source: Source) -> Chart:
    """The best trial's predictions after its first and last step, beside truth and fine-tuning."""
    number = source.best.number
    recipe, cache = best_recipe(source), places().steps
    if not stored_steps(Store(cache)):  # else data would be prepared for nothing
        raise NotDrawn(f"the network of trial {number} is not in the step cache '{masked(cache)}'")
    job = _job(source, recipe, f"{number}")
    last = len(job.recipe.steps.steps) - 1
    rows = _rows(job)
    shown = [_image(job, row) for row in rows]
    columns = {
        "image": [image for image, _ in shown],
        "truth": [truth for _, truth in shown],
        **({"after step 0": _predictions(job, 0, rows)} if last > 0 else {}),
        f"trial {number} after step {last}": _predictions(job, last, rows),
    }
    compared = _job(source, finetuned(recipe), "finetune")
    note = ""
    if recipe.method != "finetune" and last > 0:
        try:
            columns[f"fine-tuning after step {last}"] = _predictions(compared, last, rows)
        except NotDrawn:
            note = "Fine-tuning with this trial's params is not in the step cache; --finetune trains it."
    colors = _colors(job, [mask for masks in list(columns.values())[1:] for mask in masks])
    panels = [
        Plane((Pixels(_painted(column[row], colors)),), title=title if row == 0 else "")
        for row in range(len(rows))
        for title, column in columns.items()
    ]
    return Chart(
        "predictions",
        f"What {source.best_name}, sees",
        source.subtitle(VAL),
        tuple(panels),
        note=joined("Black is background, light grey is ignored.", note),
        columns=len(columns),
        size=(WIDTH, WIDTH * _height(shown[0][0])),
        keys=tuple((_name(job, c), color) for c, color in colors.items() if c not in (0, IGNORE)),
    )


def best_recipe(source: Source) -> Recipe:
    """The recipe of the best trial.  Raises NotDrawn if none is complete."""
    best = source.best.number
    params = next(t.params for t in source.valued if t.number == best)
    return StudySpec.model_validate(source.spec).trial_recipe(params)


def train_finetuned(source: Source, *, address: str | None, console: Console) -> None:
    """Trains fine-tuning for the chart, as far as the step cache does not hold it.

    Raises UcdRayError for what a user can mend.
    """
    from ucd_ray.tune.run import run

    workers = int(source.spec["workers"])
    run(finetuned(best_recipe(source)), workers=workers, address=address, console=console)


def _job(source: Source, recipe: Recipe, name: str) -> Job:
    workers = int(source.spec["workers"])
    return prepare_job(recipe, places(), name=(source.study, name), workers=workers)


def _rows(job: Job) -> NDArray[np.int64]:
    """Val images that show both classes of step 0 and later ones, else any."""
    from ucd_ray.data.step import presence

    found = presence(job.prepared.val)
    scenario = job.recipe.scenario
    later = [c for classes in scenario.steps[1:] for c in classes]
    both = found[:, list(scenario.steps[0])].any(1) & found[:, later].any(1)
    rows = np.flatnonzero(both)
    return rows[:IMAGES] if len(rows) else np.arange(min(IMAGES, len(found)))


def _image(job: Job, row: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """[H, W, 3] pixels and [H, W] ids of one val image."""
    from ucd_ray.data.transforms import decode

    image, truth = decode(job.prepared.val, int(row), np.arange(256, dtype=np.uint8))
    return image.permute(1, 2, 0).numpy(), truth[0].numpy()


def _predictions(job: Job, step: int, rows: NDArray[np.int64]) -> list[NDArray[Any]]:
    """[H, W] predicted ids of every row, by the network after `step`.  Raises NotDrawn without it."""
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
        raise NotDrawn(f"step {step} of this trial is not in the step cache '{masked(job.cache)}'")
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


def _colors(job: Job, masks: Sequence[NDArray[Any]]) -> dict[int, str]:
    """A colour for every id in the masks, in learning order: the most different ones come first."""
    shown = {int(c) for mask in masks for c in np.unique(mask)}
    order = job.recipe.scenario.classes_until(len(job.recipe.scenario.steps) - 1)
    classes = [c for c in order if c in shown and c != 0]
    classes += sorted(shown - set(order) - {IGNORE, 0})
    found = dict(zip(classes, regions(len(classes)), strict=True))
    return {**found, 0: BLACK, IGNORE: LIGHT}


def _painted(pixels: NDArray[Any], colors: dict[int, str]) -> NDArray[np.uint8]:
    """[H, W, 3] of an image, or of a mask in the colours of its ids; at most `LONGEST` a side."""
    smooth = pixels.ndim == 3
    if not smooth:
        table = np.zeros((256, 3), np.uint8)
        for class_id, color in colors.items():
            table[class_id] = rgb(color)
        pixels = table[pixels]
    image = Image.fromarray(pixels.astype(np.uint8))
    scale = min(1.0, LONGEST / max(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(image.resize(size, how))


def _height(image: NDArray[Any]) -> float:
    """Of an image of width 1."""
    return float(image.shape[0] / image.shape[1])


def _name(job: Job, class_id: int) -> str:
    name = job.prepared.classes[class_id]
    step = next((s for s, ids in enumerate(job.recipe.scenario.steps) if class_id in ids), 0)
    return name if step == 0 else f"{name} (step {step})"
