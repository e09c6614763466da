"""Local POD against explicit regions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ucd_ray.errors import ConfigError
from ucd_ray.losses import background_sum, local_pod


def by_regions(new: Tensor, old: Tensor, scales: tuple[int, ...]) -> Tensor:
    """Mean distance over images; regions of equal size cut one by one."""
    distances = []
    for image, other in zip(new, old, strict=True):
        total = image.new_zeros(())
        for scale in scales:
            height, width = image.shape[1] // scale, image.shape[2] // scale
            for i in range(scale):
                for j in range(scale):
                    rows = slice(i * height, (i + 1) * height)
                    columns = slice(j * width, (j + 1) * width)
                    a, b = image[:, rows, columns] ** 2, other[:, rows, columns] ** 2
                    total = total + ((a.mean(2) - b.mean(2)) ** 2).sum()
                    total = total + ((a.mean(1) - b.mean(1)) ** 2).sum()
        distances.append(total.sqrt())
    return torch.stack(distances).mean()


def by_pixels(new: Tensor, old: Tensor, scales: tuple[int, ...]) -> Tensor:
    """PLOP's description word by word: square, cut, pool both ways, concatenate, compare."""

    def starts(size: int, scale: int) -> list[int]:
        longer = size % scale
        return [i * (size // scale) + min(i, longer) for i in range(scale + 1)]

    def embed(image: Tensor) -> Tensor:
        entries = []
        channels, height, width = image.shape
        for scale in scales:
            tops, lefts = starts(height, scale), starts(width, scale)
            for top, bottom in itertools.pairwise(tops):
                for left, right in itertools.pairwise(lefts):
                    for c in range(channels):
                        for y in range(top, bottom):
                            row = [image[c, y, x] ** 2 for x in range(left, right)]
                            entries.append(torch.stack(row).mean())
                        for x in range(left, right):
                            column = [image[c, y, x] ** 2 for y in range(top, bottom)]
                            entries.append(torch.stack(column).mean())
        return torch.stack(entries)

    return torch.stack([(embed(a) - embed(b)).norm() for a, b in zip(new, old, strict=True)]).mean()


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scales", [(1,), (1, 2, 4)])
def test_value_and_gradient_equal_explicit_regions(scales: tuple[int, ...]) -> None:
    new = [maps(2, 3, 8, 4).requires_grad_(), maps(2, 5, 4, 4, seed=1).requires_grad_()]
    old = [maps(2, 3, 8, 4, seed=2), maps(2, 5, 4, 4, seed=3)]
    losses = local_pod(new, old, scales=scales)
    assert len(losses) == 2
    for loss, a, b in zip(losses, new, old, strict=True):
        expected = by_regions(a, b, scales)
        (gradient,) = torch.autograd.grad(loss, a)
        (expected_gradient,) = torch.autograd.grad(expected, a)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("side", [(4, 8), (5, 7), (4, 6)])
def test_value_and_gradient_equal_loops_over_pixels(side: tuple[int, int]) -> None:
    new, old = maps(2, 2, *side).requires_grad_(), maps(2, 2, *side, seed=1)
    (loss,), expected = local_pod([new], [old]), by_pixels(new, old, (1, 2, 4))
    (gradient,) = torch.autograd.grad(loss, new)
    (expected_gradient,) = torch.autograd.grad(expected, new)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


def test_gradcheck_on_sides_no_scale_divides() -> None:
    new, old = maps(2, 2, 5, 7).requires_grad_(), maps(2, 2, 5, 7, seed=1)
    assert torch.autograd.gradcheck(lambda x: local_pod([x], [old])[0], new)


def test_every_pixel_counts_on_sides_no_scale_divides() -> None:
    old = torch.ones(1, 1, 5, 7, dtype=torch.float64)
    base = local_pod([old * 2], [old], scales=(4,))[0].item()
    for y in range(5):
        for x in range(7):
            new = old * 2
            new[0, 0, y, x] = 5
            assert local_pod([new], [old], scales=(4,))[0].item() > base


def test_equal_maps_give_zero_and_a_finite_gradient() -> None:
    new = maps(2, 3, 4, 4).requires_grad_()
    (loss,) = local_pod([new], [new.detach().clone()])
    loss.backward()
    assert loss.item() == 0.0
    assert new.grad is not None
    assert (new.grad == 0).all()


def test_sign_of_the_maps_does_not_matter() -> None:
    new, old = maps(2, 3, 4, 4), maps(2, 3, 4, 4, seed=1)
    assert local_pod([-new], [old])[0].item() == local_pod([new], [old])[0].item()


def test_old_maps_get_no_gradient() -> None:
    new, old = maps(1, 2, 4, 4).requires_grad_(), maps(1, 2, 4, 4, seed=1).requires_grad_()
    local_pod([new], [old])[0].backward()
    assert new.grad is not None
    assert old.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_do_not_overflow(dtype: torch.dtype) -> None:
    new = (1000 * maps(2, 3, 4, 4)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype):
        (loss,) = local_pod([new], [torch.zeros_like(new)])
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert new.grad is not None
    assert new.grad.isfinite().all()


def test_lists_of_unequal_length_are_refused() -> None:
    x = maps(1, 1, 4, 4)
    with pytest.raises(ConfigError, match="got 2 new and 1 old"):
        local_pod([x, x], [x])


def test_maps_smaller_than_a_scale_are_refused() -> None:
    x = maps(1, 1, 2, 8)
    with pytest.raises(ConfigError, match="a map of 2x8 into 4 strips"):
        local_pod([x], [x])


def test_pairs_of_unequal_shapes_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"old_maps\[1\] has the shape \[1, 1, 4, 4\]; it must be \[1, 2, 4, 4\]",
    ):
        local_pod([maps(1, 1, 4, 4), maps(1, 2, 4, 4)], [maps(1, 1, 4, 4), maps(1, 1, 4, 4)])
    with pytest.raises(ConfigError, match=r"new_maps\[0\] .* it must be \[B, C, h, w\]"):
        local_pod([maps(4, 4)], [maps(4, 4)])


@pytest.mark.parametrize("scales", [(), (1, 0)])
def test_impossible_scales_are_refused(scales: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"scales \(\[.*\]\) must be numbers of strips from 1 on"):
        local_pod([maps(1, 1, 4, 4)], [maps(1, 1, 4, 4)], scales=scales)


@pytest.mark.parametrize("num_old", [1, 3, 5])
def test_background_sum_adds_the_logits_of_new_classes_to_the_background(num_old: int) -> None:
    logits = maps(2, 5, 2, 3)
    summed = background_sum(logits, num_old)
    assert summed.shape == (2, num_old, 2, 3)
    for b in range(2):
        for y in range(2):
            for x in range(3):
                column = logits[b, :, y, x].tolist()
                column[0] += sum(column[num_old:])
                assert summed[b, :, y, x].tolist() == pytest.approx(column[:num_old], rel=1e-12)


def test_background_sum_of_half_precision_does_not_overflow() -> None:
    logits = torch.full((1, 4, 1, 1), 6e4, dtype=torch.float16, requires_grad=True)
    summed = background_sum(logits, 1)
    assert summed.item() == pytest.approx(2.4e5, rel=1e-3)
    summed.sum().backward()
    assert logits.grad is not None
    assert (logits.grad == 1).all()


def test_background_sum_refuses_impossible_arguments() -> None:
    with pytest.raises(ConfigError, match=r"num_old \(6\) must lie between 1 and the 5"):
        background_sum(maps(1, 5, 2, 2), 6)
    with pytest.raises(ConfigError, match=r"logits has the shape \[5, 2, 2\]"):
        background_sum(maps(5, 2, 2), 2)
