"""A trained network in ONNX, for whoever runs it without PyTorch.

Input `image`: uint8 [batch, 3, height, width], RGB pixels as decoded, any size; the normalisation is part
of the graph.  Output `logits`: float32 [batch, classes, height, width]; the most likely channel's id and
name are in the metadata (`class_ids`, `class_names`).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucd_ray.errors import ConfigError, WeightsError
from ucd_ray.network import Network

if TYPE_CHECKING:
    from ucd_ray.models import Segmenter

OPSET = 18
AXES = {0: "batch", 2: "height", 3: "width"}  # of any length
TRACED = (2, 96, 128)  # images, height, width that the graph is made from
CHECKED = ((1, 96, 96), (2, 65, 97), (1, 33, 160))  # that it is compared on
CLOSE = 1e-3  # largest difference of logits, as a fraction of the largest logit


@dataclass(frozen=True)
class Agreement:
    """How a graph and the network that it was made from agree on random images."""

    sizes: int
    difference: float  # largest of the logits, as a fraction of the largest logit
    other_pixels: int  # whose most likely class differs, with a margin above the difference


def check_installed() -> None:
    """Raises ConfigError if what ONNX needs is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"ONNX needs the package '{error.name}': `pip install 'ucd-ray[export]'`, or --no-onnx"
        ) from None


def export_onnx(network: Network, path: Path) -> Agreement:
    """Writes a network as ONNX and compares the file with it.

    Raises WeightsError if the network cannot be expressed in ONNX, or the two do not agree.
    """
    import torch

    segmenter = network.segmenter()
    batch, height, width = TRACED
    image = torch.zeros(batch, 3, height, width, dtype=torch.uint8)
    axes = {axis: torch.export.Dim(name) for axis, name in AXES.items()}
    try:
        with _quiet():
            program = torch.onnx.export(
                _logits_only(segmenter),
                (image,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes={"image": axes},
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise WeightsError(
            f"backbone '{network.info.backbone}' cannot be expressed in ONNX ({_first_line(error)}); "
            "--no-onnx exports the weights alone"
        ) from None
    assert program is not None, "only the older exporter writes by itself"
    program.model.metadata_props.update(network.info.header())
    program.save(str(path))
    return compare(segmenter, path)


def _logits_only(segmenter: Segmenter) -> Any:
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.segmenter = segmenter

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.segmenter(image).logits

    return Logits().eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on its own progress."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def compare(segmenter: Segmenter, path: Path) -> Agreement:
    """How the graph in a file agrees with a network, on images of several sizes.

    Raises WeightsError if it does not.
    """
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    largest, scale, other = 0.0, 0.0, 0
    for batch, height, width in CHECKED:
        shape = (batch, 3, height, width)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        with torch.inference_mode():
            here = segmenter(image).logits
        there = torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])
        difference = float((here - there).abs().max())
        best = here.topk(2, dim=1).values
        sure = best[:, 0] - best[:, 1] > 2 * difference
        other += int(((here.argmax(1) != there.argmax(1)) & sure).sum())
        largest, scale = max(largest, difference), max(scale, float(here.abs().max()))
    found = Agreement(len(CHECKED), largest / scale if scale else largest, other)
    if not found.difference <= CLOSE or found.other_pixels:
        raise WeightsError(
            f"the graph in '{path}' does not compute what the network does: logits differ by "
            f"{found.difference:.1e} of the largest, {found.other_pixels} pixels have another class"
        )
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
