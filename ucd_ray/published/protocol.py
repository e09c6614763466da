"""A protocol: what a published number was measured on.  Two numbers compare only under the same one.

A protocol is not the training recipe (learning rates, epochs, losses, batch norm): that is what a method
brings.  It is what must be alike before two methods can be set side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from ucd_ray.recipe import Recipe
from ucd_ray.scenarios import Scenario

Verdict = Literal["comparable", "marked", "refused"]
SAME_JOINT = 1.0  # points: differences below are noise (runs of one method under other seeds)
PER_CENT = "%"


@dataclass(frozen=True)
class Protocol:
    """One field per fact, in words; None: not known."""

    scenario: str | None = None
    """Data set and class split, such as voc-15-1."""
    setting: str | None = None
    """Which images and labels a step sees: sequential, disjoint or overlapped."""
    class_order: str | None = None
    """`official`: classes in the order of their ids; else what it is instead."""
    images: str | None = None
    """Training and val images of the data set, `10582 + 1449`; generated ones are called so."""
    holdout: str | None = None
    """Fraction of the training images that is not trained on."""
    backbone: str | None = None
    """Such as resnet101."""
    head: str | None = None
    """Such as deeplabv3."""
    pretraining: str | None = None
    """What the backbone saw before: none, imagenet, ms-coco."""
    background: str | None = None
    """Whether means count it: with or without."""
    crop: str | None = None
    """Side of the central crop that is scored, in pixels; `none`: whole images."""
    joint: str | None = None
    """mIoU of all classes trained at once in the same set-up, in percent: what it can reach at most."""


# What a fact is called, and whether rows that differ in it are refused or only marked.
RULES: dict[str, tuple[str, Verdict]] = {
    "scenario": ("scenario", "refused"),
    "setting": ("setting", "refused"),
    "class_order": ("class order", "refused"),
    "images": ("train + val images", "refused"),
    "holdout": ("fraction held out", "marked"),
    "backbone": ("backbone", "refused"),
    "head": ("head", "refused"),
    "pretraining": ("pretraining", "refused"),
    "background": ("background in the means:", "refused"),
    "crop": ("scored crop", "marked"),
    "joint": ("joint bound", "marked"),
}


class Comparison(NamedTuple):
    """Whether a row may stand beside ours, and why not or under which reserve."""

    verdict: Verdict
    reasons: tuple[str, ...]


def compare(ours: Protocol, theirs: Protocol) -> Comparison:
    """Compares two protocols fact by fact.

    A row is refused for what makes it another measurement, marked for what shifts it a little and for
    what is not known on either side, comparable without a difference.
    """
    found: dict[Verdict, list[str]] = {"refused": [], "marked": []}
    for field in fields(Protocol):
        name, verdict = RULES[field.name]
        here, there = getattr(ours, field.name), getattr(theirs, field.name)
        if here is None or there is None:
            found["marked"].append(f"{name} {_unknown(here, there)}")
        elif not _same(field.name, here, there):
            found[verdict].append(f"{name} {there} there, {here} here")
    for kind in ("refused", "marked"):
        if found[kind]:
            return Comparison(kind, tuple(found[kind]))
    return Comparison("comparable", ())


def _unknown(here: str | None, there: str | None) -> str:
    if here is None and there is None:
        return "unknown"
    return f"unknown there, {here} here" if there is None else f"{there} there, unknown here"


def _same(fact: str, here: str, there: str) -> bool:
    if fact == "joint":
        return abs(float(here) - float(there)) < SAME_JOINT
    return here == there


def protocol_of(
    recipe: Recipe,
    *,
    images: Mapping[str, int] | None,
    background: str,
    joint: float | None = None,
    class_orders: int = 1,
) -> Protocol:
    """The protocol of our own runs.

    images: of the data set, by `train` and `val`; background: whether the means that are shown count it
    joint: mIoU of the joint bound, in percent; class_orders: over how many the means go
    """
    model, scoring = recipe.model, recipe.eval
    return Protocol(
        scenario=recipe.scenario.name,
        setting=recipe.setting,
        class_order=_class_order(recipe.scenario)
        if class_orders == 1
        else f"{class_orders} orders",
        images=_images(recipe, images),
        holdout=f"{recipe.data.holdout:g}" if scoring.select_on == "holdout" else "0",
        backbone=model.backbone,
        head="deeplabv3",
        pretraining=_pretraining(recipe),
        background=background,
        crop=str(scoring.size) if scoring.mode == "crop" else "none",
        joint=None if joint is None else f"{joint:.1f}",
    )


def _class_order(scenario: Scenario) -> str:
    ids = [class_id for step in scenario.steps for class_id in step]
    return "official" if ids == sorted(ids) else "another"


def _images(recipe: Recipe, images: Mapping[str, int] | None) -> str | None:
    if images is None:
        return None
    kind = "generated " if recipe.data.source == "generated" else ""
    return f"{kind}{images['train']} + {images['val']}"


def _pretraining(recipe: Recipe) -> str | None:
    """What is known of a file's weights is its numbers alone."""
    if recipe.model.base is not None:
        return None
    weights = recipe.model.weights
    return {None: "none", "pretrained": "imagenet"}.get(weights)
