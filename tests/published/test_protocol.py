"""What may stand beside what."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from ucd_ray.published import Protocol, compare, protocol_of
from ucd_ray.published.protocol import RULES
from ucd_ray.recipe import Recipe
from ucd_ray.scenarios import scenario_from_mapping

OURS = Protocol(
    scenario="voc-15-5",
    setting="overlapped",
    class_order="official",
    images="10582 + 1449",
    holdout="0",
    backbone="resnet101",
    head="deeplabv3",
    pretraining="imagenet",
    background="without",
    crop="512",
    joint="77.0",
)


def test_every_fact_has_a_rule() -> None:
    assert list(RULES) == [field.name for field in fields(Protocol)]


def test_the_same_protocol_is_comparable() -> None:
    assert compare(OURS, OURS) == ("comparable", ())


@pytest.mark.parametrize("fact", RULES)
def test_a_fact_that_differs_is_said_with_both_values(fact: str) -> None:
    other = "70.0" if fact == "joint" else "other"
    name, verdict = RULES[fact]
    found = compare(OURS, replace(OURS, **{fact: other}))
    assert found == (verdict, (f"{name} {other} there, {getattr(OURS, fact)} here",))


@pytest.mark.parametrize("fact", RULES)
def test_a_fact_that_is_not_known_marks_a_row(fact: str) -> None:
    name, value = RULES[fact][0], getattr(OURS, fact)
    unknown = replace(OURS, **{fact: None})
    assert compare(OURS, unknown) == ("marked", (f"{name} unknown there, {value} here",))
    assert compare(unknown, OURS) == ("marked", (f"{name} {value} there, unknown here",))
    assert compare(unknown, unknown) == ("marked", (f"{name} unknown",))


def test_a_refused_row_says_only_why_it_is_refused() -> None:
    found = compare(OURS, replace(OURS, setting="disjoint", crop=None, backbone="resnet50"))
    assert found.verdict == "refused"
    assert [reason.split()[0] for reason in found.reasons] == ["setting", "backbone"]


def test_joint_bounds_within_noise_are_the_same() -> None:
    assert compare(OURS, replace(OURS, joint="77.9")).verdict == "comparable"
    assert compare(OURS, replace(OURS, joint="78.1")).verdict == "marked"


def protocol(**values: object) -> Protocol:
    flat = {key.replace("__", "."): value for key, value in values.items()}
    recipe = Recipe.from_flat({"scenario": "voc-15-5", **flat})
    return protocol_of(recipe, images={"train": 9, "val": 4}, background="with", joint=50.04)


def test_our_protocol_is_read_from_the_recipe() -> None:
    assert protocol() == Protocol(
        scenario="voc-15-5",
        setting="overlapped",
        class_order="official",
        images="9 + 4",
        holdout="0.2",
        backbone="resnet101",
        head="deeplabv3",
        pretraining="none",
        background="with",
        crop="none",
        joint="50.0",
    )
    other = protocol(
        setting="disjoint",
        eval__mode="crop",
        eval__size=321,
        eval__select_on="val",
        model__weights="pretrained",
        data__source="generated",
    )
    assert (other.setting, other.crop, other.holdout) == ("disjoint", "321", "0")
    assert (other.pretraining, other.images) == ("imagenet", "generated 9 + 4")


def test_what_a_file_of_weights_saw_before_is_not_known() -> None:
    assert protocol(model__weights="/file.pth").pretraining is None


def test_another_class_order_is_told() -> None:
    steps = [list(range(6, 21)), list(range(1, 6))]
    own = scenario_from_mapping({"dataset": "voc", "steps": steps})
    recipe = Recipe.from_flat({"scenario": own})
    assert protocol_of(recipe, images=None, background="with").class_order == "another"
    several = protocol_of(
        Recipe.from_flat({"scenario": "voc-15-5"}), images=None, background="with", class_orders=3
    )
    assert (several.class_order, several.images) == ("3 orders", None)
