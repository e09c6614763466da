from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ucd_ray.models import DeepLabHead, Segmenter, build_segmenter, set_train_mode
from ucd_ray.models.norm import NormMode, apply_norm_mode, norms
from ucd_ray.models.weights import IMAGENET


def small(norm: NormMode = "batch", *, freeze_pooling_norm: bool = False) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(
        backbone="mobilenetv2_100",
        output_stride=16,
        classes_per_step=(3,),
        normalisation=IMAGENET,
        norm=norm,
        freeze_pooling_norm=freeze_pooling_norm,
        width=16,
    )


def images(batch: int) -> torch.Tensor:
    return torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255


def pooling_norm(segmenter: Segmenter) -> nn.Module:
    (norm,) = norms(segmenter.head.aspp.convs[-1])
    return norm


def test_batch_norms_train_by_default() -> None:
    segmenter = small()
    set_train_mode(segmenter)
    assert all(norm.training for norm in norms(segmenter))


def train_through_a_wrapper(segmenter: Segmenter) -> None:
    """As DDP and torch.compile do."""
    nn.Sequential(segmenter).train()


@pytest.mark.parametrize("enter", [set_train_mode, Segmenter.train, train_through_a_wrapper])
def test_frozen_norms_keep_statistics_and_affine_through_training(
    enter: Callable[[Segmenter], object],
) -> None:
    segmenter = small("frozen")
    before = {name: each.clone() for name, each in segmenter.state_dict().items()}
    enter(segmenter)
    assert segmenter.training
    optimizer = torch.optim.SGD(
        [each for each in segmenter.parameters() if each.requires_grad], 0.1
    )
    segmenter(images(2)).logits.square().mean().backward()
    optimizer.step()
    after = segmenter.state_dict()
    inside_norms = {
        f"{name}.{key}"
        for name, part in segmenter.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        for key in part.state_dict()
    }
    assert all(torch.equal(after[name], before[name]) for name in inside_norms)
    assert not torch.equal(after["classifiers.0.weight"], before["classifiers.0.weight"])


def test_set_train_mode_respects_frozen_norms_of_any_module() -> None:
    head = DeepLabHead(8, width=8, pooling_frozen=True)
    set_train_mode(head)
    frozen = [norm for norm in norms(head) if not norm.training]
    assert frozen == list(norms(head.aspp.convs[-1]))


def test_sync_converts_every_norm_and_changes_neither_names_nor_results() -> None:
    segmenter = small()
    with torch.no_grad():
        expected = segmenter.eval()(images(2)).logits
    keys = list(segmenter.state_dict())
    apply_norm_mode(segmenter, "sync")
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms(segmenter))
    assert sorted(segmenter.state_dict()) == sorted(keys)
    with torch.no_grad():
        torch.testing.assert_close(segmenter.eval()(images(2)).logits, expected)


def test_sync_keeps_a_frozen_pooling_norm_frozen() -> None:
    segmenter = small("sync", freeze_pooling_norm=True)
    set_train_mode(segmenter)
    norm = pooling_norm(segmenter)
    assert isinstance(norm, nn.SyncBatchNorm)
    assert not norm.training
    assert not any(each.requires_grad for each in norm.parameters())


def test_a_single_image_trains_only_with_a_frozen_pooling_norm() -> None:
    refused = small()
    set_train_mode(refused)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        refused(images(1))

    segmenter = small(freeze_pooling_norm=True)
    set_train_mode(segmenter)
    segmenter(images(1)).logits.square().mean().backward()
    assert sum(not norm.training for norm in norms(segmenter)) == 1
    assert all(each.grad is not None for each in segmenter.parameters() if each.requires_grad)


def test_a_deep_copy_keeps_norms_frozen() -> None:
    segmenter = copy.deepcopy(small("frozen"))
    segmenter.train()
    assert not any(norm.training for norm in norms(segmenter))


def test_the_head_has_no_dropout() -> None:
    head = DeepLabHead(8, width=8)
    assert not any(isinstance(part, nn.Dropout) for part in head.modules())


@pytest.mark.parametrize(("stride", "rates"), [(16, [6, 12, 18]), (8, [12, 24, 36])])
def test_atrous_rates_follow_the_output_stride(stride: int, rates: list[int]) -> None:
    head = DeepLabHead(8, width=8, output_stride=stride)
    convolutions = [part for part in head.modules() if isinstance(part, nn.Conv2d)]
    assert [each.dilation[0] for each in convolutions if each.kernel_size == (3, 3)] == rates
