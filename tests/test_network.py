"""Files of trained networks that say what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.networks import NORMALISATION, random_network
from ucd_ray.errors import WeightsError
from ucd_ray.models.base import check_base, read_class_names
from ucd_ray.network import Network, read_network
from ucd_ray.tune.networks import write_network

IMAGES = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)


def saved(network: Network, folder: Path) -> Path:
    path = folder / "network.safetensors"
    path.write_bytes(network.content())
    return path


def test_a_file_gives_the_same_network(tmp_path: Path) -> None:
    network = random_network()
    found = read_network(saved(network, tmp_path))
    assert found.info == network.info
    assert torch.equal(found.segmenter()(IMAGES).logits, network.segmenter()(IMAGES).logits)


def test_a_network_is_in_eval_mode_and_has_no_gradients() -> None:
    segmenter = random_network().segmenter()
    assert not segmenter.training
    assert not any(parameter.requires_grad for parameter in segmenter.parameters())


def test_the_header_tells_classes_and_input_without_ucd_ray(tmp_path: Path) -> None:
    with safe_open(saved(random_network(step=1), tmp_path), framework="pt") as file:
        header = file.metadata()
    names, ids = json.loads(header["class_names"]), json.loads(header["class_ids"])
    assert (names[:2], names[-1], ids) == (["background", "disc"], "hourglass", list(range(11)))
    assert json.loads(header["mean"]) == list(NORMALISATION.mean)
    assert json.loads(header["std"]) == list(NORMALISATION.std)
    assert "RGB pixels 0..255" in header["input"]


def test_channels_follow_the_order_in_which_classes_were_learned() -> None:
    scenario = {"dataset": "shapes", "steps": [[5, 2], [7]], "background": True}
    network = random_network(step=1, scenario=scenario, method="mib")
    assert network.info.class_ids == (0, 5, 2, 7)
    assert network.info.class_names == ("background", "cross", "square", "crescent")
    assert network.segmenter()(IMAGES).logits.shape[1] == 4


def test_a_joint_network_knows_all_classes_after_step_0() -> None:
    info = random_network(step=0, method="joint").info
    assert info.class_ids == tuple(range(13))


def test_an_exported_network_can_be_the_base_of_another_study(tmp_path: Path) -> None:
    network = random_network(step=1)
    lines = write_network(network, tmp_path / "out", onnx=False)
    names = read_class_names(tmp_path / "out/classes.txt")
    assert names == network.info.class_names
    found = check_base(
        str(tmp_path / "out/network.safetensors"),
        range(len(names)),
        backbone="test_resnet",
        output_stride=16,
        width=16,
    )
    assert found == NORMALISATION
    assert lines == [
        f"wrote {tmp_path}/out/network.safetensors and {tmp_path}/out/classes.txt: 11 channels"
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("classes.txt", "network.safetensors"),
    ]


def test_what_is_no_network_of_ours_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(WeightsError, match=r"other.safetensors': no such file"):
        read_network(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=r"other.safetensors' does not say what its network is"):
        read_network(path)
    save_file({"a": torch.zeros(2)}, path, {"ucd_ray": "{}"})
    with pytest.raises(WeightsError, match=r"other.safetensors' is of another version.*scenario"):
        read_network(path)
    content = random_network().content()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"other.safetensors' is damaged"):
        read_network(path)


def test_tensors_that_are_not_those_of_the_description_are_refused(tmp_path: Path) -> None:
    network = random_network()
    weights = {k: v for k, v in network.weights.items() if k != "classifiers.2.bias"}
    with pytest.raises(WeightsError, match=r"does not fit.*1 missing \(classifiers.2.bias"):
        Network(network.info, weights).segmenter()
