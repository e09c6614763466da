"""From a recipe to a checked job: everything a user can have wrong is refused here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

import ucd_ray.errors as errors
from ucd_ray.data.prepare import Prepared, prepare, prepared_for
from ucd_ray.errors import ConfigError
from ucd_ray.job import Job
from ucd_ray.models.base import BaseNetwork, channel_ids, read_class_names
from ucd_ray.models.weights import Normalisation, file_digest
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
    for step in range(2):
        micro_batches(recipe, workers, step=step)
    data = prepared_data(recipe.scenario.dataset, recipe.data.source, where, console)
    job = Job(
        recipe=recipe,
        data=str(data.path),
        cache=where.steps,
        weights=_weights_file(recipe, where),
        store=where.runs,
        name=name,
        workers=workers,
        objective=objective,
    )
    _check_classes(job)
    if recipe.model.base is None:
        assert job.normalisation  # raises on bad input
        _check_network(job)
    else:
        job = replace(job, base_network=_base_network(job))
    assert job.plan  # raises on bad input
    return job


def prepared_data(
    dataset: str, source: str | None, where: Places, console: Console | None = None
) -> Prepared:
    """The prepared form of what `--data` names, with a progress bar.  Raises DataError."""
    console = console or Console(quiet=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"preparing {dataset}", total=None)
        return prepared_for(
            dataset,
            source,
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
    if recipe.model.base is not None:
        return None
    if weights == "pretrained":
        from ucd_ray.models import pretrained_weights

        return str(pretrained_weights(recipe.model.backbone, where.home / "weights"))
    return None if weights is None else _absolute(weights)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _check_classes(job: Job) -> None:
    highest = max(c for step in job.recipe.scenario.steps for c in step)
    if highest >= len(job.prepared.classes):
        raise ConfigError(
            f"scenario '{job.recipe.scenario.name}' learns class {highest}, but data set "
            f"'{job.data}' has classes 1..{len(job.prepared.classes) - 1}"
        )


CHECK = """
import json, sys
from dataclasses import asdict
from importlib import import_module
from ucd_ray.errors import UcdRayError
module, function, arguments = sys.argv[1:]
try:
    value = getattr(import_module(module), function)(**json.loads(arguments))
    sys.stdout.write(json.dumps(value, default=asdict))
except UcdRayError as error:
    sys.stdout.write(type(error).__name__ + "\\n" + str(error))
    sys.exit(2)
"""


def _with_torch(module: str, function: str, **arguments: Any) -> Any:
    """What a check that needs torch returns.

    Where torch is not loaded the check has a process of its own: the driver stays light.
    """
    if "torch" in sys.modules:
        return _checked_here(getattr(import_module(module), function), arguments)
    done = subprocess.run(
        [sys.executable, "-c", CHECK, module, function, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 2:
        kind, _, message = done.stdout.partition("\n")
        raise getattr(errors, kind)(message)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _checked_here(check: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What a check returns, as JSON would have it."""
    import torch

    with torch.random.fork_rng(devices=[]):  # a network that is made draws its weights
        return json.loads(json.dumps(check(**arguments), default=asdict))


def _check_network(job: Job) -> None:
    """Backbone and weights fit each other."""
    model = job.recipe.model
    _with_torch(
        "ucd_ray.models.weights",
        "check_backbone",
        name=model.backbone,
        output_stride=model.output_stride,
        weights=job.weights,
    )


def _base_network(job: Job) -> BaseNetwork:
    """The checked base network of a recipe that has one."""
    model, steps = job.recipe.model, job.recipe.steps
    assert model.base is not None and model.base_classes is not None, "a recipe has both or neither"
    path = _absolute(model.base)
    channels = channel_ids(
        read_class_names(_absolute(model.base_classes)),
        known=job.prepared.classes,
        wanted=steps.classes_until(0),
        path=model.base_classes,
    )
    digest = file_digest(path)
    own_file = model.weights not in (None, "pretrained")
    found = _with_torch(
        "ucd_ray.models.base",
        "check_base",
        path=path,
        channels=channels,
        backbone=model.backbone,
        output_stride=model.output_stride,
        width=model.width,
        mean=model.weights_mean,
        std=model.weights_std,
        weights=_absolute(str(model.weights)) if own_file else None,
    )
    normalisation = Normalisation(mean=tuple(found["mean"]), std=tuple(found["std"]))
    return BaseNetwork(path, digest, channels, normalisation)
