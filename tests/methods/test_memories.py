"""What methods keep from step to step, against definitions written out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ucd_ray.config import PseudoConfig
from ucd_ray.methods import Batch
from ucd_ray.methods.importance import Fisher, Path, PathIntegral, RiemannianWalk
from ucd_ray.methods.memory import Memory, Visit
from ucd_ray.methods.prototypes import Prototypes
from ucd_ray.methods.pseudo import Medians, with_pseudo_labels
from ucd_ray.models import SegOutput

OLD, NEW, WIDTH = 3, 2, 4
CPU = torch.device("cpu")


class Alone:
    """One rank."""

    def sum(self, values: Tensor) -> Tensor:
        return values


class Net(nn.Module):
    """A linear network on 8 x 8 images, body at half their size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, WIDTH, 1)
        self.classifier = nn.Conv2d(WIDTH, OLD, 1)

    def forward(self, images: Tensor) -> SegOutput:
        body = self.body(F.avg_pool2d(images, 2))
        small = self.classifier(body)
        logits = F.interpolate(small, scale_factor=2.0)
        return SegOutput(logits, small, body, body, [body])


def batches(seed: int, num_classes: int, first: int = 0) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(3):
        labels = torch.randint(first, num_classes, (2, 8, 8), generator=rng)
        labels[torch.rand(labels.shape, generator=rng) < 0.3] = 0
        labels[torch.rand(labels.shape, generator=rng) < 0.1] = 255
        found.append((torch.randn(2, 3, 8, 8, generator=rng), labels))
    return found


@pytest.fixture
def visit() -> Visit:
    net = Net().eval().requires_grad_(False)
    learned, coming = batches(1, OLD), batches(2, OLD + NEW, OLD)
    return Visit(net, 1, learned, coming, (OLD, NEW), Alone())  # type: ignore[arg-type]


def pixels(maps: Tensor) -> Iterator[Tensor]:
    yield from maps.movedim(1, -1).reshape(-1, maps.shape[1])


# Prototypes.


def test_prototypes_are_the_mean_feature_of_each_labelled_class(visit: Visit) -> None:
    memory = Prototypes()
    memory.collect(visit)
    found: dict[int, list[Tensor]] = {c: [] for c in range(1, OLD)}
    for images, labels in visit.learned:
        small = F.interpolate(labels[:, None].float(), (4, 4), mode="nearest-exact")[:, 0]
        for label, vector in zip(
            small.flatten().tolist(), pixels(visit.model(images).body), strict=True
        ):
            if label in found:
                found[int(label)].append(vector)
    assert memory.num_classes == OLD + NEW
    assert memory.counts.tolist() == [0, *(len(v) for v in found.values()), 0, 0]
    for label, vectors in found.items():
        torch.testing.assert_close(memory.means[label], torch.stack(vectors).mean(0))


def test_later_steps_add_their_classes_and_leave_older_prototypes_alone(visit: Visit) -> None:
    memory = Prototypes()
    memory.collect(visit)
    before = memory.means.clone()
    later = Visit(visit.model, 2, batches(5, OLD + NEW), visit.coming, (OLD, NEW, 1), Alone())
    memory.collect(later)
    assert memory.num_classes == OLD + NEW + 1
    assert torch.equal(memory.means[:OLD], before[:OLD])
    assert (memory.counts[OLD : OLD + NEW] > 0).all()


def test_new_classes_run_along_with_training(visit: Visit) -> None:
    memory = Prototypes()
    memory.collect(visit)
    old, sums = memory.means[:OLD].clone(), torch.zeros(WIDTH)
    count = 0
    for images, labels in visit.coming:
        output = visit.model(images)
        memory.see(Batch(labels, output, output, OLD), Alone())
        small = F.interpolate(labels[:, None].float(), (4, 4), mode="nearest-exact")[:, 0]
        chosen = (small == OLD).flatten()
        sums += torch.stack(list(pixels(output.body)))[chosen].sum(0)
        count += int(chosen.sum())
    torch.testing.assert_close(memory.means[OLD], sums / count)
    assert torch.equal(memory.means[:OLD], old)


# Importance.


