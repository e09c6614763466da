"""Predictions for image files: masks of class ids, overlays, and the legend of their colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ucd_ray.errors import ConfigError, DataError
from ucd_ray.network import Network, NetworkInfo
from ucd_ray.palette import palette

if TYPE_CHECKING:
    from ucd_ray.models import Segmenter
    from ucd_ray.runtime import Runtime

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")  # looked for in a directory
OPACITY = 0.55  # of the colours over an image
LEGEND = "legend.png"


@dataclass(frozen=True)
class Outputs:
    """The files of one image."""

    image: Path
    mask: Path
    overlay: Path


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The images that are named, and those in directories that are, by name.  Raises DataError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise DataError(f"directory '{path}' has no image ({', '.join(SUFFIXES)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"image '{path}' does not exist")
    return found


def plan_outputs(images: Sequence[Path], out: Path) -> list[Outputs]:
    """Where the predictions of images go.

    Raises ConfigError if two images would have the same files, or `out` is a directory of images.
    """
    first: dict[str, Path] = {}
    for image in images:
        if image.resolve().parent == out.resolve():
            raise ConfigError(
                f"--out '{out}' holds the image '{image}': give another directory, or the masks would "
                "be taken for images the next time"
            )
        other = first.setdefault(image.stem, image)
        if other != image:
            raise ConfigError(
                f"'{other}' and '{image}' have the same name, so their predictions would too; predict "
                "one after the other with another --out"
            )
    unique = dict.fromkeys(images)
    return [
        Outputs(image, out / f"{image.stem}-mask.png", out / f"{image.stem}-overlay.png")
        for image in unique
    ]


def read_image(path: Path) -> NDArray[np.uint8]:
    """[H, W, 3] RGB of an image of any kind, upright as its camera held it.

    Raises DataError naming the file if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"image '{path}' has more than 8 bits a channel ({image.mode}); convert it to 8 bits"
                )
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except DataError:
        raise
    except OSError as error:
        why = error.strerror or "it is damaged, or no image"
        raise DataError(f"cannot read image '{path}': {why}") from None
    # Damaged bytes make the decoders raise almost anything.
    except Exception as error:
        raise DataError(f"cannot read image '{path}': {error}") from None


def predict_files(
    network: Network, outputs: Sequence[Outputs]
) -> Iterator[tuple[Outputs, NDArray[np.uint8]]]:
    """Writes masks, overlays and the legend; yields the files and [H, W] class ids of every image.

    All images are read before anything is written.  Raises DataError, ConfigError, naming the file.
    """
    from ucd_ray.runtime import choose_runtime

    for files in outputs:
        read_image(files.image)
    runtime = choose_runtime(network.info.compute)
    segmenter = network.segmenter().to(runtime.device).to(memory_format=runtime.memory_format)
    folder = outputs[0].mask.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draw_legend(network.info, folder / LEGEND)
        for files in outputs:
            pixels = read_image(files.image)
            ids = predict_ids(segmenter, network.info, files.image, pixels, runtime)
            mask_image(ids).save(files.mask)
            overlay_image(pixels, ids).save(files.overlay)
            yield files, ids
    except OSError as error:
        raise ConfigError(f"cannot write to --out '{folder}': {error.strerror or error}") from None


def predict_ids(
    segmenter: Segmenter, info: NetworkInfo, path: Path, pixels: NDArray[np.uint8], runtime: Runtime
) -> NDArray[np.uint8]:
    """[H, W] the data set's id of the most likely class.

    pixels: [H, W, 3] RGB of the image at `path`
    Raises DataError if it is too large for this machine.
    """
    import torch

    from ucd_ray.evaluate import predict

    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    ids = np.array(info.class_ids, dtype=np.uint8)
    try:
        return ids[predict(segmenter, images, runtime)[0].cpu().numpy()]
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        height, width = pixels.shape[:2]
        raise DataError(
            f"image '{path}' ({width} x {height} pixels) does not fit into memory; make it smaller"
        ) from None


def mask_image(ids: NDArray[np.uint8]) -> Image.Image:
    """A mask whose pixel values are class ids, shown in their colours."""
    mask = Image.fromarray(ids)
    mask.putpalette(palette().tobytes())
    return mask


def overlay_image(pixels: NDArray[np.uint8], ids: NDArray[np.uint8]) -> Image.Image:
    """The image with the colours of its classes over it; background stays as it is."""
    colored = (1 - OPACITY) * pixels + OPACITY * palette()[ids]
    return Image.fromarray(np.where(ids[..., None] == 0, pixels, colored).round().astype(np.uint8))


def draw_legend(info: NetworkInfo, path: Path) -> None:
    """Writes the colours of the network's classes, with their ids and names, as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colors = palette() / 255
    handles = [
        Patch(facecolor=colors[number], edgecolor="0.5", label=f"{number}  {name}")
        for number, name in zip(info.class_ids, info.class_names, strict=True)
    ]
    figure = Figure()
    legend = figure.legend(handles=handles, loc="center", ncols=1 + len(handles) // 26)
    figure.savefig(path, dpi=110, bbox_extra_artists=[legend], bbox_inches="tight")


def shares(info: NetworkInfo, ids: NDArray[np.uint8]) -> list[tuple[str, float]]:
    """Names of the classes in a mask with their percent of its pixels, the largest first."""
    names = dict(zip(info.class_ids, info.class_names, strict=True))
    numbers, counts = np.unique(ids, return_counts=True)
    found = [(names[int(n)], 100.0 * c / ids.size) for n, c in zip(numbers, counts, strict=True)]
    return sorted(found, key=lambda share: -share[1])
