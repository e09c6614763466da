"""What must not matter: order of pixels, images and classes, and a border without labels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad

from tests.losses.table import (
    BATCHED,
    BETWEEN_IMAGES,
    IMAGE_MEANS,
    LOSSES,
    NUM_CLASSES,
    PIXEL_MEANS,
    PROTOTYPES,
    SIZE,
    VALID,
    Loss,
    Sample,
    gradients,
    make_sample,
)
from ucd_ray import losses

PUBLISHED = "attraction as published"
FEW = settings(max_examples=8)
SAMPLES = st.builds(
    lambda images, num_old, seed: make_sample(images=images, num_old=num_old, seed=seed),
    st.integers(1, 3),
    st.integers(1, NUM_CLASSES),
    st.integers(0, 2**20),
)
SUMS: dict[str, Loss] = {
    "cross_entropy": lambda s: losses.cross_entropy(s.logits, s.labels, reduction="sum"),
    "unbiased_cross_entropy": lambda s: losses.unbiased_cross_entropy(
        s.logits, s.labels, num_old=s.num_old, reduction="sum"
    ),
    "binary_cross_entropy": lambda s: losses.binary_cross_entropy(
        s.logits, s.labels, reduction="sum"
    ),
    "unbiased_binary_cross_entropy": lambda s: losses.unbiased_binary_cross_entropy(
        s.logits, s.labels, num_old=s.num_old, reduction="sum"
    ),
}


def assert_follows(
    loss: Loss, before: Sample, after: Sample, move: Callable[[Tensor], Tensor]
) -> None:
    """The value stays, the gradients of logits and features move as these did."""
    value, *expected = gradients(loss, before)
    moved, *found = gradients(loss, after)
    torch.testing.assert_close(moved, value, rtol=1e-10, atol=1e-12)
    for gradient, old in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, move(old), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in IMAGE_MEANS])
@FEW
@given(sample=SAMPLES, order=st.permutations(range(SIZE[0] * SIZE[1])))
def test_the_order_of_pixels_does_not_matter(name: str, sample: Sample, order: list[int]) -> None:
    """But to local POD, which looks at places."""

    def shuffle(maps: Tensor) -> Tensor:
        return maps.flatten(-2)[..., order].unflatten(-1, SIZE)

    assert_follows(LOSSES[name], sample, sample.map(shuffle, *BATCHED), shuffle)


@pytest.mark.parametrize("name", LOSSES)
@FEW
@given(sample=SAMPLES, data=st.data())
def test_the_order_of_images_does_not_matter(
    name: str, sample: Sample, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(sample.labels))))
    assert_follows(LOSSES[name], sample, sample.images(order), lambda t: t[order])


def test_the_published_attraction_depends_on_the_order_of_classes() -> None:
    """The slip that it reproduces: classes count less the earlier they come."""
    sample = make_sample()
    swapped = relabelled(sample, [0, 1, 2, 4, 3])
    loss = LOSSES[PUBLISHED]
    assert loss(sample).item() != pytest.approx(loss(swapped).item(), rel=1e-3)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != PUBLISHED])
@FEW
@given(sample=SAMPLES, data=st.data())
def test_the_numbers_of_classes_do_not_matter(
    name: str, sample: Sample, data: st.DataObject
) -> None:
    """Old classes among each other, and new ones; background stays where it is."""
    old, new = range(1, sample.num_old), range(sample.num_old, NUM_CLASSES)
    order = [0, *data.draw(st.permutations(old)), *data.draw(st.permutations(new))]

    def shuffle(maps: Tensor) -> Tensor:
        return maps[:, order] if maps.shape[1] == NUM_CLASSES else maps

    assert_follows(LOSSES[name], sample, relabelled(sample, order), shuffle)


def relabelled(sample: Sample, order: list[int]) -> Sample:
    """Channel i of the result is channel order[i]; labels and prototypes go with their channels."""
    places = torch.full((256,), 255)
    places[order] = torch.arange(NUM_CLASSES)
    return (
        sample.map(lambda t: t[:, order], "logits")
        .map(lambda t: t[:, order[: sample.num_old]], "old_logits")
        .map(lambda t: t[order], "prototypes")
        .map(lambda t: places[t], "labels")
    )


@pytest.mark.parametrize("name", [*SUMS, *VALID, *PROTOTYPES])
@FEW
@given(sample=SAMPLES, widths=st.tuples(*[st.integers(0, 3)] * 4), filler=st.floats(0, 9))
def test_an_ignored_border_does_not_matter(
    name: str, sample: Sample, widths: tuple[int, ...], filler: float
) -> None:
    """Whatever the network makes of it, and it gets no gradient."""
    loss = SUMS[name] if name in SUMS else LOSSES[name]
    bordered = sample.map(lambda t: pad(t, widths, value=filler), "logits", "features")
    bordered = bordered.map(lambda t: pad(t, widths, value=255), "labels")
    assert_follows(loss, sample, bordered, lambda t: pad(t, widths))


@pytest.mark.parametrize("name", SUMS)
@FEW
@given(sample=SAMPLES, width=st.integers(1, 3))
def test_an_ignored_border_shrinks_the_mean_over_all_positions(
    name: str, sample: Sample, width: int
) -> None:
    bordered = sample.map(lambda t: pad(t, (0, width)), "logits")
    bordered = bordered.map(lambda t: pad(t, (0, width), value=255), "labels")
    share = SIZE[1] / (SIZE[1] + width)
    loss = PIXEL_MEANS[name]
    assert loss(bordered).item() == pytest.approx(share * loss(sample).item(), rel=1e-10)


@pytest.mark.parametrize("name", [*PIXEL_MEANS, *IMAGE_MEANS, *PROTOTYPES])
@FEW
@given(sample=SAMPLES, copies=st.integers(2, 3))
def test_copies_of_the_batch_change_no_mean(name: str, sample: Sample, copies: int) -> None:
    repeated = sample.images(list(range(len(sample.labels))) * copies)
    value = LOSSES[name](repeated).item()
    assert value == pytest.approx(LOSSES[name](sample).item(), rel=1e-10, abs=1e-12)


@FEW
@given(sample=SAMPLES, factor=st.floats(0.01, 100))
@pytest.mark.parametrize("name", BETWEEN_IMAGES)
def test_similarities_do_not_depend_on_the_features_scale(
    name: str, sample: Sample, factor: float
) -> None:
    loss = LOSSES[name]
    value = loss(sample.map(lambda t: t * factor, "features")).item()
    assert value == pytest.approx(loss(sample).item(), rel=1e-9, abs=1e-12)
