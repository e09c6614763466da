"""Scores of trained networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.networks import random_network
from ucd_ray.data.prepare import Generated, Prepared, prepare
from ucd_ray.errors import DataError
from ucd_ray.tune.best import measured_trial
from ucd_ray.tune.database import Database
from ucd_ray.tune.evaluation import evaluate, evaluation_view
from ucd_ray.tune.networks import open_network


@pytest.mark.parametrize("step", [0, 1, 2])
def test_scores_on_val_are_those_of_the_studys_tables(finished: Database, step: int) -> None:
    wanted = measured_trial(finished, "tiny").steps[step].means["val"]
    found = evaluate(open_network("tiny", step=step))
    means = {row["name"]: row["iou"] for row in found.rows if row["kind"] == "mean"}
    assert means == {name: value for name, value in wanted.items() if name != "forgetting"}
    assert found.mean("miou_all") == wanted["miou_all"]


def test_every_class_has_a_row_with_the_step_that_learned_it(finished: Database) -> None:
    found = evaluate(open_network("tiny", step=1))
    rows = [row for row in found.table().to_pylist() if row["kind"] == "class"]
    assert [row["class_id"] for row in rows] == list(range(11))
    assert [row["step"] for row in rows] == [0] * 9 + [1] * 2
    assert [row["age"] for row in rows] == ["old"] * 9 + ["new"] * 2
    assert all((row["iou"] is None) == (row["pixels"] == 0) for row in rows)


def test_training_images_can_be_scored_too(finished: Database, shapes: Prepared) -> None:
    network = open_network("tiny")
    on_train, on_val = evaluate(network, split="train"), evaluate(network)
    assert (on_train.images, on_val.images) == (shapes.train.num_rows, shapes.val.num_rows)
    pixels = sum(row["pixels"] for row in on_train.rows if row["kind"] == "class")
    assert pixels == shapes.train.num_rows * 64 * 64


def test_what_is_shown_names_split_classes_and_means(finished: Database) -> None:
    found = evaluate(open_network("tiny"))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(evaluation_view(found))
    text = captured.get()
    assert "shapes-8-2 overlapped mib, after step 2" in text
    assert "8 val images" in text
    assert "miou_base" in text
    assert "drop" in text


def test_a_file_is_scored_on_the_data_that_are_given(shapes: Prepared, tmp_path: Path) -> None:
    network = random_network(step=2)
    more = prepare(
        "shapes", None, tmp_path / "more", generated=Generated(seed=3, train=12, val=5, size=40)
    )
    assert evaluate(network, data=str(more.path)).images == 5
    assert evaluate(network, data=str(shapes.path)).images == 8


def test_a_data_set_with_other_classes_is_refused(shapes: Prepared) -> None:
    network = random_network(step=1)
    names = list(network.info.class_names)
    names[3] = "cat"
    info = network.info.model_copy(update={"class_names": tuple(names)})
    with pytest.raises(
        DataError, match=r"the network's class 3 is 'cat', in '.*' it is 'triangle'"
    ):
        evaluate(replace(network, info=info), data=str(shapes.path))
