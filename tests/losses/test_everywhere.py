"""Every loss is defined everywhere: finite value, finite gradient, connected to its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.losses.table import LOSSES, MADE_BY_OLD, TENSORS, Sample, make_sample
from ucd_ray import losses

# Tested in files of their own: statistics without a gradient, sampling, and two larger losses.
ELSEWHERE = {
    "balanced_sample",
    "contrastive_distillation",
    "histogram_medians",
    "min_max",
    "normalised_entropy",
    "path_importance",
    "pseudo_labels",
    "running_fisher",
    "unbiased_losses",
    "walk_score",
}


def test_every_public_loss_is_in_the_table() -> None:
    assert {name.split()[0] for name in LOSSES} == set(losses.__all__) - ELSEWHERE


def with_labels(label: int) -> Sample:
    return make_sample().map(lambda t: torch.full_like(t, label), "labels")


def scaled(size: float, *names: str) -> Sample:
    """Entries of one magnitude; features keep their sign, which is never below zero."""
    return make_sample().map(lambda t: t.sign() * size, *names)


LOGITS, FEATURES = ("logits", "old_logits"), ("features", "old_features", "prototypes")
SITUATIONS: dict[str, Callable[[], Sample]] = {
    "ordinary": make_sample,
    "one image": lambda: make_sample(images=1),
    "all background": lambda: with_labels(0),
    "all ignored": lambda: with_labels(255),
    "one new class": lambda: with_labels(4),
    "one old class": lambda: with_labels(1),
    "no old class": lambda: make_sample(num_old=1),
    "no new class": lambda: make_sample(num_old=5),
    "logits of 200": lambda: scaled(200, *LOGITS),
    "logits of -200": lambda: make_sample().map(lambda t: torch.full_like(t, -200), *LOGITS),
    "opposite logits of 200": lambda: make_sample().map(
        lambda t: torch.full_like(t, 200 if t.shape[1] == 5 else -200), *LOGITS
    ),
    "features of zero": lambda: scaled(0, *FEATURES),
    "features of 200": lambda: scaled(200, *FEATURES),
    "models agree": lambda: replace(
        (s := make_sample(num_old=5)), old_logits=s.logits, old_features=s.features
    ),
    "temperature 0.01": lambda: replace(make_sample(), temperature=0.01),
    "logits of 200 at 0.01": lambda: replace(scaled(200, *LOGITS), temperature=0.01),
}
NOTHING_TAKES_PART = [name for name in LOSSES if "cross_entropy" in name] + [
    *("class_means", "prototype_matching", "attraction", "attraction as published"),
    *("repulsion", "sparsity"),
]
PRECISIONS = {
    "float32": (torch.float32, None),
    "float32 under bfloat16": (torch.float32, torch.bfloat16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_finite_and_connected(name: str, situation: str) -> None:
    for precision in PRECISIONS:
        check(name, situation, precision, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_finite_and_connected_on_cuda(name: str) -> None:
    for situation in SITUATIONS:
        for precision in PRECISIONS:
            check(name, situation, precision, "cuda")


def check(name: str, situation: str, precision: str, device: str) -> None:
    """One loss on one sample, whose old model's part comes from inference mode."""
    dtype, autocast = PRECISIONS[precision]
    sample = SITUATIONS[situation]().map(
        lambda t: t.to(device, dtype if t.is_floating_point() else None), *TENSORS
    )
    with torch.inference_mode():
        sample = sample.map(torch.clone, *MADE_BY_OLD)
    sample = sample.leaves()
    with torch.autocast(device, autocast, enabled=autocast is not None):
        value = LOSSES[name](sample)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.isfinite()
    found = [leaf.grad for leaf in (sample.logits, sample.features) if leaf.grad is not None]
    assert len(found) == 1
    assert found[0].isfinite().all()
    if situation == "ordinary":
        assert value > 0
        assert (found[0] != 0).any()
    if situation == "all ignored" and name in NOTHING_TAKES_PART:
        assert value == 0
        assert (found[0] == 0).all()
