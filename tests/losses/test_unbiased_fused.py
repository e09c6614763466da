"""The kernels of the one-pass losses: by Triton's interpreter on a CPU, and themselves on CUDA."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.losses.test_unbiased import KNOBS, assert_same, gradient_of, sample, separate
from ucd_ray.losses import unbiased, unbiased_losses

CASES = [  # number of old and new channels, knobs
    *((16, 5, knobs) for knobs in KNOBS),
    (1, 4, {}),  # background alone is old
    (5, 0, {}),
    (20, 40, {"temperature": 2.0}),  # several blocks of channels
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU goes the way of CUDA."""
    unbiased._fused_passes.cache_clear()
    monkeypatch.setattr(unbiased, "_passes", lambda new: unbiased._fused_passes())
    yield
    unbiased._fused_passes.cache_clear()


def inputs(
    case: tuple[int, int, dict[str, Any]], layout: torch.memory_format
) -> tuple[Tensor, Tensor, Tensor]:
    """Two images of 17 x 11 pixels: more than a block, and no multiple of one."""
    new, old, labels = sample(torch.float32, *case[:2], (2, 17, 11))
    return new.detach().to(memory_format=layout), old.to(memory_format=layout), labels


def interpreted() -> list[tuple[list[Tensor], Tensor]]:
    """Of all CASES and LAYOUTS; for a process that imports Triton with TRITON_INTERPRET=1."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unbiased, "_passes", lambda new: unbiased._fused_passes())
        warnings.simplefilter("error", UserWarning)  # of kernels that failed
        for case in CASES:
            for layout in LAYOUTS:
                new, old, labels = inputs(case, layout)
                losses = unbiased_losses(new.requires_grad_(), old, labels, **case[2])
                gradient = gradient_of(losses, new)
                assert gradient.stride() == new.stride()
                found.append(([loss.detach() for loss in losses], gradient))
    return found


def test_interpreted_they_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is for CUDA builds of PyTorch")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        found = pool.submit(interpreted).result()
    pairs = [(case, layout) for case in CASES for layout in LAYOUTS]
    for (case, layout), (losses, gradient) in zip(pairs, found, strict=True):
        new, old, labels = inputs(case, layout)
        exact = separate(new.double().requires_grad_(), old.double(), labels, **case[2])
        for loss, expected in zip(losses, exact, strict=True):
            assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-7), (case, layout)
        wanted = separate(new.requires_grad_(), old, labels, **case[2])
        torch.testing.assert_close(gradient, gradient_of(wanted, new), rtol=1e-5, atol=1e-8)


@pytest.mark.usefixtures("fused")
def test_without_a_device_for_them_the_losses_run_piece_by_piece() -> None:
    pytest.importorskip("triton", reason="Triton is for CUDA builds of PyTorch")
    batch = sample()
    with pytest.warns(
        UserWarning, match="kernels of the unbiased losses failed, they run piece by"
    ):
        losses = unbiased_losses(*batch)
    with pytest.warns(UserWarning, match="run piece by piece"):
        gradient_of(losses, batch[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert_same(unbiased_losses(*batch), separate(*batch), batch[0], 1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_on_cuda_they_are_the_same(layout: torch.memory_format, knobs: dict[str, Any]) -> None:
    new, old, labels = sample(torch.float32, 16, 5, (2, 64, 64))
    exact = separate(new, old, labels, **knobs)
    there = new.detach().cuda().to(memory_format=layout).requires_grad_()
    frozen = old.cuda().to(memory_format=layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of kernels that failed
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
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of kernels that failed
        gradient_of(unbiased_losses(new, old, labels), new)  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradient_of(unbiased_losses(new, old, labels), new)
    assert torch.cuda.max_memory_allocated() - before < 2.2 * new.nbytes
