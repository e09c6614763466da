"""Which images a step sees, on which side of the hold-out, and what a label means in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from ucd_ray.data.step import (
    IGNORE,
    StepImages,
    evaluation_labels,
    plan_steps,
    presence,
    select_images,
    training_labels,
)
from ucd_ray.errors import DataError
from ucd_ray.scenarios import Scenario, Setting, parse_scenario

THREE_STEPS = Scenario(dataset="voc", steps=((1, 2), (3,), (5, 4)), background=True)


def table_of(classes: list[list[int]], prefix: str = "image") -> pa.Table:
    ids = [f"{prefix}{n}" for n in range(len(classes))]
    return pa.table({"id": ids, "classes": pa.array(classes, pa.list_(pa.uint8()))})


def random_table(seed: int, images: int = 300, classes: int = 5) -> pa.Table:
    rng = np.random.default_rng(seed)
    shown = [[0, *np.flatnonzero(rng.random(classes) < 0.3) + 1] for _ in range(images)]
    return table_of(shown)


VAL = table_of([[0, 1], [0, 3], [0, 4, 2], [0]], "val")


def plan(
    train: pa.Table, *, setting: Setting = "overlapped", seed: int = 42, holdout: float | None = 0.2
) -> list[StepImages]:
    return plan_steps(train, VAL, THREE_STEPS, setting, seed=seed, holdout=holdout)


def ids(table: pa.Table, rows: NDArray[np.int64]) -> set[str]:
    return set(np.array(table["id"].to_pylist())[rows])


def test_presence_is_a_row_of_classes_per_image() -> None:
    shown = presence(table_of([[0, 3], [], [254]]))
    assert shown.shape == (3, 256)
    assert [np.flatnonzero(row).tolist() for row in shown] == [[0, 3], [], [254]]


@pytest.mark.parametrize("setting", ["sequential", "disjoint", "overlapped"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_rule_agrees_with_a_loop_over_images(setting: Setting, step: int) -> None:
    table = random_table(1)
    new = set(THREE_STEPS.steps[step])
    future = {c for classes in THREE_STEPS.steps[step + 1 :] for c in classes}
    expected = [
        row
        for row, classes in enumerate(table["classes"].to_pylist())
        if new & set(classes) and (setting == "overlapped" or not future & set(classes))
    ]
    assert select_images(presence(table), THREE_STEPS, step, setting).tolist() == expected


def test_disjoint_steps_share_no_image() -> None:
    shown = presence(random_table(2))
    chosen = [select_images(shown, THREE_STEPS, step, "disjoint") for step in range(3)]
    assert sum(map(len, chosen)) == len(set(np.concatenate(chosen).tolist()))


# Counts of protocols and index files: images per step of VOC 2012 train_aug.
VOC_OVERLAPPED = {
    "voc-19-1": [10410, 548],
    "voc-15-5": [9568, 2145],
    "voc-15-1": [9568, 487, 299, 491, 500, 548],
    "voc-10-10": [6139, 6876],
    "voc-10-1": [6139, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548],
    "voc-5-3": [2836, 2331, 1542, 2095, 4484, 1468],
}
VOC_DISJOINT = {
    "voc-19-1": [10034, 548],
    "voc-15-5": [8437, 2145],
    "voc-15-1": [8437, 378, 299, 420, 500, 548],
    "voc-10-10": [3706, 6876],
    "voc-10-1": [3706, 188, 868, 227, 201, 3247, 378, 299, 420, 500, 548],
    "voc-5-3": [1753, 1517, 624, 1296, 3924, 1468],
}
VOC_VAL = {
    "voc-15-1": [1240, 1277, 1329, 1353, 1421, 1449],
    "voc-19-1": [1421, 1449],
    "voc-10-1": [869, 893, 1005, 1081, 1140, 1240, 1277, 1329, 1353, 1421, 1449],
}


def voc_table(test_data: Path, side: str) -> pa.Table:
    names, classes = [], []
    lines = (test_data / "voc12_index/presence.tsv").read_text().splitlines()
    for line in lines[1:]:
        name, of, *pairs = line.split()
        if of == side:
            names.append(name)
            found = [int(pair.split(":")[0]) for pair in pairs]
            classes.append([c for c in found if c != IGNORE])
    return pa.table({"id": names, "classes": pa.array(classes, pa.list_(pa.uint8()))})


@pytest.mark.data
@pytest.mark.parametrize("name", VOC_OVERLAPPED)
def test_voc_steps_have_the_published_number_of_images(test_data: Path, name: str) -> None:
    shown = presence(voc_table(test_data, "train_aug"))
    assert len(shown) == 10582
    scenario = parse_scenario(name)
    steps = range(len(scenario.steps))
    for setting, counts in (
        ("overlapped", VOC_OVERLAPPED),
        ("disjoint", VOC_DISJOINT),
        ("sequential", VOC_DISJOINT),
    ):
        found = [len(select_images(shown, scenario, step, setting)) for step in steps]  # type: ignore[arg-type]
        assert found == counts[name], setting


@pytest.mark.data
@pytest.mark.parametrize("name", VOC_VAL)
def test_voc_is_scored_on_the_published_number_of_val_images(test_data: Path, name: str) -> None:
    train, val = (voc_table(test_data, side) for side in ("train_aug", "val"))
    steps = plan_steps(train, val, parse_scenario(name), "overlapped", seed=0, holdout=None)
    assert [len(step.val) for step in steps] == VOC_VAL[name]


# Hold-out.


@pytest.mark.parametrize("setting", ["sequential", "disjoint", "overlapped"])
@pytest.mark.parametrize("seed", range(5))
def test_no_image_is_trained_in_one_step_and_scored_in_any(setting: Setting, seed: int) -> None:
    steps = plan(random_table(seed), setting=setting, seed=seed)
    trained = set(np.concatenate([step.train for step in steps]).tolist())
    held = set(np.concatenate([step.holdout for step in steps]).tolist())
    assert not trained & held


@pytest.mark.parametrize("setting", ["disjoint", "overlapped"])
def test_a_step_trains_on_its_images_less_those_held_out(setting: Setting) -> None:
    table = random_table(3)
    for step, images in enumerate(plan(table, setting=setting)):
        own = select_images(presence(table), THREE_STEPS, step, setting)
        assert images.train.tolist() == sorted(set(own.tolist()) - set(images.holdout.tolist()))


def test_scoring_after_a_step_covers_the_hold_outs_of_all_steps_so_far() -> None:
    held = [set(step.holdout.tolist()) for step in plan(random_table(3))]
    assert held[0] < held[1] < held[2]


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.4])
def test_the_asked_for_fraction_of_every_disjoint_step_is_held_out(fraction: float) -> None:
    table = random_table(4)
    for step, images in enumerate(plan(table, setting="disjoint", holdout=fraction)):
        own = set(select_images(presence(table), THREE_STEPS, step, "disjoint").tolist())
        held = own & set(images.holdout.tolist())
        assert len(held) == round(fraction * len(own))


def test_about_a_fifth_of_every_overlapped_step_is_held_out() -> None:
    table = random_table(5, images=2000)
    for step, images in enumerate(plan(table)):
        own = set(select_images(presence(table), THREE_STEPS, step, "overlapped").tolist())
        assert len(own & set(images.holdout.tolist())) / len(own) == pytest.approx(0.2, abs=0.03)


def test_the_hold_out_depends_on_the_seed() -> None:
    table = random_table(6)
    assert plan(table, seed=1)[0].holdout.tolist() == plan(table, seed=1)[0].holdout.tolist()
    assert plan(table, seed=1)[0].holdout.tolist() != plan(table, seed=2)[0].holdout.tolist()


def test_the_hold_out_does_not_depend_on_the_order_of_the_rows() -> None:
    table = random_table(7)
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    for one, other in zip(plan(table), plan(shuffled), strict=True):
        assert ids(table, one.holdout) == ids(shuffled, other.holdout)
        assert ids(table, one.train) == ids(shuffled, other.train)


def test_the_base_step_is_the_same_whatever_follows_it() -> None:
    table = random_table(8)
    other = Scenario(dataset="voc", steps=((1, 2), (4, 3, 5)), background=True)
    longer = plan(table)[0]
    shorter = plan_steps(table, VAL, other, "overlapped", seed=42, holdout=0.2)[0]
    assert longer.train.tolist() == shorter.train.tolist()
    assert longer.holdout.tolist() == shorter.holdout.tolist()


def test_without_a_hold_out_all_images_are_trained_on() -> None:
    table = random_table(9)
    for step, images in enumerate(plan(table, holdout=None)):
        own = select_images(presence(table), THREE_STEPS, step, "overlapped")
        assert images.train.tolist() == own.tolist()
        assert len(images.holdout) == 0


def test_a_step_with_one_image_keeps_it_for_training() -> None:
    table = table_of([[1], [3], [4], [5], [2]])
    steps = plan(table, holdout=0.9)
    assert [len(step.train) for step in steps] == [1, 1, 1]


def test_val_images_show_a_learned_class_and_in_the_end_all_are_scored() -> None:
    steps = plan(random_table(10))
    assert [step.val.tolist() for step in steps] == [[0, 2], [0, 1, 2], [0, 1, 2, 3]]


def test_a_step_without_images_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"step 1 \(classes \[3\]\) has no training image"):
        plan(table_of([[1], [2], [4]]))


# Published lists.


def test_listed_images_replace_the_rule(tmp_path: Path) -> None:
    table = table_of([[1, 5], [3], [4], [1]])
    for step, names in enumerate(["image0 image3", "image1", "image2"]):
        (tmp_path / f"step{step}.txt").write_text(names.replace(" ", "\n") + "\n")
    steps = plan_steps(
        table, VAL, THREE_STEPS, "disjoint", seed=0, holdout=None, split_lists=tmp_path
    )
    assert [step.train.tolist() for step in steps] == [[0, 3], [1], [2]]


def test_a_missing_list_and_an_unknown_image_are_refused_by_file(tmp_path: Path) -> None:
    def plan_listed() -> list[StepImages]:
        return plan_steps(
            table_of([[1]]),
            VAL,
            THREE_STEPS,
            "disjoint",
            seed=0,
            holdout=None,
            split_lists=tmp_path,
        )

    with pytest.raises(DataError, match=r"step0\.txt': No such file"):
        plan_listed()
    (tmp_path / "step0.txt").write_text("image0\nother\n")
    with pytest.raises(DataError, match=r"step0\.txt' names 1 unknown images: \['other'\]"):
        plan_listed()


# Labels.  Channels after step 1: 0 background, 1 2 base classes, 3 new.


def labels_of(table: NDArray[np.uint8]) -> dict[int, int]:
    return {c: int(table[c]) for c in (0, 1, 2, 3, 4, 5, 200, 255)}


@pytest.mark.parametrize("setting", ["disjoint", "overlapped"])
def test_training_labels_keep_new_classes_only(setting: Setting) -> None:
    found = labels_of(training_labels(THREE_STEPS, 1, setting))
    assert found == {0: 0, 1: 0, 2: 0, 3: 3, 4: 0, 5: 0, 200: 0, 255: 255}


def test_sequential_training_labels_keep_old_classes_too() -> None:
    found = labels_of(training_labels(THREE_STEPS, 1, "sequential"))
    assert found == {0: 0, 1: 1, 2: 2, 3: 3, 4: 0, 5: 0, 200: 0, 255: 255}


def test_channels_follow_the_learning_order_not_the_ids() -> None:
    table = training_labels(THREE_STEPS, 2, "sequential")
    assert [int(table[c]) for c in (1, 2, 3, 5, 4)] == [1, 2, 3, 4, 5]


def test_scoring_counts_unseen_classes_as_background_or_not_at_all() -> None:
    background = labels_of(evaluation_labels(THREE_STEPS, 1, unseen="background"))
    assert background == {0: 0, 1: 1, 2: 2, 3: 3, 4: 0, 5: 0, 200: 0, 255: 255}
    ignore = labels_of(evaluation_labels(THREE_STEPS, 1, unseen="ignore"))
    assert ignore == {0: 0, 1: 1, 2: 2, 3: 3, 4: 255, 5: 255, 200: 255, 255: 255}


def test_scoring_leaves_out_class_0_where_it_is_no_class_and_unseen_is_ignored() -> None:
    ade = Scenario(dataset="ade", steps=((1,), (2,)), background=False)
    assert evaluation_labels(ade, 0, unseen="ignore")[0] == IGNORE
    assert evaluation_labels(ade, 0, unseen="background")[0] == 0
