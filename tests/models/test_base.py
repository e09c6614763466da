"""A base network from a file: its class names, its tensors' places, its normalisation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50
from torchvision.models.segmentation.deeplabv3 import ASPP

from ucd_ray.errors import ConfigError, WeightsError
from ucd_ray.models import Normalisation, Segmenter, build_segmenter
from ucd_ray.models.base import BaseNetwork, channel_ids, check_base, load_base, read_class_names
from ucd_ray.models.weights import IMAGENET, file_digest

KNOWN = ("void", "car", "bus", "tree", "road")
TINY: dict[str, Any] = {"backbone": "test_resnet", "output_stride": 8, "width": 16}
HALVES = Normalisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
Named = dict[str, Tensor]


def network(*classes_per_step: int, **other: Any) -> Segmenter:
    """A network with random weights and statistics."""
    torch.manual_seed(3)
    options = {**TINY, "normalisation": HALVES, **other}
    segmenter = build_segmenter(classes_per_step=classes_per_step, **options)
    for name, value in segmenter.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    return segmenter.eval()


def logits(segmenter: Segmenter) -> Tensor:
    images = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output: Tensor = segmenter(images.float()).logits
    return output


def saved(state: Named, path: Path) -> str:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return str(path)


def loaded(path: str, channels: tuple[int, ...], wanted: tuple[int, ...]) -> Segmenter:
    """A fresh network of step 0, filled from the file as a run does it."""
    normalisation = check_base(path, channels, **TINY)
    segmenter = build_segmenter(
        classes_per_step=[len(wanted)], normalisation=normalisation, **TINY
    ).eval()
    load_base(segmenter, BaseNetwork(path, file_digest(path), channels, normalisation), wanted)
    return segmenter


# Names of classes.


@pytest.mark.parametrize(
    "text",
    [
        "void\ncar\n\n  bus  \n",
        "\ufeffvoid\r\ncar\r\nbus\r\n",
        "- void\n- car\n- bus\n",
        "[void, car, bus]",
    ],
)
def test_names_are_lines_or_a_yaml_list(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_class_names(path) == ("void", "car", "bus")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- void\n- no\n", "False, which is no text; write names in quotes"),
        (b"[void, car", "is not a YAML list"),
        (b"\xff\xfe\xfa", "not UTF-8"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_class_names(path)


def test_an_absent_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.txt.*No such file"):
        read_class_names(tmp_path / "absent.txt")


def ids(*names: str) -> tuple[int, ...]:
    return channel_ids(names, known=KNOWN, wanted=(0, 2, 1), path="classes.txt")


def test_channels_get_the_ids_of_their_names() -> None:
    assert ids("void", "car", "bus") == (0, 1, 2)
    assert ids("void", "bus", "car") == (0, 2, 1)


def test_class_0_may_be_called_background() -> None:
    assert ids("background", "car", "bus") == (0, 1, 2)


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("void", "car"), ("1 missing: bus",)),
        (("car", "bus"), ("1 missing: void",)),
        (("void", "car", "bsu"), ("1 missing: bus", "'bsu' (did you mean 'bus'?)")),
        (("void", "car", "bus", "tree"), ("1 not learned in step 0: tree", "(4 names)")),
        (("void", "car", "bus", "car"), ("1 named twice: car",)),
        ((), ("3 missing: void, bus, car",)),
        (("car", "void", "bus"), ("begins with 'car'", "must be 'void'")),
    ],
)
def test_other_classes_than_those_of_step_0_are_refused(
    names: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=r"--base-classes 'classes\.txt'") as refused:
        ids(*names)
    assert [part for part in parts if part not in str(refused.value)] == []


# Tensors.


def test_a_network_of_ours_comes_back_as_it_was(tmp_path: Path) -> None:
    theirs = network(3)
    ours = loaded(saved(theirs.state_dict(), tmp_path / "a.safetensors"), (0, 1, 2), (0, 1, 2))
    state = ours.state_dict()
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())
    assert state.keys() == theirs.state_dict().keys()


def test_channels_are_put_into_our_order(tmp_path: Path) -> None:
    theirs = network(4)
    path = saved(theirs.state_dict(), tmp_path / "a.safetensors")
    channels, wanted = (0, 4, 1, 3), (0, 1, 3, 4)
    order = [channels.index(number) for number in wanted]
    torch.testing.assert_close(logits(loaded(path, channels, wanted)), logits(theirs)[:, order])


def test_classifiers_of_several_steps_become_one(tmp_path: Path) -> None:
    theirs = network(3, 1, 1)
    path = saved(theirs.state_dict(), tmp_path / "a.safetensors")
    ours = loaded(path, (0, 1, 2, 3, 4), (0, 1, 2, 3, 4))
    assert ours.classes_per_step == (5,)
    torch.testing.assert_close(logits(ours), logits(theirs))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state"])
def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path, wrapper: str) -> None:
    theirs = network(3)
    prefixed = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"epoch": 3, wrapper: prefixed}, tmp_path / "a.pth")
    ours = loaded(str(tmp_path / "a.pth"), (0, 1, 2), (0, 1, 2))
    assert torch.equal(logits(ours), logits(theirs))


def torchvision_state(segmenter: Segmenter) -> Named:
    """The same network under torchvision's names, with an auxiliary classifier."""
    places = {"backbone.body.": "backbone.", "head.aspp.": "classifier.0."}
    places["classifiers.0."] = "classifier.1."
    found = {}
    for name, value in segmenter.state_dict().items():
        for ours, theirs in places.items():
            if name.startswith(ours):
                found[theirs + name.removeprefix(ours)] = value
    return {**found, "aux_classifier.4.bias": torch.zeros(3)}


