"""The base network: a segmentation network that was trained elsewhere, taken as step 0 of a run.

Its tensors are named as our Segmenter's (a `.safetensors` file of the step cache is one) or as those of
torchvision's DeepLabV3.  Either every tensor finds its place, or the file is refused.  What a driver
needs (BaseNetwork, read_class_names, channel_ids) works without torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ucd_ray.errors import ConfigError, WeightsError, did_you_mean
from ucd_ray.models.weights import (
    IMAGENET,
    Normalisation,
    Triple,
    few,
    file_digest,
    misfits,
    own_normalisation,
    read_normalisation,
    read_state,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ucd_ray.models.segmenter import Segmenter

BACKGROUND = (
    "background"  # accepted for class 0 where the data set calls it otherwise, such as void
)
TORCHVISION_HINT = (
    ". torchvision's head has more layers between its pyramid and the last convolution than ours, so "
    "it cannot be taken over"
)
SHORT = 12  # characters of a digest, for people


@dataclass(frozen=True)
class BaseNetwork:
    """A checked base network: its file, and what the file does not say."""

    path: str
    digest: str  # sha256 of the file
    channels: tuple[int, ...]  # class id of every channel of the file, 0 first
    normalisation: Normalisation  # of its input

    def key(self) -> dict[str, Any]:
        """What determines its weights in our channel order, for the step cache."""
        return {"digest": self.digest, "channels": list(self.channels)}

    def __str__(self) -> str:
        return f"{self.path} (digest {self.digest[:SHORT]})"


# The names of its classes.


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """The names in a file: one a line, or a YAML list.  Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read --base-classes '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--base-classes '{path}' is not UTF-8 text") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or not lines[0].startswith(("- ", "[")):
        return tuple(lines)
    try:
        names = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--base-classes '{path}' is not a YAML list: {error}") from None
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise ConfigError(
            f"--base-classes '{path}' holds {wrong[0]!r}, which is no text; write names in quotes"
        )
    return tuple(names)


def channel_ids(
    names: Sequence[str], *, known: Sequence[str], wanted: Sequence[int], path: str | Path
) -> tuple[int, ...]:
    """The class id of every channel of the base network.

    names: of its channels; known: name of every class id of the data set; wanted: ids of background
        and the classes of step 0, which must be exactly those named; path: of the list, for messages
    Raises ConfigError.
    """
    id_of = {BACKGROUND: 0} | {name: number for number, name in enumerate(known)}
    expected = [known[number] for number in wanted]
    found = [id_of.get(name) for name in names]
    unknown = [
        f"'{name}'{_hint(name, expected)}"
        for name, number in zip(names, found, strict=True)
        if number is None
    ]
    others = [name for name in names if id_of.get(name, 0) not in wanted]
    problems = [
        *_listed("missing", [known[number] for number in wanted if number not in found]),
        *_listed("unknown", unknown),
        *_listed("not learned in step 0", others),
        *_listed("named twice", [name for name in dict.fromkeys(names) if names.count(name) > 1]),
    ]
    if problems:
        raise ConfigError(
            f"--base-classes '{path}' ({len(names)} names) must name background and the "
            f"{len(wanted) - 1} classes of step 0, in the order of the network's channels; "
            + "; ".join(problems)
        )
    if found[0] != 0:
        raise ConfigError(
            f"--base-classes '{path}' begins with '{names[0]}'; the first channel of a network must "
            f"be '{known[0]}'"
        )
    return tuple(number for number in found if number is not None)


def _hint(name: str, choices: Sequence[str]) -> str:
    hint = did_you_mean(name, choices)
    return f" ({hint})" if hint.startswith("did") else ""


def _listed(what: str, entries: Sequence[str]) -> list[str]:
    return [f"{len(entries)} {what}: {few(entries)}"] if entries else []


# Its tensors.


def check_base(
    path: str,
    channels: Sequence[int],
    *,
    backbone: str,
    output_stride: int,
    width: int,
    mean: Triple | None = None,
    std: Triple | None = None,
    weights: str | None = None,
) -> Normalisation:
    """Whether the network in a file is that of a recipe.  Returns the normalisation of its input.

    channels: class id of every channel; mean, std: as the user gave them; weights: the file of
        pretrained weights it was trained from, whose .json tells if nothing else does
    Raises WeightsError, ConfigError.
    """
    from ucd_ray.models.segmenter import build_segmenter

    segmenter = build_segmenter(
        backbone=backbone,
        output_stride=output_stride,
        classes_per_step=[len(channels)],
        normalisation=IMAGENET,
        width=width,
    )
    state = read_state(path)
    _fill(segmenter, state, path, range(len(channels)))
    return _normalisation(state, path, mean, std, weights)


