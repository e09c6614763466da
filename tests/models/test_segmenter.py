from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ucd_ray.models import Segmenter, SegOutput, build_segmenter, frozen_copy, set_train_mode
from ucd_ray.models.weights import IMAGENET


def small(classes_per_step: tuple[int, ...] = (4,), stride: int = 16) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(
        backbone="resnet18",
        output_stride=stride,
        classes_per_step=classes_per_step,
        normalisation=IMAGENET,
        width=32,
    )


def some_images(batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, 64, 80), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def predict(segmenter: Segmenter, images: Tensor) -> SegOutput:
    return cast(SegOutput, segmenter.eval()(images))


def classifier(segmenter: Segmenter, step: int) -> tuple[Tensor, Tensor]:
    layer = cast(nn.Conv2d, segmenter.classifiers[step])
    assert layer.bias is not None
    return layer.weight, layer.bias


@pytest.mark.parametrize("stride", [8, 16])
def test_output_shapes(stride: int) -> None:
    segmenter = small((4, 2, 1), stride)
    out = predict(segmenter, some_images())
    height, width = 64 // stride, 80 // stride
    assert out.logits.shape == (2, 7, 64, 80)
    assert out.small_logits.shape == (2, 7, height, width)
    assert out.features.shape == (2, 32, height, width)
    assert out.body.shape == (2, 512, height, width)
    assert out.body is out.maps[-1]
    assert len(out.maps) == len(segmenter.backbone.channels)


def test_logits_are_the_small_logits_at_image_size() -> None:
    out = predict(small(), some_images())
    expected = F.interpolate(out.small_logits, size=(64, 80), mode="bilinear", align_corners=False)
    assert torch.equal(out.logits, expected)


def test_features_are_what_the_classifiers_read() -> None:
    segmenter = small((4, 2))
    out = predict(segmenter, some_images())
    expected = [layer(out.features) for layer in segmenter.classifiers]
    assert torch.equal(out.small_logits, torch.cat(expected, dim=1))


def test_the_backbone_sees_pixels_normalised_in_units_of_0_to_1() -> None:
    segmenter = small()
    seen: list[Tensor] = []
    segmenter.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = some_images()
    predict(segmenter, images)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (IMAGENET.mean, IMAGENET.std))
    torch.testing.assert_close(seen[0], (images / 255 - mean) / std)


def test_byte_and_float_images_agree() -> None:
    segmenter = small()
    images = some_images()
    assert torch.equal(predict(segmenter, images).logits, predict(segmenter, images.float()).logits)


def test_classes_per_step_follow_growth() -> None:
    segmenter = small((4,))
    segmenter.grow(2, background_init=True)
    segmenter.grow(3, background_init=False)
    assert segmenter.classes_per_step == (4, 2, 3)
    assert segmenter.num_classes == 9


@torch.no_grad()
def test_background_init_follows_the_formula() -> None:
    segmenter = small((4, 2))
    weight, bias = (each.clone() for each in classifier(segmenter, 0))
    old_weight, old_bias = (each.clone() for each in classifier(segmenter, 1))
    segmenter.grow(3, background_init=True)
    first_weight, first_bias = classifier(segmenter, 0)
    new_weight, new_bias = classifier(segmenter, 2)
    shared = bias[0] - math.log(4)
    assert torch.equal(new_weight, weight[:1].expand(3, -1, -1, -1))
    torch.testing.assert_close(new_bias, shared.expand(3))
    torch.testing.assert_close(first_bias[0], shared)
    assert torch.equal(first_bias[1:], bias[1:])
    assert torch.equal(first_weight, weight)
    assert torch.equal(classifier(segmenter, 1)[0], old_weight)
    assert torch.equal(classifier(segmenter, 1)[1], old_bias)


def test_background_init_shares_the_old_background_probability_in_equal_parts() -> None:
    segmenter = small((4, 2))
    before = predict(segmenter, some_images()).small_logits.softmax(dim=1)
    segmenter.grow(3, background_init=True)
    after = predict(segmenter, some_images()).small_logits.softmax(dim=1)
    torch.testing.assert_close(after[:, 0] + after[:, 6:].sum(dim=1), before[:, 0])
    torch.testing.assert_close(after[:, 6:], after[:, :1].expand(-1, 3, -1, -1))
    torch.testing.assert_close(after[:, 1:6], before[:, 1:6])


