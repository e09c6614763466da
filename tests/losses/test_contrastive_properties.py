"""What UCD does not depend on: order, names of classes, ignored borders."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.losses.contrastive_batch import (
    NUM_OLD,
    Batch,
)

pytestmark = pytest.mark.usefixtures("arithmetic")


def permuted(batch: Batch, order: Tensor) -> None:
    """Reorder the pixels of the whole batch."""
    for name in ("new", "old", "logits"):
        maps = getattr(batch, name).detach()
        moved = maps.movedim(1, -1).flatten(0, 2)[order]
        setattr(batch, name, moved.view(*maps.movedim(1, -1).shape).movedim(-1, 1))
    batch.labels = batch.labels.flatten()[order].view_as(batch.labels)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(40)), authors=st.booleans())
def test_order_of_pixels_and_images_does_not_matter(
    seed: int, order: list[int], authors: bool
) -> None:
    batch, form = Batch(seed), "authors" if authors else "standard"
    expected = batch.loss(form=form).item()
    permuted(batch, torch.tensor(order))
    assert batch.loss(form=form).item() == pytest.approx(expected, rel=1e-11)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_order_of_images_moves_the_gradient_along(seed: int) -> None:
    batch = Batch(seed, size=(3, 4, 3))
    expected = torch.autograd.grad(batch.loss(), batch.new)[0]
    for name in ("new", "old", "logits", "labels"):
        setattr(batch, name, getattr(batch, name).detach().roll(1, 0))
    batch.new.requires_grad_()
    gradient = torch.autograd.grad(batch.loss(), batch.new)[0]
    torch.testing.assert_close(gradient, expected.roll(1, 0), rtol=1e-10, atol=1e-12)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    ids=st.lists(st.integers(NUM_OLD, 254), min_size=2, max_size=2, unique=True),
)
def test_names_of_new_classes_do_not_matter(seed: int, ids: list[int]) -> None:
    batch = Batch(seed)
    expected = batch.loss().item()
    labels = batch.labels.clone()
    for old_id, new_id in zip((3, 4), ids, strict=True):
        labels[batch.labels == old_id] = new_id
    batch.labels = labels
    assert batch.loss().item() == pytest.approx(expected, rel=1e-11)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), border=st.integers(1, 3))
def test_an_ignored_border_does_not_matter(seed: int, border: int) -> None:
    batch = Batch(seed)
    expected = batch.loss().item()
    pad = torch.nn.functional.pad
    frame = (border,) * 4
    for name in ("new", "old", "logits"):
        setattr(batch, name, pad(getattr(batch, name).detach(), frame, value=1.0))
    batch.labels = pad(batch.labels, frame, value=255)
    assert batch.loss().item() == pytest.approx(expected, rel=1e-11)
