"""Networks in ONNX, as onnxruntime computes them."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from tests.networks import NORMALISATION, random_network
from ucd_ray.errors import ConfigError, WeightsError
from ucd_ray.network import Network
from ucd_ray.onnx_export import check_installed, compare, export_onnx


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network()


@pytest.fixture(scope="module")
def path(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    found = export_onnx(network, path)
    assert (found.sizes, found.other_pixels) == (3, 0)
    assert found.difference < 1e-5
    return path


@pytest.mark.parametrize("size", [(1, 96, 128), (3, 31, 200), (1, 1, 1), (2, 17, 9)])
def test_onnxruntime_gives_the_logits_and_classes_of_the_network(
    network: Network, path: Path, size: tuple[int, int, int]
) -> None:
    batch, height, width = size
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images.numpy()})
    wanted = network.segmenter()(images).logits
    assert logits.shape == (batch, 13, height, width)
    assert torch.allclose(torch.from_numpy(logits), wanted, rtol=1e-4, atol=1e-5)
    same = torch.from_numpy(logits.argmax(1)) == wanted.argmax(1)
    assert same.float().mean() > 0.999


def test_the_file_names_its_axes_classes_and_input(path: Path) -> None:
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["class_names"])[:3] == ["background", "disc", "square"]
    assert json.loads(told["mean"]) == list(NORMALISATION.mean)
    (image,), (logits,) = model.graph.input, model.graph.output
    shapes = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, logits)
    ]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 13, "height", "width"]]
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)


def test_a_graph_of_another_network_is_found_out(network: Network, path: Path) -> None:
    weights = {**network.weights, "classifiers.1.bias": torch.tensor([9.0, -9.0])}
    with pytest.raises(WeightsError, match=r"network.onnx' does not compute what the network does"):
        compare(Network(network.info, weights).segmenter(), path)


def test_without_its_packages_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_installed()
    real: Callable[..., Any] = builtins.__import__

    def absent(name: str, *arguments: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError(name=name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(
        ConfigError, match=r"needs the package 'onnxruntime': `pip install 'ucd-ray"
    ):
        check_installed()
