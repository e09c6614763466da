"""What one update of a recipe costs: as measured in earlier studies, else estimated from FLOPs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from ucd_ray.errors import UcdRayError
from ucd_ray.recipe import Recipe
from ucd_ray.tune.database import Database
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.spec import StudySpec
from ucd_ray.tune.tables import step_table

CPU_FLOPS = (5e9, 60e9)  # a second, of one core in float32
GPU_FLOPS = (8e12, 200e12)  # of one card: an old one in float32 to a new one in bfloat16
PASSES = 3  # forward, and backward for inputs and weights
OLD_PASSES = 1  # of the old model, which only looks

MODEL = ("backbone", "output_stride", "width", "norm", "freeze", "head")
DATA = ("batch_size", "micro_batch", "micro_batch_new", "crop", "loader_workers")
COMPUTE = ("precision", "channels_last", "deterministic")


@dataclass(frozen=True)
class Range:
    """A number that is known to lie between two."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.high * factor)


def total(ranges: Iterable[Range]) -> Range:
    """The sum of ranges."""
    return sum(ranges, Range(0.0, 0.0))


@dataclass(frozen=True)
class Cost:
    """Seconds of one update, and the studies that measured it; none: it is an estimate."""

    seconds: Range
    studies: tuple[str, ...] = ()


def update_costs(database: Database, spec: StudySpec, gang: Gang) -> list[Cost]:
    """What an update costs in each step of a study."""
    recipe = spec.base_recipe()
    known = measured(database, spec)
    return [known.get(s) or Cost(rough(recipe, s, gang)) for s in range(len(recipe.steps.steps))]


def measured(database: Database, spec: StudySpec) -> dict[int, Cost]:
    """Seconds of an update by step, evaluation included, in studies where it costs the same."""
    wanted = _signatures(spec)
    seconds: dict[int, list[float]] = defaultdict(list)
    studies: dict[int, set[str]] = defaultdict(set)
    for row in database.studies():
        try:
            found = _signatures(StudySpec.model_validate(json.loads(row.spec)))
        except (UcdRayError, ValidationError):  # of another version
            continue
        alike = [step for step, (a, b) in enumerate(zip(found, wanted, strict=False)) if a == b]
        for step, each in _measured_in(database, row.name):
            if step in alike:
                seconds[step].append(each)
                studies[step].add(row.name)
    return {
        step: Cost(Range(min(each), max(each)), tuple(sorted(studies[step])))
        for step, each in seconds.items()
    }


def _measured_in(database: Database, study: str) -> list[tuple[int, float]]:
    """Step and seconds of an update, for every step that a study's trials have finished."""
    query = sa.select(step_table).where(
        step_table.c.study == study, step_table.c.iterations > 0, step_table.c.seconds > 0
    )
    rows = database.read(lambda connection: list(connection.execute(query)))
    return [(row.step, row.seconds / row.iterations) for row in rows]


def _signatures(spec: StudySpec) -> list[dict[str, Any]]:
    """For every step, all that changes what an update of it costs."""
    recipe = spec.base_recipe()
    flat = recipe.flat()
    keys = [f"{s}.{f}" for s, fs in (("model", MODEL), ("data", DATA)) for f in fs]
    keys += [f"compute.{field}" for field in COMPUTE]
    common = {
        "dataset": recipe.scenario.dataset,
        "gang": [spec.workers, spec.cpus_per_worker, spec.gpus_per_worker],
        **{key: spec.search.get(key, flat[key]) for key in keys},
    }
    own = {k: spec.search.get(k, v) for k, v in flat.items() if ".max_" in k and "eval" not in k}
    sizes = recipe.steps.classes_per_step()
    return [
        {**common, "classes": sizes[: step + 1], **(own if step else {})}
        | {"terms": sorted(type(term).__name__ for term in recipe.terms_at(step))}
        for step in range(len(sizes))
    ]


def rough(recipe: Recipe, step: int, gang: Gang) -> Range:
    """Seconds of an update from FLOPs alone, at what devices may reach."""
    passes = PASSES + (OLD_PASSES if step else 0)
    work = recipe.data.batch_size * passes * forward_flops(recipe, step)
    each = gang.gpus or gang.cpus
    slow, fast = GPU_FLOPS if gang.gpus else CPU_FLOPS
    return Range(work / (fast * each * gang.workers), work / (slow * each * gang.workers))


def forward_flops(recipe: Recipe, step: int) -> int:
    """Floating-point operations of one crop's way through the network of a step."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ucd_ray.models import Normalisation, build_segmenter

    with torch.device("meta"):
        segmenter = build_segmenter(
            backbone=recipe.model.backbone,
            output_stride=recipe.model.output_stride,
            classes_per_step=recipe.steps.classes_per_step()[: step + 1],
            normalisation=Normalisation((0.5,) * 3, (0.5,) * 3),
            width=recipe.model.width,
        ).eval()
    crop = recipe.data.crop
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        segmenter(torch.empty(1, 3, crop, crop, device="meta"))
    return int(counter.get_total_flops())
