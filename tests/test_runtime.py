from __future__ import annotations

import pytest
import torch

from ucd_ray.config import ComputeConfig
from ucd_ray.runtime import choose_runtime, determinism


@pytest.fixture(autouse=True)
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_cpu_computes_in_float32_unless_asked_otherwise() -> None:
    runtime = choose_runtime(ComputeConfig())
    assert runtime.device.type == "cpu"
    assert runtime.autocast is None
    assert runtime.precision == "float32"
    assert runtime.memory_format == torch.channels_last
    assert runtime.fused_optimizer is False
    assert runtime.reason == "CPU: float32 (auto), channels_last, plain SGD"


def test_what_is_asked_for_is_done_and_said() -> None:
    runtime = choose_runtime(ComputeConfig(precision="bfloat16", channels_last=False))
    assert runtime.autocast == torch.bfloat16
    assert runtime.precision == "bfloat16"
    assert runtime.memory_format == torch.contiguous_format
    assert "bfloat16 autocast (asked for), contiguous" in runtime.reason


def test_a_card_with_bf16_gets_autocast_channels_last_and_a_fused_optimizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "is_available": True,
        "device_count": 2,
        "get_device_name": "Some GPU",
        "is_bf16_supported": True,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    runtime = choose_runtime(ComputeConfig(), local_rank=3)
    assert str(runtime.device) == "cuda:1"
    assert runtime.reason == "Some GPU: bfloat16 autocast (has bf16), channels_last, fused SGD"
    assert choose_runtime(ComputeConfig(precision="float32")).autocast is None


@pytest.mark.parametrize("enabled", [True, False])
def test_determinism_holds_inside_the_block_only(enabled: bool) -> None:
    before = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)
    with determinism(enabled):
        assert torch.are_deterministic_algorithms_enabled() is enabled
        assert torch.backends.cudnn.benchmark is not enabled
    assert before == (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)


def test_determinism_is_given_back_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="stop"), determinism(True):
        raise RuntimeError("stop")
    assert torch.are_deterministic_algorithms_enabled() is False
