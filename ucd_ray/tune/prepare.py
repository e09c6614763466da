"""From a recipe to a checked job: everything a user can have wrong is refused here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

import ucd_ray.errors as errors
from ucd_ray.data.prepare import Prepared, prepare, prepared_for
from ucd_ray.errors import ConfigError
from ucd_ray.job import Job
from ucd_ray.recipe import Recipe, micro_batches
from ucd_ray.tune.places import Places


def prepare_job(
    recipe: Recipe,
    where: Places,
    *,
    name: tuple[str, ...],
    workers: int,
    objective: str = "miou_all",
    console: Console | None = None,
) -> Job:
    """The checked job of a recipe: data prepared, weights present, every step with images.

    Raises what is wrong with them before anything is started.
    """
    micro_batches(recipe, workers)
    job = Job(
        recipe=recipe,
        data=str(_data(recipe, where, console or Console(quiet=True)).path),
        cache=where.steps,
        weights=_weights_file(recipe, where),
        store=where.runs,
        name=name,
        workers=workers,
        objective=objective,
    )
    _check_classes(job)
    assert job.plan and job.normalisation  # both raise on bad input
    _check_network(job)
    return job


def _data(recipe: Recipe, where: Places, console: Console) -> Prepared:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"preparing {recipe.scenario.dataset}", total=None)
        return prepared_for(
            recipe.scenario.dataset,
            recipe.data.source,
            where.data,
            lambda done, total: progress.update(task, completed=done, total=total),
        )


def prepare_data(dataset: str, source: str, out: Path, console: Console) -> Prepared:
    """Turns a data set into Arrow files in `out`, with a progress bar.  Raises DataError."""
    from ucd_ray.data import DATASETS
    from ucd_ray.data.prepare import Generated

    if dataset not in DATASETS:
        hint = errors.did_you_mean(dataset, DATASETS)
        raise ConfigError(f"unknown data set '{dataset}'; {hint}")
    generated = Generated() if source == "generated" else None
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"preparing {dataset}", total=None)
        return prepare(
            dataset,
            None if generated else Path(source).expanduser().absolute(),
            out.expanduser().absolute(),
            generated=generated,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )


def _weights_file(recipe: Recipe, where: Places) -> str | None:
    weights = recipe.model.weights
    if weights == "pretrained":
        from ucd_ray.models import pretrained_weights

        return str(pretrained_weights(recipe.model.backbone, where.home / "weights"))
    return None if weights is None else str(Path(weights).expanduser().absolute())


def _check_classes(job: Job) -> None:
    highest = max(c for step in job.recipe.scenario.steps for c in step)
    if highest >= len(job.prepared.classes):
        raise ConfigError(
            f"scenario '{job.recipe.scenario.name}' learns class {highest}, but data set "
            f"'{job.data}' has classes 1..{len(job.prepared.classes) - 1}"
        )


CHECK_NETWORK = """
import sys
from ucd_ray.errors import UcdRayError
from ucd_ray.models import create_backbone, load_backbone_weights
name, stride, weights = sys.argv[1:]
try:
    backbone = create_backbone(name, int(stride))
    if weights:
        load_backbone_weights(backbone, weights, name=name)
except UcdRayError as error:
    sys.stdout.write(type(error).__name__ + "\\n" + str(error))
    sys.exit(2)
"""


def _check_network(job: Job) -> None:
    """Backbone and weights fit each other.  In a process of its own: the driver stays light."""
    model = job.recipe.model
    done = subprocess.run(
        [
            *(sys.executable, "-c", CHECK_NETWORK),
            *(model.backbone, str(model.output_stride), job.weights or ""),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 2:
        kind, _, message = done.stdout.partition("\n")
        raise getattr(errors, kind)(message)
    assert done.returncode == 0, done.stderr
