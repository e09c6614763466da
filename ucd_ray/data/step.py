"""Which images a step sees, and what a label means in it.

Selecting images is a query on the column of present classes; no image is opened.  The rules are those
of `ucd_ray.scenarios`; published splits that are fixed lists come from files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ucd_ray.errors import DataError
from ucd_ray.scenarios import Scenario, Setting

IGNORE = 255
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class StepImages:
    """Rows of the prepared tables that one step trains on and is scored on."""

    train: Rows  # of the train table
    holdout: Rows  # of the train table: the hold-outs of all steps so far
    val: Rows  # of the val table: images with a learned class; after the last step all


def presence(table: pa.Table) -> NDArray[np.bool_]:
    """[N, 256] whether image n shows class c, from the column `classes`."""
    column = table["classes"].combine_chunks()
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    shown = np.zeros((len(column), 256), dtype=bool)
    shown[np.repeat(np.arange(len(column)), lengths), column.flatten().to_numpy()] = True
    return shown


def select_images(
    shown: NDArray[np.bool_], scenario: Scenario, step: int, setting: Setting
) -> Rows:
    """Rows of the images of `step` by rule.

    shown: [N, 256] from `presence`.
    """
    chosen = shown[:, list(scenario.steps[step])].any(1)
    if setting != "overlapped":
        future = [c for classes in scenario.steps[step + 1 :] for c in classes]
        chosen &= ~shown[:, future].any(1)
    return np.flatnonzero(chosen)


def plan_steps(
    train: pa.Table,
    val: pa.Table,
    scenario: Scenario,
    setting: Setting,
    *,
    seed: int,
    holdout: float | None,
    split_lists: Path | None = None,
) -> list[StepImages]:
    """The images of every step.

    holdout: fraction of each step's images kept for scoring, None to train on all.  An image stays on
        one side in all steps, so a score never includes a trained image.
    split_lists: directory with `step<t>.txt` files of image ids, instead of the rule.
    Raises DataError if a step is left without training images or a list names an unknown image.
    """
    shown, val_shown = presence(train), presence(val)
    ids: list[str] = train["id"].to_pylist()
    order = _shuffled(ids, seed)
    plan: list[StepImages] = []
    trained = np.zeros(len(ids), dtype=bool)
    held = np.zeros(len(ids), dtype=bool)
    for step in range(len(scenario.steps)):
        rows = (
            listed_images(split_lists, step, ids)
            if split_lists
            else select_images(shown, scenario, step, setting)
        )
        if holdout is not None:
            _hold_out(rows, trained, held, order, holdout)
        own = rows[~held[rows]]
        trained[own] = True
        if not len(own):
            raise DataError(
                f"step {step} (classes {list(scenario.steps[step])}) has no training image in "
                f"setting '{setting}'; use another setting, another order or more images"
            )
        last = step == len(scenario.steps) - 1
        learned = list(scenario.classes_until(step)[1:])
        scored = np.arange(len(val_shown)) if last else np.flatnonzero(val_shown[:, learned].any(1))
        plan.append(StepImages(own, np.flatnonzero(held), scored))
    return plan


def _hold_out(
    rows: Rows, trained: NDArray[np.bool_], held: NDArray[np.bool_], order: Rows, fraction: float
) -> None:
    """Marks further images of this step in `held`, in shuffled order, until `fraction` is held."""
    wanted = round(fraction * len(rows)) - int(held[rows].sum())
    free = rows[~held[rows] & ~trained[rows]]
    free = free[np.argsort(order[free])]
    held[free[: max(0, min(wanted, len(free) - 1))]] = True


def _shuffled(ids: Sequence[str], seed: int) -> Rows:
    """[N] a rank of each image that depends on seed and id only, not on the other images' order."""
    digests = [hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in ids]
    return np.argsort(np.argsort([int.from_bytes(d) >> 1 for d in digests], kind="stable"))


def listed_images(directory: Path, step: int, ids: Sequence[str]) -> Rows:
    """Rows of the images named in `step<t>.txt`.  Raises DataError naming the file."""
    path = directory / f"step{step}.txt"
    try:
        names = path.read_text().split()
    except OSError as error:
        raise DataError(f"cannot read split list '{path}': {error.strerror}") from None
    row_of = {name: row for row, name in enumerate(ids)}
    unknown = [name for name in names if name not in row_of]
    if unknown:
        raise DataError(f"split list '{path}' names {len(unknown)} unknown images: {unknown[:5]}")
    return np.array(sorted(row_of[name] for name in names), dtype=np.int64)


def training_labels(scenario: Scenario, step: int, setting: Setting) -> NDArray[np.uint8]:
    """[256] dataset id -> channel for training labels of `step`; what is not labelled becomes 0."""
    table = np.zeros(256, dtype=np.uint8)
    table[IGNORE] = IGNORE
    kept = scenario.classes_until(step)[1:] if setting == "sequential" else scenario.steps[step]
    for channel, class_id in enumerate(scenario.classes_until(step)):
        if class_id in kept:
            table[class_id] = channel
    return table


def evaluation_labels(scenario: Scenario, step: int, *, unseen: str) -> NDArray[np.uint8]:
    """[256] dataset id -> channel for scoring after `step`.

    unseen: `background` counts classes not learned yet as background (PLOP, UCD), `ignore` leaves them
        out (MiB), and with them class 0 of a data set whose class 0 is not scored.
    """
    table = np.full(256, 0 if unseen == "background" else IGNORE, dtype=np.uint8)
    table[IGNORE] = IGNORE
    for channel, class_id in enumerate(scenario.classes_until(step)):
        table[class_id] = channel
    if unseen == "ignore" and not scenario.background:
        table[0] = IGNORE
    return table