def test_a_torchvision_network_without_more_layers_computes_the_same(tmp_path: Path) -> None:
    """The pyramid is torchvision's own; only the layers between it and the end differ."""
    theirs = network(3)
    aspp = ASPP(theirs.backbone.channels[-1], (12, 24, 36), 16)
    model = nn.ModuleDict(
        {"backbone": theirs.backbone.body, "classifier": nn.Sequential(aspp, theirs.classifiers[0])}
    )
    named = torchvision_state(theirs)
    assert model.state_dict().keys() == named.keys() - {"aux_classifier.4.bias"}
    path = saved(named, tmp_path / "a.safetensors")
    normalisation = check_base(path, (0, 1, 2), mean=HALVES.mean, std=HALVES.std, **TINY)
    ours = build_segmenter(classes_per_step=[3], normalisation=normalisation, **TINY).eval()
    lines = load_base(
        ours, BaseNetwork(path, file_digest(path), (0, 1, 2), normalisation), (0, 1, 2)
    )
    assert torch.equal(logits(ours), logits(theirs))
    assert lines[1] == "dropped 1 tensors of its auxiliary classifier"


def test_torchvisions_own_head_is_refused_by_the_tensors_that_ours_lacks(tmp_path: Path) -> None:
    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3, aux_loss=True)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    options = {"backbone": "resnet50", "output_stride": 8, "width": 256}
    with pytest.raises(WeightsError) as refused:
        check_base(
            str(tmp_path / "a.pth"), (0, 1, 2), mean=IMAGENET.mean, std=IMAGENET.std, **options
        )
    told = str(refused.value)
    assert "6 unknown (classifier.1.weight [256,256,3,3], classifier.2.weight [256]" in told
    assert "missing" not in told
    assert "torchvision's head has more layers" in told


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        ({"width": 32}, ("model.width=16", "head.aspp.convs.0.0.weight is [32,", "not [16,")),
        ({"backbone": "resnet18"}, ("model.backbone=test_resnet", "unknown", "missing")),
    ],
)
def test_another_architecture_is_refused_by_tensors_and_shapes(
    tmp_path: Path, other: dict[str, Any], parts: tuple[str, ...]
) -> None:
    path = saved(network(3, **other).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="is not the network of this recipe") as refused:
        check_base(path, (0, 1, 2), **TINY)
    assert [part for part in parts if part not in str(refused.value)] == []