@pytest.mark.parametrize("background_init", [True, False])
def test_growth_keeps_the_old_logits_up_to_the_background(background_init: bool) -> None:
    segmenter = small((4,))
    before = predict(segmenter, some_images()).small_logits
    segmenter.grow(2, background_init=background_init)
    after = predict(segmenter, some_images()).small_logits
    shift = math.log(3) if background_init else 0.0
    torch.testing.assert_close(after[:, 1:4], before[:, 1:])
    torch.testing.assert_close(after[:, 0], before[:, 0] - shift)


def test_default_growth_is_drawn_from_the_global_seed() -> None:
    first, second, third = small(), small(), small()
    for seed, segmenter in ((5, first), (5, second), (6, third)):
        torch.manual_seed(seed)
        segmenter.grow(2, background_init=False)
    weights = [classifier(each, 1)[0] for each in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_new_classifier_takes_the_type_of_the_first_and_trains() -> None:
    segmenter = small().double()
    segmenter.grow(2, background_init=True)
    assert classifier(segmenter, 1)[0].dtype == torch.float64
    assert all(parameter.requires_grad for parameter in segmenter.classifiers.parameters())


def test_every_parameter_learns_from_the_logits() -> None:
    segmenter = small((4, 2))
    segmenter.train()(some_images()).logits.square().mean().backward()
    without = [name for name, each in segmenter.named_parameters() if each.grad is None]
    assert without == []


def test_a_frozen_copy_is_independent_and_without_gradients() -> None:
    segmenter = small()
    segmenter.train()
    teacher = frozen_copy(segmenter)
    expected = teacher(some_images()).logits
    assert not expected.requires_grad
    assert not any(each.training for each in teacher.modules())
    assert not any(each.requires_grad for each in teacher.parameters())
    assert segmenter.training
    assert all(each.requires_grad for each in segmenter.parameters())
    with torch.no_grad():
        classifier(segmenter, 0)[0].add_(1.0)
    segmenter.grow(2, background_init=True)
    assert torch.equal(teacher(some_images()).logits, expected)


def test_a_grown_network_loads_strictly_into_one_built_with_its_steps() -> None:
    grown = small((4,))
    grown.grow(2, background_init=True)
    grown.train()(some_images())
    built = build_segmenter(
        backbone="resnet18",
        output_stride=16,
        classes_per_step=grown.classes_per_step,
        normalisation=IMAGENET,
        norm="frozen",
        freeze_pooling_norm=True,
        width=32,
    )
    built.load_state_dict(grown.state_dict(), strict=True)
    assert torch.equal(predict(built, some_images()).logits, predict(grown, some_images()).logits)


def test_channels_last_gives_the_same_logits() -> None:
    segmenter = small()
    expected = predict(segmenter, some_images()).logits
    segmenter.to(memory_format=torch.channels_last)
    images = some_images().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(predict(segmenter, images).logits, expected, rtol=1e-4, atol=1e-5)


def test_training_under_bfloat16_autocast_is_finite() -> None:
    segmenter = small().to(memory_format=torch.channels_last)
    set_train_mode(segmenter)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = segmenter(some_images())
    assert out.small_logits.dtype == torch.bfloat16
    out.logits.float().square().mean().backward()
    assert out.logits.isfinite().all()
    assert all(each.grad is not None for each in segmenter.parameters())
    assert all(
        each.grad.isfinite().all() for each in segmenter.parameters() if each.grad is not None
    )


def test_the_forward_pass_compiles_as_one_graph() -> None:
    segmenter = small((4, 2)).eval()
    compiled = torch.compile(segmenter, backend="eager", fullgraph=True)
    with torch.no_grad():
        out = compiled(some_images())
        assert torch.equal(out.logits, segmenter(some_images()).logits)
