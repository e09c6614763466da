"""Two ranks are one: what methods keep, and the update, are those of one process with the same batches.

Two processes do everything once; the tests compare what they left with one process of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tests.conftest import tiny_recipe
from ucd_ray.checkpoint import StepCache
from ucd_ray.data.prepare import Prepared
from ucd_ray.data.step import training_labels
from ucd_ray.data.transforms import TrainingImages, seed_of
from ucd_ray.job import Job
from ucd_ray.learner import Learner, Ranks
from ucd_ray.memories import Memories, Shares
from ucd_ray.methods.memory import Memory, Visit
from ucd_ray.methods.term import IGNORED
from ucd_ray.models import Segmenter, build_segmenter, frozen_copy
from ucd_ray.models.weights import IMAGENET
from ucd_ray.runtime import choose_runtime

Named = dict[str, Tensor]

EXACT: dict[str, Any] = {  # no statistics over a batch, no rate at which random weights explode
    "model.norm": "frozen",
    "optim.lr_base": 1e-5,
    "optim.lr_new": 1e-5,
    "optim.iterations_base": 3,
    "optim.iterations_new": 3,
}
COLLECTED = {"plop": "medians", "sdr": "prototypes", "ewc": "ewc"}  # method -> its memory
WATCHED = {"pi": "pi", "rw": "rw"}
# All terms of these methods claim the gradient of the whole batch.
WHOLE_BATCH = ("finetune", "lwf", "mib", "plop", "ewc", "pi", "rw")
HOLDOUT = {"plop": 0.15}  # an image more than full batches, so that a rank gets an empty share


def make_job(method: str, data: str, folder: Path, workers: int) -> Job:
    values: dict[str, Any] = {**EXACT, "data.holdout": HOLDOUT.get(method, 0.05)}
    if method == "rw":
        values["rw.interval"] = 2
    if (
        method == "sdr"
    ):  # after one update of batch-level terms the ranks' network is not that of one
        values["optim.iterations_new"] = 1
    return Job(
        recipe=tiny_recipe(method=method, **values),
        data=data,
        cache=str(folder / "steps"),
        weights=None,
        store=str(folder / "runs"),
        name=("ranks", method),
        workers=workers,
    )


def make_segmenter(job: Job, step: int) -> Segmenter:
    """The network that enters `step`, in double precision, of random weights that follow from the seed."""
    recipe = job.recipe
    torch.manual_seed(recipe.seed)
    return build_segmenter(
        backbone=recipe.model.backbone,
        output_stride=16,
        classes_per_step=recipe.scenario.classes_per_step()[: max(1, step)],
        normalisation=IMAGENET,
        norm=recipe.model.norm,
        width=recipe.model.width,
    ).double()


def entered(job: Job, ranks: Ranks) -> dict[str, Memory]:
    """The memories that enter step 1, of a pass over real shares."""
    cache, runtime = StepCache(job.open_cache()), choose_runtime(job.recipe.compute)
    old = frozen_copy(make_segmenter(job, 1))
    return Memories(job, cache, runtime, ranks).enter(1, old)


def trained(job: Job, step: int, memories: dict[str, Memory], ranks: Ranks) -> tuple[Named, Named]:
    """Weights after the updates of `step`, and what the memories keep then."""
    recipe, segmenter = job.recipe, make_segmenter(job, step)
    old = None
    if step > 0:
        old = frozen_copy(segmenter)
        added = len(recipe.scenario.steps[step])
        segmenter.grow(added, background_init=recipe.model.background_init)
    labels = training_labels(recipe.scenario, step, recipe.setting)
    learner = Learner(
        segmenter,
        old,
        TrainingImages(job.prepared.train, labels, recipe.data, seed_of(recipe.seed, step)),
        torch.from_numpy(job.plan[step].train),
        recipe,
        step,
        runtime=choose_runtime(recipe.compute),
        ranks=ranks,
        memories=memories,
    )
    list(learner.fit())
    kept = {name: value for m in memories.values() for name, value in m.state().items()}
    return dict(segmenter.state_dict()), kept


# A pass by hand: the second half of the first batch has no foreground, the last batch is one image.


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(8)
    images = torch.randint(0, 256, (5, 3, 64, 64), generator=generator)
    labels = torch.randint(0, 9, (5, 64, 64), generator=generator)
    labels[2:4] = 0
    labels[:, :9] = IGNORED
    return [(images[:4], labels[:4]), (images[4:], labels[4:])]


def share(ranks: Ranks) -> list[tuple[Tensor, Tensor]]:
    """This rank's part of `batches`: the second rank gets the filler of an empty share at the end."""
    first, (images, labels) = batches()
    if ranks.world_size == 1:
        return [first, (images, labels)]
    half = slice(2 * ranks.rank, 2 * ranks.rank + 2)
    filler = torch.full_like(labels, IGNORED) if ranks.rank == 1 else labels
    return [(first[0][half], first[1][half]), (images, filler)]


