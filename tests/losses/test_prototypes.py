"""SDR's prototype losses against loops over positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ucd_ray.errors import ConfigError
from ucd_ray.losses import (
    attraction,
    class_means,
    prototype_matching,
    repulsion,
    sparsity,
)

NUM_CLASSES = 5


def sample(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Features >= 0, classes 0, 1 and 3 with ignored positions, prototypes."""
    rng = torch.Generator().manual_seed(0)
    features = torch.rand(2, 4, 3, 3, generator=rng, dtype=torch.float64).to(dtype)
    classes = torch.tensor([0, 1, 3])[torch.randint(0, 3, (2, 3, 3), generator=rng)]
    classes[0, 0], classes[1, 2, 2] = 255, 255
    prototypes = torch.rand(NUM_CLASSES, 4, generator=rng, dtype=torch.float64).to(dtype)
    return features.requires_grad_(), classes, prototypes


def members(features: Tensor, classes: Tensor) -> dict[int, list[Tensor]]:
    found: dict[int, list[Tensor]] = {}
    for b in range(2):
        for y in range(3):
            for x in range(3):
                label = int(classes[b, y, x])
                if label != 255:
                    found.setdefault(label, []).append(features[b, :, y, x])
    return found


def matching_loss(features: Tensor, classes: Tensor, prototypes: Tensor) -> Tensor:
    means, counts = class_means(features, classes, num_classes=NUM_CLASSES)
    return prototype_matching(means, prototypes, counts > 0)


def attraction_loss(features: Tensor, classes: Tensor, prototypes: Tensor) -> Tensor:
    return attraction(features, classes, prototypes)


def published_attraction(features: Tensor, classes: Tensor, prototypes: Tensor) -> Tensor:
    return attraction(features, classes, prototypes, form="authors")


def repulsion_loss(features: Tensor, classes: Tensor, prototypes: Tensor) -> Tensor:
    means, counts = class_means(features, classes, num_classes=NUM_CLASSES)
    return repulsion(means, counts > 0)


def sparsity_loss(features: Tensor, classes: Tensor, prototypes: Tensor) -> Tensor:
    return sparsity(features, classes)


def slow_matching(groups: dict[int, list[Tensor]], prototypes: Tensor) -> Tensor:
    means = {c: sum(fs[1:], start=fs[0]) / len(fs) for c, fs in groups.items()}
    errors = [((mean - prototypes[c]) ** 2).sum() / 4 for c, mean in means.items()]
    return torch.stack(errors).mean()


def slow_attraction(groups: dict[int, list[Tensor]], prototypes: Tensor) -> Tensor:
    errors = [
        torch.stack([((f - prototypes[c]) ** 2).sum() / 4 for f in fs]).mean()
        for c, fs in groups.items()
    ]
    return torch.stack(errors).mean()


def slow_published_attraction(groups: dict[int, list[Tensor]], prototypes: Tensor) -> Tensor:
    """The division that belongs after the loop happens in every round."""
    total = torch.zeros((), dtype=torch.float64)
    for c in sorted(groups):
        entries = [e for f in groups[c] for e in (f - prototypes[c]) ** 2]
        total = (total + torch.stack(entries).mean()) / len(groups)
    return total


def slow_repulsion(groups: dict[int, list[Tensor]], prototypes: Tensor) -> Tensor:
    means = [sum(fs[1:], start=fs[0]) / len(fs) for fs in groups.values()]
    terms = [1 / ((a - b) ** 2).sum().sqrt() for i, a in enumerate(means) for b in means[i + 1 :]]
    return torch.stack(terms).mean()


def slow_sparsity(groups: dict[int, list[Tensor]], prototypes: Tensor) -> Tensor:
    terms = []
    for fs in groups.values():
        largest = torch.stack(fs).max()
        terms += [(f / largest).exp().sum() / (f / largest).sum() for f in fs]
    return torch.stack(terms).mean()


PAIRS = [
    (matching_loss, slow_matching),
    (attraction_loss, slow_attraction),
    (published_attraction, slow_published_attraction),
    (repulsion_loss, slow_repulsion),
    (sparsity_loss, slow_sparsity),
]
LOSSES = [fast for fast, _ in PAIRS]


@pytest.mark.parametrize(("loss", "slow"), PAIRS)
def test_value_and_gradient_equal_loops_over_positions(
    loss: Callable[..., Tensor], slow: Callable[..., Tensor]
) -> None:
    features, classes, prototypes = sample()
    actual, expected = (
        loss(features, classes, prototypes),
        slow(members(features, classes), prototypes),
    )
    (gradient,) = torch.autograd.grad(actual, features)
    (expected_gradient,) = torch.autograd.grad(expected, features)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


