"""The one-pass losses compiled to few kernels, as on a GPU."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import pytest
import torch

from tests.losses.test_unbiased import KNOBS, assert_same, gradient_of, sample, separate
from ucd_ray.losses import unbiased, unbiased_losses


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU goes the way of a GPU, with nothing compiled before."""
    monkeypatch.setattr(unbiased, "BY_SUMS", ())
    torch.compiler.reset()
    unbiased._compiled.cache_clear()
    monkeypatch.setattr(unbiased, "_fused", lambda function, device: unbiased._compiled(function))


@pytest.mark.usefixtures("fused")
def test_without_a_working_compiler_the_losses_run_unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(function: Any, **_: Any) -> Any:
        def fail(*_: Any) -> None:
            raise RuntimeError("no C compiler")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    inputs = sample()
    with pytest.warns(UserWarning, match="failed, they run unfused: no C compiler"):
        losses = unbiased_losses(*inputs)
    with pytest.warns(UserWarning, match="run unfused"):
        gradient_of(losses, inputs[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert_same(unbiased_losses(*inputs), separate(*inputs), inputs[0], 1e-10)
    unbiased._compiled.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("fused")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_fused_by_the_compiler_they_are_the_same(temperature: float) -> None:
    new, old, labels = sample(torch.float32, 16, 5, (2, 16, 16))
    with torch.inference_mode():
        frozen = old * 1
    torch._dynamo.utils.counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*run unfused")
        losses = unbiased_losses(new, frozen, labels, temperature=temperature)
        gradient = gradient_of(losses, new)
    assert not torch._dynamo.utils.counters["graph_break"], "each function is compiled as a whole"
    expected = separate(new, old, labels, temperature=temperature)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, gradient_of(expected, new), rtol=1e-5, atol=1e-8)


@pytest.mark.gpu
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_on_cuda_they_are_the_same(layout: torch.memory_format, knobs: dict[str, Any]) -> None:
    new, old, labels = sample(torch.float32, 16, 5, (2, 64, 64))
    exact = separate(new, old, labels, **knobs)
    there = new.detach().cuda().to(memory_format=layout).requires_grad_()
    frozen = old.cuda().to(memory_format=layout)
    losses = unbiased_losses(there, frozen, labels.cuda(), **knobs)
    for loss, expected in zip(losses, exact, strict=True):
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradient, wanted = gradient_of(losses, there).cpu(), gradient_of(exact, new)
    assert (gradient - wanted).abs().max() < 5e-6 * wanted.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize(("num_old", "num_new"), [(16, 5), (101, 50)])
def test_on_cuda_they_need_at_most_2_2_times_the_logits(num_old: int, num_new: int) -> None:
    new, old, labels = (
        tensor.detach().cuda() for tensor in sample(torch.float32, num_old, num_new, (2, 256, 256))
    )
    new.requires_grad_()
    gradient_of(unbiased_losses(new, old, labels), new)  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradient_of(unbiased_losses(new, old, labels), new)
    assert torch.cuda.max_memory_allocated() - before < 2.2 * new.nbytes
