"""What determines a stored step, and the images of a run."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeJob
from ucd_ray.checkpoint import key_digest, key_text
from ucd_ray.data.prepare import Generated, Prepared, prepare
from ucd_ray.errors import ConfigError, DataError, WeightsError
from ucd_ray.job import Job
from ucd_ray.models.base import BaseNetwork
from ucd_ray.models.weights import IMAGENET, Normalisation
from ucd_ray.recipe import Recipe, needs_split_lists


def text(job: Job, step: int = 0, precision: str = "float32") -> str:
    return key_text(job.step_key(step, precision=precision))


def test_equal_jobs_have_equal_keys(make_job: MakeJob) -> None:
    assert text(make_job()) == text(make_job(1))


def test_a_key_holds_everything_that_determined_the_step(
    make_job: MakeJob, shapes: Prepared
) -> None:
    job = make_job()
    key = job.step_key(1, precision="float32")
    assert key["data"] == shapes.fingerprint
    assert key["steps"] == ((1, 2, 3, 4, 5, 6, 7, 8), (9, 10))
    assert key["recipe"] == job.recipe.acting_until(1)
    assert key["normalisation"] == [list(IMAGENET.mean), list(IMAGENET.std)]


def test_workers_and_precision_are_part_of_a_key(make_job: MakeJob) -> None:
    assert text(make_job(workers=2)) != text(make_job())
    assert text(make_job(), precision="bfloat16") != text(make_job())


def test_other_data_gives_another_key(make_job: MakeJob, tmp_path: Path) -> None:
    other = prepare(
        "shapes", None, tmp_path / "d", generated=Generated(seed=1, train=24, val=8, size=64)
    )
    job = replace(make_job(), data=str(other.path))
    assert text(job) != text(make_job())


def test_the_content_of_a_weight_file_counts_not_its_place(
    make_job: MakeJob, tmp_path: Path
) -> None:
    def job(name: str, content: bytes) -> Job:
        path = tmp_path / name
        path.write_bytes(content)
        triple = (0.5, 0.5, 0.5)
        given = {"model.weights_mean": triple, "model.weights_std": triple}
        return replace(make_job(**given), weights=str(path))

    assert text(job("a.pth", b"1")) == text(job("b.pth", b"1")) != text(job("c.pth", b"2"))
    assert text(job("a.pth", b"1")) != text(replace(job("a.pth", b"1"), weights=None))


def test_the_normalisation_counts(make_job: MakeJob) -> None:
    given = {"model.weights_mean": (0.1, 0.2, 0.3), "model.weights_std": (1, 1, 1)}
    assert text(make_job(**given)) != text(make_job())


@pytest.mark.parametrize("setting", ["disjoint", "sequential", "overlapped"])
def test_the_order_of_later_classes_does_not_change_the_base_step(
    make_job: MakeJob, setting: str
) -> None:
    def job(*steps: list[int]) -> Job:
        return make_job(setting=setting, scenario={"dataset": "shapes", "steps": list(steps)})

    assert text(job([1, 2], [3, 4], [5])) == text(job([1, 2], [5, 3], [4]))


def test_which_classes_follow_changes_the_base_step_unless_overlapped(make_job: MakeJob) -> None:
    def job(setting: str, *steps: list[int]) -> Job:
        return make_job(setting=setting, scenario={"dataset": "shapes", "steps": list(steps)})

    for setting, same in (("overlapped", True), ("disjoint", False), ("sequential", False)):
        one, other = job(setting, [1, 2], [3, 4]), job(setting, [1, 2], [3, 5])
        assert (text(one) == text(other)) is same


def test_a_last_step_is_scored_on_all_images_so_it_has_another_key(make_job: MakeJob) -> None:
    alone, followed = (
        make_job(method="finetune", scenario={"dataset": "shapes", "steps": steps})
        for steps in ([[1, 2]], [[1, 2], [3]])
    )
    assert text(alone) != text(followed)


def test_the_base_job_is_step_0_under_a_name_of_its_own(make_job: MakeJob) -> None:
    base = make_job(7).base()
    assert (base.until, base.name) == (0, ("study", "base"))
    assert text(base) == text(make_job(7))


@pytest.mark.parametrize(
    ("wanted", "gpus", "expected"),
    [
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("float32", True, "float32"),
        ("bfloat16", False, "bfloat16"),
    ],
)
def test_the_guessed_precision(make_job: MakeJob, wanted: str, gpus: bool, expected: str) -> None:
    job = make_job(**{"compute.precision": wanted})
    assert job.guessed_precision(gpus=gpus) == expected


def test_absent_weights_are_refused_by_name(make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        assert replace(make_job(), weights=str(tmp_path / "absent.pth")).normalisation


# Base networks.


def based(make: MakeJob, digest: str = "d", channels: tuple[int, ...] = (0, 1), **flat: Any) -> Job:
    """A job that starts from a base network; keys read nothing of its file but the digest."""
    workers = flat.pop("workers", 1)
    job = make(workers=workers, **{"model.base": "a.pth", "model.base_classes": "a.txt", **flat})
    return replace(job, base_network=BaseNetwork("a.pth", digest, channels, IMAGENET))


def test_without_a_base_network_keys_are_those_of_steps_stored_long_ago(make_job: MakeJob) -> None:
    key = {**make_job().step_key(0, precision="float32"), "data": "fixed"}
    assert key_digest(key) == "882abb865b4ead26e2b9d5167796614a"
    passed = make_job(method="ewc").pass_key(1, precision="float32")
    assert passed == {"after": make_job(method="ewc").step_key(0, precision="float32")}


@pytest.mark.parametrize(
    "flat",
    [
        {"optim.lr_base": 0.5},
        {"optim.epochs_base": 7},
        {"optim.momentum": 0.5},
        {"data.crop": 96},
        {"data.batch_size": 8},
        {"model.head": "sigmoid"},
        {"model.norm": "frozen"},
        {"model.base": "b.pth"},
        {"method": "ewc"},
        {"workers": 2},
    ],
)
def test_what_trains_step_0_is_no_part_of_an_imported_ones_key(
    make_job: MakeJob, flat: dict[str, Any]
) -> None:
    assert text(based(make_job, **flat)) == text(based(make_job))


@pytest.mark.parametrize(
    "flat",
    [
        {"digest": "e"},
        {"channels": (1, 0)},
        {"seed": 1},
        {"data.holdout": 0.3},
        {"setting": "disjoint"},
        {"eval.select_on": "val"},
        {"eval.unseen": "ignore"},
        {"eval.mode": "crop"},
        {"model.output_stride": 8},
        {"compute.channels_last": False},
    ],
)
def test_the_network_and_how_it_is_scored_are_an_imported_steps_key(
    make_job: MakeJob, flat: dict[str, Any]
) -> None:
    assert text(based(make_job, **flat)) != text(based(make_job))


def test_scored_on_val_the_seed_draws_nothing_for_an_imported_step(make_job: MakeJob) -> None:
    on_val = {"eval.select_on": "val"}
    assert text(based(make_job, seed=1, **on_val)) == text(based(make_job, seed=2, **on_val))
    one, other = (based(make_job, seed=seed, **on_val) for seed in (1, 2))
    assert text(one, 1) != text(other, 1)


def test_later_steps_keys_hold_the_base_network(make_job: MakeJob) -> None:
    assert text(based(make_job), 1) != text(based(make_job, "e"), 1) != text(make_job(), 1)
    assert text(based(make_job), 1) != text(based(make_job, workers=2), 1)
    assert text(based(make_job), 1) == text(based(make_job, **{"optim.lr_base": 0.5}), 1)
    assert text(based(make_job), 1) != text(based(make_job, **{"data.crop": 96}), 1)


def test_an_imported_step_never_shares_a_key_with_a_trained_one(make_job: MakeJob) -> None:
    assert text(based(make_job)) != text(make_job())


def test_the_normalisation_is_the_base_networks(make_job: MakeJob) -> None:
    halves = Normalisation((0.5, 0.5, 0.5), (1, 1, 1))
    job = based(make_job)
    own = replace(job, base_network=BaseNetwork("a.pth", "d", (0, 1), halves))
    assert own.normalisation == halves
    assert text(own) != text(job)


# Published partitions.


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    out = tmp_path_factory.mktemp("cityscapes") / "data"
    return prepare("cityscapes", None, out, generated=Generated(train=38, val=4, size=32))


def listed_job(data: Prepared, tmp_path: Path, **flat: Any) -> Job:
    scenario = f"{data.dataset}-13-6"
    recipe = Recipe.from_flat({"scenario": scenario, "setting": "disjoint", **flat})
    paths = {"cache": str(tmp_path / "steps"), "store": str(tmp_path / "runs")}
    return Job(recipe, data=str(data.path), weights=None, name=("study", "0"), **paths)


def test_a_published_partition_is_refused_without_its_lists(
    cityscapes: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"disjoint.*cityscapes.*--split-lists DIR.*overlapped"):
        assert listed_job(cityscapes, tmp_path).plan


def test_a_published_partition_runs_on_its_lists(cityscapes: Prepared, tmp_path: Path) -> None:
    names = cityscapes.train["id"].to_pylist()
    for step, part in enumerate((names[:20], names[20:])):
        (tmp_path / f"step{step}.txt").write_text("\n".join(part))
    job = listed_job(cityscapes, tmp_path, **{"data.split_lists": str(tmp_path)})
    assert [len(step.train) for step in job.plan] == [16, 14]
    before = text(job)
    (tmp_path / "step1.txt").write_text("\n".join(names[21:]))
    assert text(listed_job(cityscapes, tmp_path, **{"data.split_lists": str(tmp_path)})) != before


def test_absent_lists_are_refused_by_file(cityscapes: Prepared, tmp_path: Path) -> None:
    job = listed_job(cityscapes, tmp_path, **{"data.split_lists": str(tmp_path)})
    with pytest.raises(DataError, match=r"step0\.txt"):
        assert job.plan


def test_a_job_travels_without_its_images(make_job: MakeJob, shapes: Prepared) -> None:
    job = make_job()
    assert job.plan
    assert shapes.train.nbytes > 20_000
    sent = pickle.dumps(job)
    assert len(sent) < 10_000
    arrived: Job = pickle.loads(sent)
    assert text(arrived) == text(job)


def test_joint_takes_every_image_whatever_the_split_lists(
    make_job: MakeJob, tmp_path: Path
) -> None:
    ids = make_job().prepared.train["id"].to_pylist()
    for step in range(3):
        (tmp_path / f"step{step}.txt").write_text(ids[step])
    lists = {"data.split_lists": str(tmp_path), "eval.select_on": "val"}
    listed = make_job(method="finetune", **lists)
    joint = make_job(method="joint", **lists)
    assert [len(images.train) for images in listed.plan] == [1, 1, 1]
    assert len(joint.plan[0].train) > 3


def test_joint_needs_no_published_lists() -> None:
    recipe = Recipe.from_flat({"scenario": "ade-100-50", "setting": "disjoint", "method": "joint"})
    assert not needs_split_lists(recipe)
    assert needs_split_lists(recipe.with_overrides({"method": "mib"}))
