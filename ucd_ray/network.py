"""A trained network that describes itself: weights, classes, input, and where it comes from.

In a file these are the tensors of a `.safetensors` and, in its header, the JSON of `NetworkInfo` under
`ucd_ray`.  Whoever reads the file without ucd-ray finds `class_names`, `class_ids` and `input` beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from ucd_ray.config import ComputeConfig, Config, EvalConfig
from ucd_ray.errors import WeightsError
from ucd_ray.models.weights import Normalisation, misfits, own_normalisation, read_header
from ucd_ray.recipe import Recipe, describe
from ucd_ray.scenarios import Scenario, Setting

if TYPE_CHECKING:
    from torch import Tensor

    from ucd_ray.models import Segmenter

SUFFIX = ".safetensors"
INPUT = (
    "RGB pixels 0..255 of shape [batch, 3, height, width], any size; the network itself subtracts "
    "255 * mean and divides by 255 * std"
)


class NetworkInfo(Config):
    """What a network's file says about it."""

    scenario: Scenario
    """The classes of every step of its run."""
    setting: Setting
    """Which images and labels its steps saw."""
    method: str
    """What it was trained with."""
    step: int
    """After which step of its run."""
    class_names: tuple[str, ...]
    """Of its channels, background first."""
    backbone: str
    """As in `model.backbone`."""
    output_stride: Literal[8, 16]
    """Image size divided by feature size."""
    width: int
    """Channels that the classifiers read."""
    normalisation: Normalisation
    """Of its input, for pixels in 0..1."""
    eval: EvalConfig
    """How it is scored."""
    compute: ComputeConfig
    """How it is computed."""
    origin: dict[str, Any] = {}
    """Study, trial and recipe that it comes from."""

    @property
    def steps(self) -> Scenario:
        """The steps that were really run: all classes at once for `joint`."""
        return self.scenario.joined() if self.method == "joint" else self.scenario

    @property
    def class_ids(self) -> tuple[int, ...]:
        """The data set's id of every channel."""
        return self.steps.classes_until(self.step)

    def header(self) -> dict[str, str]:
        """Metadata for files of any format."""
        return {
            "ucd_ray": self.model_dump_json(),
            "class_names": json.dumps(self.class_names, ensure_ascii=False),
            "class_ids": json.dumps(self.class_ids),
            "mean": json.dumps(self.normalisation.mean),
            "std": json.dumps(self.normalisation.std),
            "input": INPUT,
        }


@dataclass(frozen=True)
class Network:
    """A trained network: what it is, and its weights."""

    info: NetworkInfo
    weights: Mapping[str, Tensor]

    def segmenter(self) -> Segmenter:
        """The network itself, on the CPU, in eval mode, without gradients.  Raises WeightsError."""
        from ucd_ray.models import build_segmenter, freeze

        info = self.info
        segmenter = build_segmenter(
            backbone=info.backbone,
            output_stride=info.output_stride,
            classes_per_step=info.steps.classes_per_step()[: info.step + 1],
            normalisation=info.normalisation,
            width=info.width,
        )
        target = segmenter.state_dict()
        unknown = {name: value for name, value in self.weights.items() if name not in target}
        found = {name: value for name, value in self.weights.items() if name in target}
        if problems := misfits(target, found, unknown):
            raise WeightsError(
                f"the network does not fit its own description: {'; '.join(problems)}"
            )
        segmenter.load_state_dict(found, strict=False)
        return freeze(segmenter)

    def content(self) -> bytes:
        """The network as a `.safetensors` file."""
        from safetensors.torch import save

        return save(dict(self.weights), {"format": "pt", **self.info.header()})


def trained_network(
    recipe: Recipe,
    step: int,
    weights: Mapping[str, Tensor],
    *,
    classes: tuple[str, ...],
    origin: Mapping[str, Any],
) -> Network:
    """The network of a run after a step.

    classes: name of every class id of its data set
    """
    model = recipe.model
    info = NetworkInfo(
        scenario=recipe.scenario,
        setting=recipe.setting,
        method=recipe.method,
        step=step,
        class_names=tuple(classes[number] for number in recipe.steps.classes_until(step)),
        backbone=model.backbone,
        output_stride=model.output_stride,
        width=model.width,
        normalisation=own_normalisation(weights),
        eval=recipe.eval,
        compute=recipe.compute,
        origin={**origin, "recipe": recipe.flat()},
    )
    return Network(info, weights)


def read_network(path: Path) -> Network:
    """The network in a file that `content` made.  Raises WeightsError naming the file."""
    header, weights = read_header(path)
    if "ucd_ray" not in header:
        raise WeightsError(
            f"'{path}' does not say what its network is; give a file that `ucd-ray export` or "
            "`ucd-ray train --save` wrote, or the name of a study"
        )
    try:
        network = Network(NetworkInfo.model_validate_json(header["ucd_ray"]), weights)
    except ValidationError as error:
        raise WeightsError(
            f"'{path}' is of another version of ucd-ray: {describe(error)}"
        ) from None
    except ValueError as error:
        raise WeightsError(f"'{path}' does not say what its network is: {error}") from None
    return network
