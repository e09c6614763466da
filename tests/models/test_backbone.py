from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import ucd_ray.models
from ucd_ray.errors import ConfigError
from ucd_ray.models import BACKBONES, create_backbone

# The largest one runs at one stride only, to keep the tests short.
CASES = [(name, stride) for name in BACKBONES for stride in (8, 16) if name != "resnet101"]


@pytest.mark.parametrize(("name", "stride"), [*CASES, ("resnet101", 16)])
def test_backbone_maps_have_the_promised_channels_and_stride(name: str, stride: int) -> None:
    backbone = create_backbone(name, stride).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    assert [each.shape[1] for each in maps] == backbone.channels
    assert maps[-1].shape[-2:] == (64 // stride, 96 // stride)
    sides = [each.shape[-1] for each in maps]
    assert sides == sorted(sides, reverse=True)


def test_a_timm_model_outside_the_table_works_by_its_timm_name() -> None:
    backbone = create_backbone("resnet10t", 16)
    assert backbone.name == "resnet10t"


def test_a_misspelt_backbone_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'resnet11'.*did you mean 'resnet"):
        create_backbone("resnet11", 16)


def test_a_name_unlike_any_other_is_answered_with_the_tested_backbones() -> None:
    with pytest.raises(ConfigError, match=r"choose from: .*mobilenetv2_100.*resnet101"):
        create_backbone("§§§", 16)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vgg11", "ghostnet_100"])
def test_a_model_that_cannot_be_dilated_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' cannot be used.*output_stride=8"):
        create_backbone(name, 8)


def test_another_output_stride_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"output_stride must be 8 or 16, got 4"):
        create_backbone("resnet18", 4)


def test_importing_the_package_and_its_normalisation_leaves_torch_out() -> None:
    code = (
        "import sys; from ucd_ray.models import BACKBONES, Normalisation, read_normalisation;"
        "read_normalisation(None); assert BACKBONES['resnet101'];"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ucd_ray.models.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(ucd_ray.models, name) is not None


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        ucd_ray.models.Segmentor  # noqa: B018