def test_half_a_network_is_refused(tmp_path: Path) -> None:
    state = network(3).state_dict()
    del state["head.aspp.project.0.weight"], state["classifiers.0.bias"]
    path = saved(state, tmp_path / "a.safetensors")
    told = r"2 missing \(head\.aspp\.project\.0\.weight \[16,80,1,1\], classifiers\.0\.bias \[3\]\)"
    with pytest.raises(WeightsError, match=told):
        check_base(path, (0, 1, 2), **TINY)


def test_another_number_of_channels_is_refused_with_both_numbers(tmp_path: Path) -> None:
    path = saved(network(3).state_dict(), tmp_path / "a.safetensors")
    told = "names 4 classes, background included, but the classifier of .* has 3 channels"
    with pytest.raises(ConfigError, match=told):
        check_base(path, (0, 1, 2, 3), **TINY)


def test_a_file_of_a_backbone_alone_is_sent_to_weights(tmp_path: Path) -> None:
    path = saved(network(3).backbone.body.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"no segmentation network.*conv1\.\d.*--weights"):
        check_base(path, (0, 1, 2), **TINY)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = network(3).state_dict()
    state["classifiers.0.bias"][1] = float("nan")
    path = saved(state, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"not finite: classifiers\.0\.bias"):
        check_base(path, (0, 1, 2), **TINY)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00" * 64)
    with pytest.raises(WeightsError, match=f"{re.escape(name)}' is damaged or no weight file"):
        check_base(str(tmp_path / name), (0, 1, 2), **TINY)


def test_a_file_that_changed_after_the_check_is_refused(tmp_path: Path) -> None:
    path = saved(network(3).state_dict(), tmp_path / "a.safetensors")
    base = BaseNetwork(path, file_digest(path), (0, 1, 2), HALVES)
    ours = network(3)
    saved(ours.state_dict() | {"classifiers.0.bias": torch.zeros(3)}, Path(path))
    with pytest.raises(WeightsError, match="has changed since"):
        load_base(ours, base, (0, 1, 2))


# Normalisation of the input.


def test_a_network_of_ours_says_its_normalisation(tmp_path: Path) -> None:
    path = saved(network(3).state_dict(), tmp_path / "a.safetensors")
    assert check_base(path, (0, 1, 2), **TINY) == HALVES
    assert check_base(path, (0, 1, 2), mean=HALVES.mean, std=HALVES.std, **TINY) == HALVES


def test_another_normalisation_than_its_own_is_refused(tmp_path: Path) -> None:
    path = saved(network(3).state_dict(), tmp_path / "a.safetensors")
    told = r"--weights-mean \(0\.485,0\.456,0\.406\) is not what .* \(0\.5,0\.4,0\.3, as it says"
    with pytest.raises(ConfigError, match=told):
        check_base(path, (0, 1, 2), mean=IMAGENET.mean, std=IMAGENET.std, **TINY)


def test_a_network_that_does_not_say_its_normalisation_needs_it(tmp_path: Path) -> None:
    path = saved(torchvision_state(network(3)), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"pass --weights-mean and --weights-std, or write"):
        check_base(path, (0, 1, 2), **TINY)
    (tmp_path / "w.json").write_text('{"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}')
    from_weights = check_base(path, (0, 1, 2), weights=str(tmp_path / "w.pth"), **TINY)
    assert from_weights == Normalisation((0.1, 0.2, 0.3), (1, 1, 1))
    (tmp_path / "a.json").write_text('{"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}')
    assert check_base(path, (0, 1, 2), weights=str(tmp_path / "w.pth"), **TINY) == HALVES
