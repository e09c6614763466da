"""DDP averages the gradients of the ranks: for which losses that is the gradient of the whole batch.

No processes are needed: a rank is half of the images.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from tests.losses.table import (
    BETWEEN_IMAGES,
    IMAGE_MEANS,
    LOSSES,
    PIXEL_MEANS,
    PROTOTYPES,
    VALID,
    Loss,
    Sample,
    gradients,
    make_sample,
)
from ucd_ray import losses

SHARED = [*PIXEL_MEANS, *IMAGE_MEANS]
OF_A_BATCH = [*VALID, *PROTOTYPES, *BETWEEN_IMAGES]


def halves(sample: Sample) -> tuple[Sample, Sample]:
    half = len(sample.labels) // 2
    return sample.images(slice(half)), sample.images(slice(half, None))


def over_ranks(loss: Loss, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """Mean value, and the gradient of the ranks' mean, put together for the whole batch."""
    first, second = (gradients(loss, half) for half in halves(sample))
    value, *whole = (torch.stack([a, b]) / 2 for a, b in zip(first, second, strict=True))
    logits, features = (maps.flatten(0, 1) for maps in whole)
    return value.sum(), logits, features


def uneven() -> Sample:
    """Four images; the second half has few labels, and fewer classes."""
    sample = make_sample(images=4)
    sample.labels[2:, 1:] = 255
    sample.labels[2:, 0] = 1
    return sample


def second_half_of(label: int) -> Sample:
    sample = make_sample(images=4)
    sample.labels[2:] = label
    return sample


@pytest.mark.parametrize(
    "sample",
    [uneven(), second_half_of(0), second_half_of(255)],
    ids=["uneven ranks", "a rank of background", "a rank of ignored pixels"],
)
@pytest.mark.parametrize("name", SHARED)
def test_two_ranks_give_the_gradient_of_the_whole_batch(name: str, sample: Sample) -> None:
    for found, expected in zip(
        over_ranks(LOSSES[name], sample), gradients(LOSSES[name], sample), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", OF_A_BATCH)
def test_losses_of_a_batch_do_not_claim_it(name: str) -> None:
    """Were one of them to pass, its docstring could promise more."""
    sample = uneven()
    _, *found = over_ranks(LOSSES[name], sample)
    _, *expected = gradients(LOSSES[name], sample)
    assert not all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", OF_A_BATCH)
def test_their_docstrings_say_why(name: str) -> None:
    function = getattr(losses, name.split()[0])
    module = importlib.import_module(function.__module__)
    said = f"{module.__doc__} {function.__doc__}".replace("\n", " ")
    assert "batch-level" in said or 'Not for "valid"' in said


@pytest.mark.parametrize("name", [n for n in LOSSES if "cross_entropy" in n] + list(PROTOTYPES))
def test_a_rank_where_nothing_takes_part_gives_a_gradient_of_zero(name: str) -> None:
    sample = make_sample()
    sample.labels[:] = 255
    value, *found = gradients(LOSSES[name], sample)
    assert value == 0
    assert all((gradient == 0).all() for gradient in found)