def collected(job: Job, ranks: Ranks) -> Named:
    """What the memory of `job`'s method keeps of the pass by hand."""
    (memory,) = job.recipe.memories().values()
    images = share(ranks)
    old = frozen_copy(make_segmenter(job, 1))
    memory.collect(Visit(old, 1, images, images, (9, 2), ranks))
    return memory.state()


def everything(data: str, folder: Path, ranks: Ranks) -> dict[str, Named]:
    """All that is compared, by name."""
    found: dict[str, Named] = {}
    for method in COLLECTED:
        job = make_job(method, data, folder, ranks.world_size)
        found[f"{method} by hand"] = collected(job, ranks)
    for method in ("finetune", "lwf", "mib", *COLLECTED, *WATCHED):
        job = make_job(method, data, folder, ranks.world_size)
        memories = entered(job, ranks)
        if method in WATCHED:
            _, found[f"{method} watched"] = trained(job, 0, memories, ranks)
            for memory in memories.values():
                memory.finish(dict(make_segmenter(job, 0).named_parameters()))
        else:
            found[f"{method} pass"] = {
                name: value.clone() for m in memories.values() for name, value in m.state().items()
            }
        found[f"{method} weights"], found[f"{method} kept"] = trained(job, 1, memories, ranks)
    return found


def as_rank(rank: int, data: str, folder: str) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    torch.save(everything(data, Path(folder), Ranks(rank, 2)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


Both = tuple[dict[str, Named], dict[str, Named]]


@pytest.fixture(scope="module")
def of_two(shapes: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(as_rank, (str(shapes.path), str(folder)), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    return first, second


@pytest.fixture(scope="module")
def of_one(shapes: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Named]:
    """The same from one process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the ranks
    found = everything(str(shapes.path), tmp_path_factory.mktemp("one"), Ranks())
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize("method", COLLECTED)
def test_a_rank_without_foreground_or_without_an_image_does_not_disturb_a_pass(
    of_one: dict[str, Named], of_two: Both, method: str
) -> None:
    for found in of_two:
        assert_equal(found[f"{method} by hand"], of_one[f"{method} by hand"])


@pytest.mark.parametrize("method", COLLECTED)
def test_a_pass_over_shares_is_a_pass_over_all_images(
    shapes: Prepared, tmp_path: Path, of_one: dict[str, Named], of_two: Both, method: str
) -> None:
    job = make_job(method, str(shapes.path), tmp_path, 2)
    rows = job.plan[1 if method == "plop" else 0].train
    assert list(Shares(rows, 2, Ranks(1, 2)))[-1] == [(0, -1)], "a rank without an image is seen"
    for found in of_two:
        assert_equal(found[f"{method} pass"], of_one[f"{method} pass"])


@pytest.mark.parametrize("method", WATCHED)
def test_what_is_watched_at_step_0_is_the_same(
    of_one: dict[str, Named], of_two: Both, method: str
) -> None:
    for found in of_two:
        assert_equal(found[f"{method} watched"], of_one[f"{method} watched"], rtol=1e-5)


@pytest.mark.parametrize("method", WHOLE_BATCH)
def test_three_updates_of_two_ranks_are_those_of_whole_batches(
    of_one: dict[str, Named], of_two: Both, method: str
) -> None:
    for found in of_two:
        assert_equal(found[f"{method} weights"], of_one[f"{method} weights"])


def test_ranks_keep_the_same_weights_where_their_gradients_are_not_those_of_the_whole_batch(
    of_one: dict[str, Named], of_two: Both
) -> None:
    first, second = (found["sdr weights"] for found in of_two)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], of_one["sdr weights"][name]) for name in first)


def test_running_prototypes_are_those_of_all_ranks(of_one: dict[str, Named], of_two: Both) -> None:
    for found in of_two:
        assert_equal(found["sdr kept"], of_one["sdr kept"])
    counts = [of_one[f"sdr {when}"]["count/body"] for when in ("pass", "kept")]
    assert torch.equal(counts[0][:9], counts[1][:9]), "old classes are fixed"
    assert counts[0][9:].sum() == 0 < counts[1][9:].sum(), "new classes are seen"


def assert_equal(found: Named, expected: Named, *, rtol: float = 1e-7) -> None:
    assert found.keys() == expected.keys()
    assert found
    for name, value in expected.items():
        scale = float(value.abs().max()) if value.is_floating_point() else 0
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=1e-9 * scale, msg=name)