def test_class_means_count_positions_and_leave_absent_classes_zero() -> None:
    features, classes, _ = sample()
    means, counts = class_means(features, classes, num_classes=NUM_CLASSES)
    groups = members(features, classes)
    assert counts.tolist() == [len(groups.get(c, [])) for c in range(NUM_CLASSES)]
    assert (means[[2, 4]] == 0).all()


def test_class_means_and_their_gradient_equal_loops_over_positions() -> None:
    features, classes, _ = sample()
    means, _ = class_means(features, classes, num_classes=NUM_CLASSES)
    rows = [torch.zeros(4, dtype=torch.float64)] * NUM_CLASSES
    for c, vectors in members(features, classes).items():
        rows[c] = sum(vectors[1:], start=vectors[0]) / len(vectors)
    expected = torch.stack(rows)
    torch.testing.assert_close(means, expected, rtol=1e-10, atol=1e-10)
    weights = torch.rand(NUM_CLASSES, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((means * weights).sum(), features)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), features)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss: Callable[..., Tensor]) -> None:
    features, classes, prototypes = sample()
    assert torch.autograd.gradcheck(lambda x: loss(x, classes, prototypes), features)


def test_published_attraction_is_the_mean_for_one_class_and_less_for_more() -> None:
    features, classes, prototypes = sample()
    args = features, classes, prototypes
    assert published_attraction(*args).item() < attraction_loss(*args).item()
    classes[classes != 255] = 3
    assert published_attraction(*args).item() == attraction_loss(*args).item()


@pytest.mark.parametrize("loss", LOSSES)
def test_prototypes_get_no_gradient(loss: Callable[..., Tensor]) -> None:
    features, classes, prototypes = sample()
    loss(features, classes, prototypes.requires_grad_()).backward()
    assert prototypes.grad is None


def everything_ignored(features: Tensor, classes: Tensor) -> None:
    classes.fill_(255)


def one_class(features: Tensor, classes: Tensor) -> None:
    classes.fill_(1)


def zero_features(features: Tensor, classes: Tensor) -> None:
    features.detach().zero_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("corner", [everything_ignored, one_class, zero_features])
@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradient_are_finite(
    loss: Callable[..., Tensor], corner: Any, dtype: torch.dtype
) -> None:
    features, classes, prototypes = sample(dtype)
    corner(features, classes)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        value = loss(features, classes, prototypes)
    assert value.dtype == torch.float32
    assert value.isfinite()
    if corner is everything_ignored:
        assert value.item() == 0.0
    value.backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_unknown_form_of_attraction_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown form 'author'; did you mean 'authors'"):
        attraction(*sample(), form="author")


def test_classes_without_a_prototype_are_refused() -> None:
    features, classes, prototypes = sample()
    with pytest.raises(ConfigError, match=r"classes holds 3; allowed are 0 to 2, .* and 255"):
        attraction(features, classes, prototypes[:3])
    with pytest.raises(ConfigError, match=r"classes holds 3; allowed are 0 to 2, .* and 255"):
        class_means(features, classes, num_classes=3)
    with pytest.raises(ConfigError, match="classes holds -1; allowed are 0 to 254"):
        sparsity(features, classes - 1)


def test_arguments_of_other_shapes_are_refused() -> None:
    features, classes, prototypes = sample()
    with pytest.raises(ConfigError, match=r"features has the shape \[2, 4, 3\]"):
        class_means(features[..., 0], classes, num_classes=NUM_CLASSES)
    with pytest.raises(ConfigError, match=r"features has the shape \[4\]"):
        attraction(features[0, :, 0, 0], classes, prototypes)
    with pytest.raises(ConfigError, match=r"classes has the shape \[1, 3, 3\]; .* \[2, 3, 3\]"):
        sparsity(features, classes[:1])
    with pytest.raises(ConfigError, match=r"prototypes has the shape \[5, 3\]; .* \[C, 4\]"):
        attraction(features, classes, prototypes[:, :3])
    means, present = prototypes, torch.ones(NUM_CLASSES, dtype=torch.bool)
    with pytest.raises(ConfigError, match=r"prototypes has the shape \[4, 4\]; .* \[5, 4\]"):
        prototype_matching(means, prototypes[:4], present)
    with pytest.raises(ConfigError, match=r"means has the shape \[4\]"):
        prototype_matching(means[0], prototypes, present)
    for loss in (lambda p: prototype_matching(means, prototypes, p), lambda p: repulsion(means, p)):
        with pytest.raises(ConfigError, match=r"present has the shape \[3\]; it must be \[5\]"):
            loss(present[:3])
    with pytest.raises(ConfigError, match=r"means has the shape \[4\]"):
        repulsion(means[0], present)
