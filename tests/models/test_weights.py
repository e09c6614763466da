from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import mobilenet_v2, resnet18
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from ucd_ray.errors import WeightsError
from ucd_ray.models import (
    create_backbone,
    file_digest,
    load_backbone_weights,
    pretrained_weights,
    read_normalisation,
)
from ucd_ray.models.torchvision_names import to_timm_names
from ucd_ray.models.weights import IMAGENET, read_state


@pytest.fixture(scope="module")
def resnet_state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    state = resnet18().state_dict()
    return {key: torch.rand_like(each) if each.ndim else each for key, each in state.items()}


def load(path: Path, name: str = "resnet18") -> tuple[torch.nn.Module, list[str]]:
    backbone = create_backbone(name, 16)
    return backbone.body, load_backbone_weights(backbone, path, name=name)


def assert_loaded(body: torch.nn.Module, state: dict[str, Tensor]) -> None:
    assert all(torch.equal(each, state[key]) for key, each in body.state_dict().items())


def test_torchvision_resnet_weights_load_and_the_classifier_is_dropped(
    tmp_path: Path, resnet_state: dict[str, Tensor]
) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(resnet_state, path)
    body, lines = load(path)
    assert_loaded(body, resnet_state)
    assert lines == [
        f"loaded 120 tensors into backbone resnet18 from {path}",
        "dropped 2 tensors after its last stage: fc.bias, fc.weight",
    ]


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapper_and_module_prefix_are_taken_off(
    tmp_path: Path, resnet_state: dict[str, Tensor], wrapper: str
) -> None:
    path = tmp_path / "resnet18.pt"
    prefixed = {f"module.{key}": each for key, each in resnet_state.items()}
    torch.save({"epoch": 3, wrapper: prefixed}, path)
    assert_loaded(load(path)[0], resnet_state)


def test_safetensors_weights_without_classifier_load(
    tmp_path: Path, resnet_state: dict[str, Tensor]
) -> None:
    path = tmp_path / "resnet18.safetensors"
    save_file({key: each for key, each in resnet_state.items() if "fc" not in key}, path)
    body, lines = load(path)
    assert_loaded(body, resnet_state)
    assert len(lines) == 1


def test_weights_without_batch_counters_load(
    tmp_path: Path, resnet_state: dict[str, Tensor]
) -> None:
    path = tmp_path / "old.pth"
    torch.save({k: v for k, v in resnet_state.items() if "num_batches" not in k}, path)
    assert torch.equal(load(path)[0].state_dict()["conv1.weight"], resnet_state["conv1.weight"])


def test_timm_weights_load_into_an_extractor_with_flattened_names(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = timm.create_model("convnext_atto").state_dict()
    path = tmp_path / "convnext.safetensors"
    save_file(state, path)
    body, _ = load(path, "convnext_atto")
    assert torch.equal(
        body.state_dict()["stages_0.blocks.0.conv_dw.weight"],
        state["stages.0.blocks.0.conv_dw.weight"],
    )


def test_torchvision_mobilenet_computes_the_same_under_timm_names() -> None:
    torch.manual_seed(3)
    theirs = mobilenet_v2().eval()
    for part in theirs.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            assert part.running_mean is not None
            part.running_mean.uniform_()
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
    ours = timm.create_model("mobilenetv2_100").eval()
    shuffled = dict(sorted(theirs.state_dict().items()))
    ours.load_state_dict(to_timm_names(shuffled, "mobilenetv2_100"), strict=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_loading_does_not_move_the_seed_on(tmp_path: Path, resnet_state: dict[str, Tensor]) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(resnet_state, path)
    backbone = create_backbone("resnet18", 16)
    before = torch.random.get_rng_state()
    load_backbone_weights(backbone, path, name="resnet18")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_of_another_architecture_are_refused_with_names_and_shapes(
    tmp_path: Path, resnet_state: dict[str, Tensor]
) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(resnet_state, path)
    with pytest.raises(WeightsError) as caught:
        load(path, "mobilenetv2_100")
    message = str(caught.value)
    assert str(path) in message
    assert "backbone 'mobilenetv2_100'" in message
    assert "another architecture" in message
    assert "conv_stem.weight [32,3,3,3]" in message
    assert "conv1.weight [64,3,7,7]" in message


def edit_shape(state: dict[str, Tensor]) -> None:
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)


def edit_missing(state: dict[str, Tensor]) -> None:
    del state["bn1.running_var"]


def edit_extra(state: dict[str, Tensor]) -> None:
    state["layer9.weight"] = torch.zeros(2)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (edit_shape, "1 of another shape (layer1.0.conv1.weight is [64,64,1,1], not [64,64,3,3])"),
        (edit_missing, "1 missing (bn1.running_var [64])"),
        (edit_extra, "1 unknown (layer9.weight [2])"),
    ],
)
def test_a_single_wrong_tensor_is_refused(
    tmp_path: Path, resnet_state: dict[str, Tensor], edit: Any, problem: str
) -> None:
    state = dict(resnet_state)
    edit(state)
    path = tmp_path / "resnet18.pth"
    torch.save(state, path)
    with pytest.raises(WeightsError) as caught:
        load(path)
    assert problem in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"absent{suffix}"
    with pytest.raises(WeightsError, match=f"cannot read weights '{path}'"):
        read_state(path)
    with pytest.raises(WeightsError, match=f"cannot read weights '{path}'"):
        file_digest(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"hello world"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_other_content_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"'{path}' is damaged or no weight file"):
        read_state(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"weight": torch.zeros(1000)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WeightsError, match=f"'{path}' is damaged"):
        read_state(path)