def load_base(segmenter: Segmenter, base: BaseNetwork, wanted: Sequence[int]) -> list[str]:
    """Fills the network of step 0 and returns lines for the log.

    wanted: class ids in our channel order
    Raises WeightsError if the file is not the one that was checked.
    """
    if file_digest(base.path) != base.digest:
        raise WeightsError(
            f"base network '{base.path}' has changed since this run was started; start it again"
        )
    rows = [base.channels.index(number) for number in wanted]
    dropped = _fill(segmenter, read_state(base.path), base.path, rows)
    lines = [f"step 0 is the base network {base}"]
    if dropped:
        lines.append(f"dropped {len(dropped)} tensors of its auxiliary classifier")
    return lines


def _fill(
    segmenter: Segmenter, state: dict[str, Tensor], path: str, rows: Sequence[int]
) -> list[str]:
    """Loads `state`, our channel i from its channel rows[i].  Returns the names that were dropped."""
    named = _our_names(state, path)
    target = segmenter.state_dict()
    dropped = [old for old, new in named.items() if new is None]
    found = {new: state[old] for old, new in named.items() if new is not None}
    found = _one_classifier(found, path, rows)
    unknown = {old: state[old] for old, new in named.items() if new in found and new not in target}
    found = {"mean": target["mean"], "std": target["std"]} | {
        key: value for key, value in found.items() if key in target
    }
    problems = misfits(target, found, unknown)
    if problems:
        hint = TORCHVISION_HINT if any(key.startswith("classifier.") for key in unknown) else ""
        raise WeightsError(
            f"'{path}' is not the network of this recipe (model.backbone={segmenter.backbone.name}, "
            f"model.width={segmenter.head.width}): {'; '.join(problems)}{hint}"
        )
    broken = [key for key, value in found.items() if not value.isfinite().all()]
    if broken:
        raise WeightsError(f"'{path}' holds values that are not finite: {few(broken)}")
    segmenter.load_state_dict({**target, **found})
    return dropped


def _one_classifier(state: dict[str, Tensor], path: str, rows: Sequence[int]) -> dict[str, Tensor]:
    """`state` with the rows of its classifier in our order.

    Classifiers of several steps become one: they read the same features.
    """
    import torch

    state = dict(state)
    for kind in ("weight", "bias"):
        pattern = rf"classifiers\.\d+\.{kind}"
        found = [key for key in state if re.fullmatch(pattern, key) and state[key].ndim]
        found.sort(key=lambda key: int(key.split(".")[1]))
        if len({state[key].shape[1:] for key in found}) != 1:
            continue  # it does not fit, whatever its rows are
        whole = torch.cat([state.pop(key) for key in found])
        if len(whole) != len(rows):
            raise ConfigError(
                f"--base-classes names {len(rows)} classes, background included, but the classifier "
                f"of '{path}' has {len(whole)} channels"
            )
        state[f"classifiers.0.{kind}"] = whole[list(rows)]
    return state


def _our_names(state: dict[str, Tensor], path: str) -> dict[str, str | None]:
    """Our name of every tensor, None for what only served training.  Raises WeightsError."""
    if any(key.startswith("classifiers.") for key in state):
        return {key: key for key in state}
    layers = [int(found[1]) for key in state if (found := re.match(r"classifier\.(\d+)\.", key))]
    if not layers or not any(key.startswith("backbone.") for key in state):
        raise WeightsError(
            f"'{path}' holds no segmentation network: its tensors are named neither as ours "
            "(backbone.*, head.*, classifiers.*) nor as torchvision's DeepLabV3 (backbone.*, "
            f"classifier.*), but {few(list(state))}; weights of a backbone alone go to --weights"
        )
    places = {
        "backbone.": "backbone.body.",
        "classifier.0.": "head.aspp.",
        f"classifier.{max(layers)}.": "classifiers.0.",
    }
    named: dict[str, str | None] = {}
    for key in state:
        place = next((old for old in places if key.startswith(old)), "")
        named[key] = places.get(place, "") + key.removeprefix(place)
        if key.startswith("aux_classifier."):
            named[key] = None
    return named


def _normalisation(
    state: dict[str, Tensor],
    path: str,
    mean: Triple | None,
    std: Triple | None,
    weights: str | None,
) -> Normalisation:
    """What the user gave, the network itself says (ours do), or a .json beside a file says."""
    if not {"mean", "std"} <= state.keys():
        told = weights is None or Path(path).with_suffix(".json").is_file()
        return read_normalisation(path if told else weights, mean, std)
    own = own_normalisation(state)
    for key, given, stored in (("mean", mean, own.mean), ("std", std, own.std)):
        if given is not None and not _close(given, stored):
            raise ConfigError(
                f"--weights-{key} ({_numbers(given)}) is not what '{path}' was trained with "
                f"({_numbers(stored)}, as it says itself); leave it out"
            )
    return own


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(one, other, strict=True))


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
