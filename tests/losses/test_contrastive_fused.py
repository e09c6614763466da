"""The fused kernel of UCD: by Triton's interpreter on a CPU, in float32; itself on CUDA, in bfloat16."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.losses.contrastive_batch import Batch, on_cuda
from ucd_ray.losses import contrastive, contrastive_kernel, contrastive_plan
from ucd_ray.losses.contrastive_kernel import Contrast

KNOBS: list[dict[str, Any]] = [
    {},
    {"form": "authors"},
    {"temperature": 1.0, "uncertainty": False},
    {"max_anchors": 60},
    {"max_per_class": 9, "max_old": 40},
    {"max_old": 0},
]


def small_batch() -> Batch:
    """A width and numbers of channels and pixels that are no power of two."""
    return Batch(0, torch.float32, size=(2, 10, 12), width=24)


def computed(batch: Batch, **knobs: Any) -> tuple[Tensor, Tensor]:
    loss = batch.loss(**knobs, generator=torch.Generator().manual_seed(0))
    return loss, torch.autograd.grad(loss, batch.new)[0]


def send_the_cpu_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 on the CPU takes the way of bfloat16 on CUDA."""
    monkeypatch.setitem(contrastive_plan.FEW, "cpu", 0)
    monkeypatch.setattr(
        contrastive,
        "Contrast",
        SimpleNamespace(apply=lambda *arguments: Contrast.apply(*arguments[:-2], False, True)),
    )


def interpreted() -> list[tuple[Tensor, Tensor]]:
    """Of all KNOBS; for a process that imports Triton with TRITON_INTERPRET=1."""
    from ucd_ray.losses import contrastive_fused

    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("ROWS", 32), ("COLUMNS", 16), ("CHANNELS", 16)):
            patch.setattr(contrastive_fused, name, size)  # several blocks
        patch.setattr(contrastive_kernel, "_fused_or_tiled", lambda: contrastive_fused.fused_losses)
        send_the_cpu_there(patch)
        found = [computed(small_batch(), **knobs) for knobs in KNOBS]
    return [(loss.detach(), gradient) for loss, gradient in found]


def test_it_computes_what_the_tiles_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is for CUDA builds of PyTorch")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        found = pool.submit(interpreted).result()
    for knobs, (fused, slope) in zip(KNOBS, found, strict=True):
        loss, gradient = computed(small_batch(), **knobs)
        assert fused.item() == pytest.approx(loss.item(), rel=1e-6), knobs
        assert (slope - gradient).abs().max() < 5e-6 * gradient.abs().max(), knobs


def test_where_it_cannot_run_the_tiles_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is for CUDA builds of PyTorch")
    batch = Batch(0, torch.float32)
    loss, gradient = computed(batch)
    send_the_cpu_there(monkeypatch)
    contrastive_kernel._fused_or_tiled.cache_clear()
    with pytest.warns(
        UserWarning, match="the fused kernel of UCD failed, its products are tiled: "
    ):
        again = computed(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        computed(batch)
    contrastive_kernel._fused_or_tiled.cache_clear()
    torch.testing.assert_close(again, (loss, gradient), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("width", "temperature"), [(257, 0.07), (16, 0.019)])
def test_what_does_not_fit_is_not_fused(width: int, temperature: float) -> None:
    assert not contrastive._is_fused(width, temperature)


def in_bfloat16(batch: Batch, **knobs: Any) -> tuple[Tensor, Tensor]:
    with torch.autocast("cuda", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")  # of a kernel that failed
        return computed(batch, **knobs)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [24, 256])
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_on_cuda_it_is_as_near_as_the_tiles(
    knobs: dict[str, Any], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = on_cuda(Batch(0, torch.float32, size=(4, 32, 32), width=width))
    exact, slope = computed(batch, **knobs)
    assert contrastive._is_fused(width, 0.07)
    fused = in_bfloat16(batch, **knobs)
    monkeypatch.setattr(contrastive, "_is_fused", lambda *_: False)
    tiled = in_bfloat16(batch, **knobs)
    for loss, gradient in (fused, tiled):
        assert abs(loss.item() / exact.item() - 1) < 2e-3
        assert 0 < (gradient - slope).norm() < 0.02 * slope.norm()
