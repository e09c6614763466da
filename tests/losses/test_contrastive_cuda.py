"""UCD on CUDA, and the arithmetic of bfloat16 products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.losses.contrastive_batch import (
    Batch,
    on_cuda,
)
from ucd_ray.losses import (
    contrastive,
    contrastive_distillation,
    contrastive_tiles,
    contrastive_whole,
)

pytestmark = pytest.mark.usefixtures("arithmetic")


def test_arithmetic_of_bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that CUDA takes, with its products of bfloat16 factors done in float32."""
    batch = Batch(0, torch.float32, size=(2, 16, 16), width=64)
    expected = batch.loss()
    (expected_gradient,) = torch.autograd.grad(expected, batch.new)

    def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        assert a.dtype == b.dtype
        return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)

    def add_product(to: Tensor, a: Tensor, b: Tensor) -> Tensor:
        assert a.dtype == b.dtype == torch.bfloat16
        return to.addmm_(a.to(to.dtype), b.to(to.dtype))

    monkeypatch.setattr(contrastive, "_multiplies_in_half", lambda features: True)
    monkeypatch.setattr(contrastive, "_is_fused", lambda *_: False)
    for module in (contrastive_whole, contrastive_tiles):
        monkeypatch.setattr(module, "multiply", multiply)
        monkeypatch.setattr(module, "add_product", add_product)
    loss = batch.loss()
    (gradient,) = torch.autograd.grad(loss, batch.new)
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)
    cosine = torch.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0)
    assert cosine > 0.9995


@pytest.mark.gpu
@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.01}, {"temperature": 1.0}])
def test_bfloat16_products_on_cuda_are_close(knobs: dict[str, float]) -> None:
    batch = on_cuda(Batch(0, torch.float32, size=(2, 32, 32), width=64))
    expected = batch.loss(**knobs)
    (expected_gradient,) = torch.autograd.grad(expected, batch.new)
    with torch.autocast("cuda", torch.bfloat16):
        loss = batch.loss(**knobs)
    (gradient,) = torch.autograd.grad(loss, batch.new)
    assert loss.dtype == torch.float32
    assert 0 < abs(loss.item() / expected.item() - 1) < 0.02
    cosine = torch.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0)
    assert cosine > 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_worst_case_on_cuda_needs_half_a_gigabyte(dtype: torch.dtype) -> None:
    """24 crops without background: 24,576 anchors x 36,864 contrast vectors."""
    rng = torch.Generator("cuda").manual_seed(0)
    maps = (24, 256, 32, 32)
    new, old = (torch.randn(maps, generator=rng, device="cuda", dtype=dtype) for _ in range(2))
    logits = torch.randn((24, 16, 32, 32), generator=rng, device="cuda", dtype=dtype)
    logits[:, 0] = -10.0
    labels = torch.randint(16, 21, (24, 32, 32), generator=rng, device="cuda")
    labels[:, :16] = 0
    new.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = contrastive_distillation(new, old, logits, labels, num_old=16)
    loss.backward()
    assert torch.cuda.max_memory_allocated() - before < 0.5e9
    assert loss.isfinite()
    assert new.grad is not None
    assert new.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["standard", "authors"])
def test_cuda_agrees_with_cpu(form: str) -> None:
    batch = Batch(size=(2, 16, 16))
    (gradient,) = torch.autograd.grad(batch.loss(form=form), batch.new)
    expected = batch.loss(form=form).item()
    batch = on_cuda(batch)
    loss = batch.loss(form=form)
    (cuda_gradient,) = torch.autograd.grad(loss, batch.new)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(cuda_gradient.cpu(), gradient, rtol=1e-9, atol=1e-12)
