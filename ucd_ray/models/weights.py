"""Pretrained backbone weights: local files, their normalisation, and download by name.

What a driver needs (Normalisation, read_normalisation, file_digest) works without torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucd_ray.errors import WeightsError
from ucd_ray.models.torchvision_names import to_timm_names

if TYPE_CHECKING:
    from torch import Tensor

    from ucd_ray.models.backbone import Backbone

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation per RGB channel, for pixels scaled to 0..1."""

    mean: Triple
    std: Triple


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def read_normalisation(
    path: str | Path | None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Normalisation:
    """The input normalisation that belongs to a weight file.

    `mean` and `std` win where given; else the .json beside the file, as
    {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]} (more keys are fine); without a weight file
    ImageNet's.  Raises WeightsError if the file's normalisation is unknown or no normalisation.
    """
    if mean is None or std is None:
        known = IMAGENET if path is None else _read_json(Path(path))
        mean, std = mean or known.mean, std or known.std
    return Normalisation(_triple(mean, "the mean"), _triple(std, "the std", positive=True))


def _read_json(weights: Path) -> Normalisation:
    path = weights.with_suffix(".json")
    form = '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, for pixels scaled to 0..1'
    if not path.is_file():
        raise WeightsError(
            f"'{weights}' does not say which input it was trained with: pass --weights-mean and "
            f"--weights-std, or write '{path}' as {form}"
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        mean, std = stored["mean"], stored["std"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise WeightsError(f"'{path}' cannot be read ({reason}); it should be {form}") from None
    return Normalisation(
        _triple(mean, f"'mean' in '{path}'"), _triple(std, f"'std' in '{path}'", positive=True)
    )


def _triple(values: Any, what: str, *, positive: bool = False) -> Triple:
    wanted = "three numbers above 0" if positive else "three numbers"
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        raise WeightsError(f"{what} must be {wanted}, got {values!r}") from None
    for value in (red, green, blue):
        if not math.isfinite(value) or (positive and value <= 0):
            raise WeightsError(f"{what} must be {wanted}, got {values!r}")
    return red, green, blue


def file_digest(path: str | Path) -> str:
    """sha256 of the file's bytes, as hex.  Raises WeightsError if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file, on the CPU; no code in the file is run.

    A wrapper under 'state_dict', 'model' or 'model_state' and a prefix 'module.' are taken off.
    Raises WeightsError if the file is absent, damaged or holds anything but tensors.
    """
    stored = _load(Path(path))
    for wrapper in ("state_dict", "model", "model_state"):
        if isinstance(stored, dict) and isinstance(stored.get(wrapper), dict):
            stored = stored[wrapper]
    if not _is_state_dict(stored):
        raise WeightsError(
            f"'{path}' holds no state dict; save model.state_dict(), names with one tensor each"
        )
    if all(key.startswith("module.") for key in stored):
        return {key.removeprefix("module."): tensor for key, tensor in stored.items()}
    return dict(stored)


def read_header(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header and the tensors of a .safetensors file, on the CPU.

    Raises WeightsError if the file is absent, damaged or of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # a list: the file itself cannot be iterated over
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise _unreadable(path, error) from None
    except SafetensorError as error:
        raise _damaged(path, error) from None


def own_normalisation(state: Mapping[str, Tensor]) -> Normalisation:
    """The input normalisation that a network of ours carries.

    Its buffers are 255 times the values, in single precision: six digits are what was given.
    """
    mean, std = (
        tuple(round(x / 255, 6) for x in state[key].flatten().tolist()) for key in ("mean", "std")
    )
    return Normalisation(_triple(mean, "the mean"), _triple(std, "the std", positive=True))


def _is_state_dict(stored: Any) -> bool:
    from torch import Tensor

    return (
        isinstance(stored, dict)
        and bool(stored)
        and all(isinstance(key, str) for key in stored)
        and all(isinstance(value, Tensor) for value in stored.values())
    )


def _load(path: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unreadable(path, error) from None
    # Damaged bytes surface as almost any exception of the unpickler.
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if refused:
            raise WeightsError(
                f"'{path}' holds a Python object ({refused[1]}) besides tensors, and unpickling "
                "one could run code; save model.state_dict() alone"
            ) from None
        raise _damaged(path, error) from None


def _damaged(path: str | Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"'{path}' is damaged or no weight file ({type(error).__name__}); download or copy it again"
    )


def _unreadable(path: str | Path, error: OSError) -> WeightsError:
    return WeightsError(f"cannot read weights '{path}': {error.strerror or 'no such file'}")


def load_backbone_weights(backbone: Backbone, path: str | Path, *, name: str) -> list[str]:
    """Fill `backbone` from a local file and return lines for the log.

    name: the backbone as the user wrote it, for messages.  The file may use timm's names or
    torchvision's.  Layers after the last stage (classifier, final 1x1 convolution) are dropped.
    Raises WeightsError unless every other tensor has its place and shape.
    """
    state = to_timm_names(read_state(path), backbone.name)
    target = backbone.body.state_dict()
    place = {_flat(key): key for key in target}
    found = {place[_flat(key)]: value for key, value in state.items() if _flat(key) in place}
    rest = {key: value for key, value in state.items() if _flat(key) not in place}
    dropped = rest.keys() & _full_model_keys(backbone.name)
    unknown = {key: value for key, value in rest.items() if key not in dropped}
    problems = misfits(target, found, unknown)
    if problems:
        raise WeightsError(
            f"'{path}' does not fit backbone '{name}', it looks like weights of another "
            f"architecture: {'; '.join(problems)}"
        )
    backbone.body.load_state_dict({**target, **found})
    lines = [f"loaded {len(found)} tensors into backbone {name} from {path}"]
    if dropped:
        lines.append(f"dropped {len(dropped)} tensors after its last stage: {few(sorted(dropped))}")
    return lines


def check_backbone(name: str, output_stride: int, weights: str | None) -> None:
    """Raises ConfigError for a backbone that cannot be used, WeightsError for weights that misfit."""
    from ucd_ray.models.backbone import create_backbone

    backbone = create_backbone(name, output_stride)
    if weights is not None:
        load_backbone_weights(backbone, weights, name=name)


def misfits(
    target: Mapping[str, Tensor], found: Mapping[str, Tensor], unknown: Mapping[str, Tensor]
) -> list[str]:
    """What keeps `found` from filling `target`, one clause per kind; `unknown` has no place in it."""
    # Files written before PyTorch 0.4.1 lack the counters, which only momentum=None reads.
    counters = {key for key in target if key.endswith("num_batches_tracked")}
    missing = [key for key in target if key not in found and key not in counters]
    misshaped = [
        f"{key} is {_size(value)}, not {_size(target[key])}"
        for key, value in found.items()
        if value.shape != target[key].shape
    ]
    return [
        *_problem("missing", [f"{key} {_size(target[key])}" for key in missing]),
        *_problem("unknown", [f"{key} {_size(value)}" for key, value in unknown.items()]),
        *_problem("of another shape", misshaped),
    ]


def _flat(key: str) -> str:
    """A name without the difference between timm's models and its extractors made from them."""
    return key.removeprefix("model.").replace(".", "_")


def _full_model_keys(timm_name: str) -> set[str]:
    import timm
    import torch

    # A model built only for its names must not move the seed on.
    with torch.random.fork_rng(devices=[]):
        return set(timm.create_model(timm_name, pretrained=False).state_dict())


def _problem(what: str, entries: list[str]) -> list[str]:
    return [f"{len(entries)} {what} ({few(entries)})"] if entries else []


def few(entries: Sequence[str]) -> str:
    """The first three, for a message."""
    return ", ".join(entries[:3]) + (", ..." if len(entries) > 3 else "")


def _size(tensor: Tensor) -> str:
    return "[" + ",".join(str(side) for side in tensor.shape) + "]"


def pretrained_weights(name: str, directory: str | Path | None = None) -> Path:
    """The local file of timm's pretrained weights of backbone `name`, downloaded at first use.

    directory: where the file and its normalisation (.json) are kept; None: beside torch.hub's
    other checkpoints.  Raises WeightsError without a network or where timm has no weights.
    """
    import torch

    from ucd_ray.models import BACKBONES

    timm_name = BACKBONES.get(name, name)
    folder = Path(directory) if directory else Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / f"ucd_ray_{timm_name}.safetensors"
    if not path.is_file():
        _download(timm_name, path)
    return path


def _download(timm_name: str, path: Path) -> None:
    import timm
    from safetensors.torch import save

    try:
        model = timm.create_model(timm_name, pretrained=True)
    # Hub clients fail with errors of their own and of the HTTP library below them.
    except Exception as error:
        raise WeightsError(
            f"cannot download pretrained weights of backbone '{timm_name}' "
            f"({type(error).__name__}); without network access use --weights FILE with a local file"
        ) from None
    about = {key: list(model.pretrained_cfg[key]) for key in ("mean", "std")}
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path.with_suffix(".json"), json.dumps({"architecture": timm_name, **about}).encode())
    _replace(path, save(model.state_dict()))


def _replace(path: Path, content: bytes) -> None:
    """Write at once, since several workers of one machine may download together."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