def test_fisher_runs_over_squared_gradients_of_the_mean_over_valid_pixels(visit: Visit) -> None:
    memory = Fisher(decay=0.9, normalise=False)
    memory.collect(visit)
    net = Net()
    expected = {name: torch.ones_like(p) for name, p in net.named_parameters()}
    for images, labels in visit.learned:
        net.zero_grad()
        F.cross_entropy(net(images).logits, labels, ignore_index=255).backward()  # type: ignore[no-untyped-call]
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            expected[name] = 0.9 * parameter.grad**2 + 0.1 * expected[name]
    assert memory.fisher.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(memory.fisher[name], value)
    assert not any(p.requires_grad for p in visit.model.parameters())


def test_importance_is_scaled_per_tensor(visit: Visit) -> None:
    memory = Fisher(decay=0.9, normalise=True)
    memory.collect(visit)
    memory.start({})
    for value in memory.importance.values():
        assert (value.min(), value.max()) == (0, 1)


class Descent:
    """Plain gradient descent on a quadratic, with a penalty that must not count as loss."""

    def __init__(self, memory: Path, *, penalty: float = 0.0) -> None:
        self.memory, self.penalty = memory, penalty
        self.weights = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.double))
        self.curvature = torch.tensor([1.0, 0.5, 0.0], dtype=torch.double)
        self.anchor = torch.tensor([0.5, 0.5, 0.5], dtype=torch.double)
        self.history: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"w": self.weights}

    def run(self, updates: int) -> None:
        for _ in range(updates):
            loss = (self.curvature * self.weights**2).sum()
            (gradient,) = torch.autograd.grad(loss, self.weights)
            total = gradient
            if "w" in self.memory.importance:
                moved = self.weights.detach() - self.anchor
                total = gradient + 2 * self.penalty * self.memory.importance["w"] * moved
            self.weights.grad = total
            self.memory.before_update(self.parameters, {"w": self.anchor})
            before = self.weights.detach().clone()
            with torch.no_grad():
                self.weights -= 0.1 * total
            self.memory.after_update(self.parameters)
            self.history.append((gradient, before, self.weights.detach().clone()))


def test_the_path_integral_is_the_sum_of_gradient_times_way_over_the_squared_way() -> None:
    memory = PathIntegral(weight=0.0, normalise=False)
    descent = Descent(memory)
    memory.start(descent.parameters)
    descent.run(7)
    memory.finish(descent.parameters)
    path = sum(g * (before - after) for g, before, after in descent.history)
    way = descent.history[-1][2] - descent.history[0][1]
    expected = torch.where(way == 0, 0.0, path / way**2)
    torch.testing.assert_close(memory.total["w"].double(), expected, rtol=1e-6, atol=0)
    assert expected[0] > 0
    assert memory.state().keys() == {"total/w"}


def test_damping_takes_importance_from_what_hardly_moved() -> None:
    found = []
    for damping in (1e-20, 1.0):
        memory = PathIntegral(weight=0.0, normalise=False, damping=damping)
        descent = Descent(memory)
        memory.start(descent.parameters)
        descent.run(7)
        memory.finish(descent.parameters)
        found.append(memory.total["w"])
    way = descent.history[-1][2] - descent.history[0][1]
    torch.testing.assert_close(found[1], found[0] * way**2 / (way**2 + 1), rtol=1e-5, atol=0)


def test_the_penalty_s_own_gradient_is_no_part_of_the_path() -> None:
    memory = PathIntegral(weight=3.0, normalise=False)
    memory.total["w"] = torch.tensor([1.0, 2.0, 0.5], dtype=torch.double)
    descent = Descent(memory, penalty=3.0)
    memory.start(descent.parameters)
    descent.run(3)
    path = sum(g * (before - after) for g, before, after in descent.history)
    torch.testing.assert_close(memory.path["w"], path)


def test_importance_of_the_path_adds_up_over_steps() -> None:
    memory = PathIntegral(weight=0.0, normalise=False)
    descent = Descent(memory)
    memory.start(descent.parameters)
    descent.run(3)
    memory.finish(descent.parameters)
    first = memory.total["w"].clone()
    memory.start(descent.parameters)
    descent.run(3)
    memory.finish(descent.parameters)
    assert (memory.total["w"][:2] > first[:2]).all()