def test_a_pickled_object_is_refused_without_running_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(WeightsError, match=r"Python object \(torch\.nn\.modules\.linear\.Linear\)"):
        read_state(path)


@pytest.mark.parametrize("stored", [[1, 2], {}, {"epoch": 3}, {1: torch.zeros(1)}])
def test_anything_but_named_tensors_is_refused(tmp_path: Path, stored: object) -> None:
    path = tmp_path / "weights.pth"
    torch.save(stored, path)
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_state(path)


def test_normalisation_without_a_file_is_that_of_imagenet() -> None:
    assert read_normalisation(None) == IMAGENET


def test_normalisation_comes_from_the_json_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 2]}))
    read = read_normalisation(tmp_path / "net.pth")
    assert read.mean == (0.1, 0.2, 0.3)
    assert read.std == (1.0, 1.0, 2.0)


def test_given_values_win_over_the_json(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 2]}))
    read = read_normalisation(tmp_path / "net.pth", mean=(0.0, 0.0, 0.0))
    assert read.mean == (0.0, 0.0, 0.0)
    assert read.std == (1.0, 1.0, 2.0)


def test_given_values_need_no_json(tmp_path: Path) -> None:
    read = read_normalisation(tmp_path / "net.pth", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert read.std == (0.5, 0.5, 0.5)


def test_weights_of_unknown_normalisation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"--weights-mean and --weights-std.*net\.json.*0\.\.1"):
        read_normalisation(tmp_path / "net.pth")


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"mean": [0, 0, 0]}'])
def test_a_json_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "net.json").write_text(text)
    with pytest.raises(WeightsError, match=r"net\.json' cannot be read .* should be \{"):
        read_normalisation(tmp_path / "net.pth")


@pytest.mark.parametrize("std", [(0.0, 1.0, 1.0), (1.0, 1.0), (1.0, 1.0, float("nan")), "abc"])
def test_an_impossible_std_is_refused(std: Any) -> None:
    with pytest.raises(WeightsError, match="the std must be three numbers above 0"):
        read_normalisation(None, std=std)


def test_file_digest_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"weights")
    assert file_digest(path) == hashlib.sha256(b"weights").hexdigest()


def test_without_a_network_the_download_says_to_use_a_local_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"'resnet18' \(OSError\).*--weights FILE"):
        pretrained_weights("resnet18", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_downloaded_weights_are_kept_with_their_normalisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model
    asked: list[tuple[str, bool]] = []

    def downloaded(name: str, *, pretrained: bool) -> torch.nn.Module:
        asked.append((name, pretrained))
        model: torch.nn.Module = create(name)
        return model

    monkeypatch.setattr(timm, "create_model", downloaded)
    path = pretrained_weights("resnet18", tmp_path)
    assert pretrained_weights("resnet18", tmp_path) == path
    assert asked == [("resnet18", True)]
    assert sorted(each.suffix for each in tmp_path.iterdir()) == [".json", ".safetensors"]
    monkeypatch.undo()
    assert read_normalisation(path) == IMAGENET
    assert_loaded(load(path)[0], read_state(path))


@pytest.fixture
def data() -> Path:
    directory = os.environ.get("UCD_RAY_TEST_DATA")
    if not directory:
        pytest.skip("UCD_RAY_TEST_DATA does not point to the development data")
    return Path(directory)


@pytest.mark.data
def test_real_mobilenet_weights_know_dogs(data: Path) -> None:
    path = data / "weights" / "mobilenet_v2_imagenet.pth"
    state = to_timm_names(read_state(path), "mobilenetv2_100")
    body, lines = load(path, "mobilenetv2_100")
    assert_loaded(body, state)
    assert lines[1].startswith("dropped 8 tensors")

    classifier = timm.create_model("mobilenetv2_100").eval()
    classifier.load_state_dict(state, strict=True)
    images = torch.stack([dog_crop(data / "voc12_subset", each) for each in dogs(data)])
    normalisation = read_normalisation(path)
    mean, std = (
        torch.tensor(each).view(1, 3, 1, 1) for each in (normalisation.mean, normalisation.std)
    )
    with torch.no_grad():
        answers = classifier((images / 255 - mean) / std).argmax(dim=1)
    # ImageNet's classes 151..268 are breeds of dog.
    assert ((answers >= 151) & (answers <= 268)).float().mean() >= 0.75


def dogs(data: Path) -> list[str]:
    """Eight validation images of the subset in which the dog is the only class."""
    present = set((data / "voc12_subset/ImageSets/Segmentation/val.txt").read_text().split())
    found = []
    for line in (data / "voc12_index/presence.tsv").read_text().splitlines():
        image, *_, pairs = line.split("\t")
        classes = {pair.split(":")[0] for pair in pairs.split()} - {"0", "255"}
        if image in present and classes == {"12"}:
            found.append(image)
    return found[:8]


def dog_crop(images: Path, name: str) -> Tensor:
    with Image.open(images / "JPEGImages" / f"{name}.jpg") as image:
        pixels: Tensor = pil_to_tensor(image.convert("RGB"))
    crop: Tensor = center_crop(resize(pixels, [224], antialias=True), [224, 224])
    return crop
