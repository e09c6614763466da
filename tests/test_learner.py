"""One step of training: batches, schedule, accumulation, several workers, resume, divergence."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tests.conftest import tiny_recipe
from ucd_ray.data.prepare import Prepared, open_prepared
from ucd_ray.data.step import evaluation_labels, presence, select_images, training_labels
from ucd_ray.data.transforms import EvaluationImages, TrainingImages, seed_of
from ucd_ray.errors import TrainingDiverged
from ucd_ray.evaluate import confusion_matrix
from ucd_ray.learner import Epoch, EpochBatches, Learner, Ranks
from ucd_ray.methods.distillation import OutputKD
from ucd_ray.methods.memory import Memory
from ucd_ray.models import Segmenter, build_segmenter, frozen_copy
from ucd_ray.models.weights import IMAGENET
from ucd_ray.recipe import Recipe, Schedule
from ucd_ray.runtime import choose_runtime

ONE = Ranks()


def make_learner(
    shapes: Prepared,
    recipe: Recipe,
    *,
    step: int = 0,
    ranks: Ranks = ONE,
    double: bool = False,
    memories: dict[str, Memory] | None = None,
) -> Learner:
    """A learner of `step` on all its images; the weights follow from the seed alone."""
    scenario = recipe.scenario
    torch.manual_seed(recipe.seed)
    segmenter = build_segmenter(
        backbone=recipe.model.backbone,
        output_stride=16,
        classes_per_step=scenario.classes_per_step()[: max(1, step)],
        normalisation=IMAGENET,
        norm=recipe.model.norm,
        width=recipe.model.width,
    )
    if double:
        segmenter.double()
    old = None
    if step > 0:
        old = frozen_copy(segmenter)
        segmenter.grow(len(scenario.steps[step]), background_init=recipe.model.background_init)
    labels = training_labels(scenario, step, "overlapped")
    rows = select_images(presence(shapes.train), scenario, step, "overlapped")
    return Learner(
        segmenter,
        old,
        TrainingImages(shapes.train, labels, recipe.data, seed_of(recipe.seed, step)),
        torch.from_numpy(rows),
        recipe,
        step,
        runtime=choose_runtime(recipe.compute),
        ranks=ranks,
        memories=memories,
    )


def fit(learner: Learner) -> list[Epoch]:
    return list(learner.fit())


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.segmenter.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_training_lowers_the_loss(shapes: Prepared) -> None:
    epochs = fit(
        make_learner(shapes, tiny_recipe(**{"optim.epochs_base": 6, "optim.lr_base": 0.05}))
    )
    assert epochs[-1].losses["ce"] < 0.7 * epochs[0].losses["ce"]


def test_an_epoch_tells_where_training_stands(shapes: Prepared) -> None:
    learner = make_learner(shapes, tiny_recipe(**{"optim.iterations_base": 7}))
    per_epoch = learner.plan.per_epoch
    assert 3 < per_epoch < 7
    first, last = fit(learner)
    assert [(e.epoch, e.epochs, e.iteration) for e in (first, last)] == [
        (1, 2, per_epoch),
        (2, 2, 7),
    ]
    assert set(first.losses) == {"ce"}
    assert first.images_per_s > 0
    assert first.seconds_left > 0 == last.seconds_left


def test_the_old_model_and_frozen_norms_do_not_change(shapes: Prepared) -> None:
    recipe = tiny_recipe(method="mib+ucd", **{"model.norm": "frozen", "optim.lr_new": 1e-4})
    learner = make_learner(shapes, recipe, step=1)
    assert learner.old is not None
    old, before = copy.deepcopy(learner.old.state_dict()), weights(learner)
    epochs = fit(learner)
    assert_same(old, learner.old.state_dict())
    assert set(epochs[0].losses) == {"ce", "kd", "ucd"}
    after = weights(learner)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "classifiers.1.weight" in changed
    assert not [name for name in changed if "running" in name or ".bn" in name]


@pytest.mark.parametrize("method", ["lwf", "mib+ucd", "plop+ucd", "sdr+ucd", "ilt+ucd"])
def test_the_old_model_runs_once_per_batch_in_inference_mode(shapes: Prepared, method: str) -> None:
    recipe = tiny_recipe(method=method, **{"optim.iterations_new": 2})
    memories = recipe.memories()
    for memory in memories.values():
        state = {"medians/entropy": torch.ones(9), "sums/body": torch.ones(11, 96)}
        memory.load({**state, "count/body": torch.ones(11)}, torch.device("cpu"))
    learner = make_learner(shapes, recipe, step=1, memories=memories)
    assert learner.old is not None
    inference: list[bool] = []
    learner.old.register_forward_hook(
        lambda *_: inference.append(torch.is_inference_mode_enabled())
    )
    fit(learner)
    assert inference == [True, True]


# Schedule.


def test_the_learning_rate_falls_polynomially_per_iteration(shapes: Prepared) -> None:
    recipe = tiny_recipe(
        **{
            "optim.iterations_base": 7,
            "optim.lr_base": 0.02,
            "optim.head_lr_factor": 10,
            "optim.poly_power": 0.9,
        }
    )
    learner, seen = make_learner(shapes, recipe), []
    learner.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append([group["lr"] for group in optimizer.param_groups])
    )
    fit(learner)
    expected = [0.02 * (1 - iteration / 7) ** 0.9 for iteration in range(7)]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([[lr, 10 * lr] for lr in expected]))


def test_later_steps_start_at_their_own_rate(shapes: Prepared) -> None:
    recipe = tiny_recipe(**{"optim.lr_base": 0.1, "optim.lr_new": 0.003})
    for step, lr in ((0, 0.1), (1, 0.003)):
        groups = make_learner(shapes, recipe, step=step).optimizer.param_groups
        assert [group["initial_lr"] for group in groups] == [lr, lr]


def test_every_trainable_weight_is_in_the_optimizer_once(shapes: Prepared) -> None:
    learner = make_learner(shapes, tiny_recipe(), step=1)
    listed = [p for group in learner.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in listed} == {id(p) for p in learner.segmenter.parameters()}
    assert len(listed) == len({id(p) for p in listed})


# Batches.


def batches_of(
    rows: int, plan: Schedule, batch: int, *, micro: int, ranks: Ranks = ONE, epoch: int = 0
) -> list[list[tuple[int, int]]]:
    batches = EpochBatches(torch.arange(rows), plan, batch, micro, ranks, seed=5)
    batches.epoch = epoch
    found = list(batches)
    assert len(found) == len(batches)
    return found


def test_an_epoch_sees_full_batches_of_different_images() -> None:
    found = batches_of(11, Schedule(iterations=6, per_epoch=2), 4, micro=4)
    rows = [row for batch in found for _, row in batch]
    assert [len(batch) for batch in found] == [4, 4]
    assert len(set(rows)) == 8


def test_epochs_are_shuffled_differently_and_name_themselves() -> None:
    plan = Schedule(iterations=6, per_epoch=2)
    first, second = (batches_of(8, plan, 4, micro=4, epoch=epoch) for epoch in (0, 1))
    assert {epoch for batch in second for epoch, _ in batch} == {1}
    assert [r for b in first for _, r in b] != [r for b in second for _, r in b]


def test_the_last_epoch_may_be_partial() -> None:
    found = batches_of(8, Schedule(iterations=3, per_epoch=2), 4, micro=2, epoch=1)
    assert [len(batch) for batch in found] == [2, 2]


def test_fewer_images_than_a_batch_are_repeated() -> None:
    (found,) = batches_of(3, Schedule(iterations=1, per_epoch=1), 8, micro=8)
    rows = [row for _, row in found]
    assert sorted(set(rows)) == [0, 1, 2]
    assert len(rows) == 8


@pytest.mark.parametrize(("workers", "micro"), [(2, 4), (4, 2), (2, 1), (1, 2)])
def test_workers_and_micro_batches_share_the_same_total_batches(workers: int, micro: int) -> None:
    plan = Schedule(iterations=6, per_epoch=3)
    whole = batches_of(24, plan, 8, micro=8)
    parts = [batches_of(24, plan, 8, micro=micro, ranks=Ranks(r, workers)) for r in range(workers)]
    passes = 8 // workers // micro
    for update, expected in enumerate(whole):
        chunks = [part[update * passes : (update + 1) * passes] for part in parts]
        assert [item for part in chunks for chunk in part for item in chunk] == expected


# The same update however the batch is cut.

EXACT: dict[str, Any] = {  # no statistics over a batch, no rate at which random weights explode
    "method": "mib",
    "model.norm": "frozen",
    "optim.lr_base": 1e-5,
    "optim.lr_new": 1e-5,
    "optim.iterations_base": 3,
    "optim.iterations_new": 3,
}


NORMED = {"model.norm": "batch", "optim.lr_base": 1e-2}


@pytest.mark.parametrize("step", [0, 1])
def test_accumulated_gradients_give_the_update_of_the_whole_batch(
    shapes: Prepared, step: int
) -> None:
    whole = make_learner(shapes, tiny_recipe(**EXACT), step=step, double=True)
    before = weights(whole)
    halves = make_learner(
        shapes, tiny_recipe(**EXACT, **{"data.micro_batch": 2}), step=step, double=True
    )
    losses = [fit(learner)[-1].losses for learner in (whole, halves)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    one, other = weights(whole), weights(halves)
    assert max((before[name] - one[name]).abs().max() for name in one) > 1e-6
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def confusion_of(segmenter: Segmenter, shapes: Prepared, recipe: Recipe, ranks: Ranks) -> Tensor:
    labels = evaluation_labels(recipe.scenario, 1, unseen="background")
    rows = torch.arange(7).numpy()
    images = EvaluationImages(shapes.val, rows, labels, recipe.eval)
    return confusion_matrix(segmenter, images, runtime=choose_runtime(recipe.compute), ranks=ranks)


def train_as_rank(rank: int, world_size: int, folder: str, data: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size
    )
    shapes, recipe = open_prepared(Path(data)), tiny_recipe(**EXACT)
    ranks = Ranks(rank, world_size)
    learner = make_learner(shapes, recipe, step=1, ranks=ranks, double=True)
    epochs = fit(learner)
    confusion = confusion_of(learner.segmenter, shapes, recipe, ranks)
    normed = make_learner(shapes, tiny_recipe(**{**EXACT, **NORMED}), ranks=ranks)
    fit(normed)
    found = (weights(learner), epochs[-1].losses, confusion, weights(normed))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_train_and_score_as_one(shapes: Prepared, tmp_path: Path) -> None:
    recipe = tiny_recipe(**EXACT)
    alone = make_learner(shapes, recipe, step=1, double=True)
    losses = fit(alone)[-1].losses
    confusion = confusion_of(alone.segmenter, shapes, recipe, ONE)
    mp.spawn(train_as_rank, (2, str(tmp_path), str(shapes.path)), nprocs=2)  # type: ignore[no-untyped-call]
    normed = []
    for rank in range(2):
        found, found_losses, found_confusion, with_norm = torch.load(tmp_path / f"{rank}.pt")
        normed.append(with_norm)
        torch.testing.assert_close(found, weights(alone), rtol=1e-9, atol=1e-12)
        assert found_losses == pytest.approx(losses, rel=1e-5)
        assert torch.equal(found_confusion, confusion)
    assert_same(*normed)  # the statistics of batch norm included: both ranks score one network


# Again and on.


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(shapes: Prepared) -> None:
    recipe = tiny_recipe(**{"optim.iterations_base": 3})
    one, again = (make_learner(shapes, recipe) for _ in range(2))
    other = make_learner(shapes, recipe.with_overrides({"seed": 1}))
    assert fit(one)[-1].losses == fit(again)[-1].losses != fit(other)[-1].losses
    assert_same(weights(one), weights(again))


@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_step_ends_bit_identical(shapes: Prepared, after: int) -> None:
    recipe = tiny_recipe(**{"optim.epochs_new": 3, "data.batch_size": 4})
    whole = make_learner(shapes, recipe, step=1)
    expected = fit(whole)
    broken = make_learner(shapes, recipe, step=1)
    epochs = broken.fit()
    for _ in range(after):
        next(epochs)
    file = io.BytesIO()
    torch.save(broken.state(), file)
    torch.manual_seed(12345)  # a new process has another random state
    resumed = make_learner(shapes, recipe, step=1)
    file.seek(0)
    resumed.load_state(torch.load(file))
    rest = fit(resumed)
    assert [e.losses for e in rest] == [e.losses for e in expected[after:]]
    assert [e.iteration for e in rest] == [e.iteration for e in expected[after:]]
    assert_same(weights(whole), weights(resumed))
    momenta = [
        [state["momentum_buffer"] for state in learner.optimizer.state.values()]
        for learner in (whole, resumed)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))


# Divergence.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("iteration", [0, 3])
def test_a_loss_that_is_not_finite_names_term_step_and_iteration(
    shapes: Prepared, monkeypatch: pytest.MonkeyPatch, value: float, iteration: int
) -> None:
    true, calls = OutputKD.__call__, iter(range(100))

    def sometimes(self: OutputKD, batch: Any) -> Tensor:
        loss = true(self, batch)
        return loss * value if next(calls) == iteration else loss

    monkeypatch.setattr(OutputKD, "__call__", sometimes)
    learner = make_learner(shapes, tiny_recipe(method="lwf", **{"optim.iterations_new": 5}), step=1)
    message = f"loss term 'kd' became {value} at step 1, iteration {iteration}"
    with pytest.raises(TrainingDiverged, match=message):
        fit(learner)


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        ("none", {"backbone", "head", "classifiers.0", "classifiers.1"}),
        ("encoder", {"head", "classifiers.0", "classifiers.1"}),
        ("old", {"classifiers.1"}),
    ],
)
def test_frozen_parts_keep_weights_and_norm_statistics(
    shapes: Prepared, freeze: str, trained: set[str]
) -> None:
    learner = make_learner(
        shapes, tiny_recipe(method="finetune", **{"model.freeze": freeze}), step=1
    )
    before = weights(learner)
    fit(learner)
    changed = {
        name for name, value in weights(learner).items() if not torch.equal(value, before[name])
    }
    parts = {
        ".".join(name.split(".")[: 2 if name.startswith("classifiers") else 1]) for name in changed
    }
    assert parts == trained
