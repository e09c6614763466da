"""Local POD against explicit regions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ucd_ray.errors import ConfigError
from ucd_ray.losses import local_pod


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