def test_the_riemannian_walk_scores_every_interval_and_averages_over_steps() -> None:
    memory = RiemannianWalk(decay=0.9, interval=3, weight=0.0, normalise=False)
    descent = Descent(memory)
    memory.start(descent.parameters)
    descent.run(7)  # two intervals, and one update that is dropped
    fisher, scores = torch.ones(3, dtype=torch.double), []
    drop, last = torch.zeros(3, dtype=torch.double), descent.history[0][1]
    for number, (gradient, before, after) in enumerate(descent.history, start=1):
        fisher = 0.9 * gradient**2 + 0.1 * fisher
        drop = drop + gradient * (before - after)
        if number % 3 == 0:
            scores.append(drop / (0.5 * fisher * (after - last) ** 2 + 1e-20))
            drop, last = torch.zeros(3, dtype=torch.double), after
    torch.testing.assert_close(memory.fisher["w"], fisher)
    torch.testing.assert_close(memory.score["w"].double(), scores[0] + scores[1], rtol=1e-6, atol=0)
    memory.finish(descent.parameters)
    first = memory.old_score["w"].clone()
    memory.start(descent.parameters)
    descent.run(3)
    second = memory.score["w"].clone()
    memory.finish(descent.parameters)
    torch.testing.assert_close(memory.old_score["w"], (first + second) / 2)
    torch.testing.assert_close(memory.state()["fisher/w"], memory.fisher["w"])


# Pseudo-labels.


def test_medians_are_those_of_the_entropy_of_background_pixels_per_predicted_class(
    visit: Visit,
) -> None:
    memory = Medians(PseudoConfig(mode="entropy"))
    memory.collect(visit)
    values: dict[int, list[float]] = {c: [] for c in range(OLD)}
    for images, labels in visit.coming:
        logits = visit.model(images).logits
        for label, z in zip(labels.flatten().tolist(), pixels(logits), strict=True):
            if label == 0:
                p = z.softmax(0)
                entropy = -(p * p.log()).sum() / torch.tensor(float(OLD)).log()
                values[int(z.argmax())].append(float(entropy))
    for label, found in values.items():
        expected = torch.tensor(found).quantile(0.5).item() if found else 0.0
        assert memory.medians["entropy"][label].item() == pytest.approx(expected, abs=5e-3)


def batch_with(medians: Tensor, visit: Visit) -> Batch:
    memory = Medians(PseudoConfig(mode="entropy"))
    memory.medians["entropy"] = medians
    images, labels = batches(2, OLD + NEW, OLD)[0]
    output = visit.model(images)
    return Batch(labels, output, output, OLD, memories={"medians": memory})


def test_pseudo_labels_touch_background_pixels_only(visit: Visit) -> None:
    batch = batch_with(torch.full((OLD,), 2.0), visit)
    relabelled = with_pseudo_labels(batch, PseudoConfig(mode="entropy", adaptive=True))
    background = batch.labels == 0
    assert torch.equal(relabelled.labels, batch.labels)
    assert torch.equal(relabelled.targets[~background], batch.labels[~background])
    guess = batch.teacher.logits.argmax(1)
    assert torch.equal(relabelled.targets[background], guess[background])
    assert relabelled.image_weights is not None
    assert relabelled.image_weights.tolist() == [1, 1]


def test_uncertain_pixels_are_ignored_and_lower_the_image_s_weight(visit: Visit) -> None:
    batch = batch_with(torch.zeros(OLD), visit)
    config = PseudoConfig(mode="entropy", adaptive=True, threshold=0)
    relabelled = with_pseudo_labels(batch, config)
    assert (relabelled.targets[batch.labels == 0] == 255).all()
    assert relabelled.image_weights is not None
    assert relabelled.image_weights.tolist() == [0, 0]


@pytest.mark.parametrize("case", ["none", "step 0", "old classes are labelled"])
def test_there_is_nothing_to_relabel(visit: Visit, case: str) -> None:
    batch = batch_with(torch.zeros(OLD), visit)
    changes: dict[str, Any] = {
        "none": {},
        "step 0": {"old": None},
        "old classes are labelled": {"complete": True},
    }[case]
    batch = Batch(batch.labels, batch.new, changes.pop("old", batch.old), OLD, **changes)
    mode = "none" if case == "none" else "argmax"
    assert with_pseudo_labels(batch, PseudoConfig(mode=mode)) is batch


# Every memory.


@pytest.mark.parametrize(
    "make",
    [
        Prototypes,
        lambda: Fisher(decay=0.9, normalise=True),
        lambda: Medians(PseudoConfig(mode="entropy")),
    ],
)
def test_a_memory_is_the_same_after_it_was_stored(visit: Visit, make: Any) -> None:
    memory: Memory = make()
    memory.collect(visit)
    again: Memory = make()
    again.load(memory.state(), CPU)
    assert memory.state()
    assert all(torch.equal(memory.state()[name], value) for name, value in again.state().items())
    assert again.state().keys() == memory.state().keys()
