"""Generated scenes of textured shapes: data without a data set.

Each class is a shape, a texture and a hue range.  Hue ranges of neighbouring classes overlap, and
the background holds lines and blobs of every colour, so the mean colour alone does not tell the
class; shape, texture and colour together do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ucd_ray.data.reader import Dataset, Ids, Splits, read_ids
from ucd_ray.errors import DataError

GENERATOR_VERSION = 1  # raise it when the same seed and index give another image
SMALLEST_SIZE = 32

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Color = npt.NDArray[np.float32]

_MOST_OBJECTS = 5
_HUES = 12
_HUE_JITTER = 0.6 / _HUES  # more than half a step: the ranges of two neighbours overlap
_NOISE = 7.0  # standard deviation of the pixel noise, in grey levels


def _triangle(x: Map, y: Map, radius: Map) -> Mask:
    return (y < 0.55) & (y > 1.75 * np.abs(x) - 0.95)


def _star(x: Map, y: Map, radius: Map) -> Mask:
    return radius < 0.74 + 0.24 * np.cos(5 * np.arctan2(y, x))


def _crescent(x: Map, y: Map, radius: Map) -> Mask:
    return (radius < 0.95) & (np.hypot(x - 0.55, y) > 0.65)


def _corner(x: Map, y: Map, radius: Map) -> Mask:
    low, high = np.minimum(x, y), np.maximum(x, y)
    return (low > -0.8) & (low < -0.05) & (high < 0.8)


def _hourglass(x: Map, y: Map, radius: Map) -> Mask:
    return (np.abs(x) < np.abs(y) + 0.15) & (np.abs(y) < 0.85)


# x, y in [-1, 1] around the centre of the object and their length -> inside the shape?
_SHAPES: dict[str, Callable[[Map, Map, Map], Mask]] = {
    "disc": lambda x, y, radius: radius < 0.85,
    "square": lambda x, y, radius: np.maximum(np.abs(x), np.abs(y)) < 0.72,
    "triangle": _triangle,
    "star": _star,
    "cross": lambda x, y, radius: (np.minimum(np.abs(x), np.abs(y)) < 0.38) & (radius < 0.95),
    "ring": lambda x, y, radius: (radius < 0.95) & (radius > 0.36),
    "crescent": _crescent,
    "bar": lambda x, y, radius: (np.abs(x) < 0.42) & (np.abs(y) < 0.98),
    "corner": _corner,
    "hourglass": _hourglass,
    "frame": lambda x, y, radius: np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.54) < 0.3,
    "drop": lambda x, y, radius: np.hypot(1.3 * x * (1.25 + 0.6 * y), y) < 0.95,
}

# x, y in units of the texture's period -> the lighter of the two tones?
_TEXTURES: tuple[Callable[[Map, Map], Mask], ...] = (
    lambda x, y: y % 1 < 0.5,  # stripes
    lambda x, y: (x % 1 < 0.5) ^ (y % 1 < 0.5),  # checks
    lambda x, y: np.hypot(x % 1 - 0.5, y % 1 - 0.5) < 0.33,  # dots
    lambda x, y: np.ones(x.shape, np.bool_),  # plain
    lambda x, y: np.hypot(x, y) % 1 < 0.5,  # circles
)


def generate(
    index: int, *, seed: int, num_classes: int = 12, size: int | tuple[int, int] = 96
) -> tuple[npt.NDArray[np.uint8], Ids]:
    """Scene number `index` of the endless series `seed`: image [H, W, 3] and class ids [H, W].

    Two to five objects lie over each other.  The uppermost one takes the classes in turn, so any
    `num_classes` scenes that start at a multiple of it show every class.  The result depends on
    the arguments alone, and a class looks the same whatever `num_classes` is.

    size: pixels, one side of a square or (height, width).
    """
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng((seed, index))
    image = _background(rng, height, width)
    mask = np.zeros((height, width), np.uint8)
    classes = rng.integers(1, num_classes + 1, size=int(rng.integers(2, _MOST_OBJECTS + 1)))
    classes[-1] = 1 + index % num_classes
    for class_id in classes.tolist():
        _draw_object(rng, image, mask, class_id)
    image += _NOISE * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def look_of(class_id: int) -> tuple[str, int, int]:
    """Shape name, texture number and hue number of a class; different for every class."""
    kind = class_id - 1
    shape = list(_SHAPES)[kind % len(_SHAPES)]
    return shape, kind % len(_TEXTURES), (5 * kind + kind // len(_SHAPES)) % _HUES


def _background(rng: np.random.Generator, height: int, width: int) -> Map:
    """Smooth noise in muted colours with lines and blobs over it: float [H, W, 3], 0..255."""
    coarse = rng.integers(40, 200, size=(5, 5, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image = np.asarray(smooth).astype(np.float32)
    image += 0.7 * (image.mean(axis=2, keepdims=True) - image)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    side = min(height, width)
    for _ in range(int(rng.integers(1, 4))):
        angle, thickness = rng.uniform(0, np.pi), rng.uniform(0.005, 0.014) * side
        across = (x - rng.uniform(0, width)) * np.cos(angle)
        across += (y - rng.uniform(0, height)) * np.sin(angle)
        image[np.abs(across) < thickness] = _color(rng, rng.uniform())
    for _ in range(int(rng.integers(2, 5))):
        from_centre = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height))
        image[from_centre < rng.uniform(0.02, 0.05) * side] = _color(rng, rng.uniform())
    return image


def _draw_object(rng: np.random.Generator, image: Map, mask: Ids, class_id: int) -> None:
    """Put one object of the class onto image and mask, over what is there."""
    shape, texture, hue = look_of(class_id)
    height, width = mask.shape
    half = rng.uniform(0.22, 0.3) * min(height, width)
    centre_y, centre_x = rng.uniform(0.15, 0.85) * height, rng.uniform(0.15, 0.85) * width
    # Only the square around the object is worked on; its corners hold the turned shape.
    reach = 1.5 * half
    top, bottom = max(int(centre_y - reach), 0), min(int(centre_y + reach) + 1, height)
    left, right = max(int(centre_x - reach), 0), min(int(centre_x + reach) + 1, width)
    patch = np.s_[top:bottom, left:right]
    y, x = np.mgrid[patch].astype(np.float32)
    x = (x - np.float32(centre_x)) / np.float32(half)
    y = (y - np.float32(centre_y)) / np.float32(half)
    angle = rng.uniform(-0.5, 0.5)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = cos * x + sin * y, cos * y - sin * x

    inside = _SHAPES[shape](x, y, np.hypot(x, y))
    per_unit = np.float32(rng.uniform(1.3, 1.8))
    phase_x, phase_y = rng.uniform(size=2).astype(np.float32)
    light = _TEXTURES[texture](per_unit * x + phase_x, per_unit * y + phase_y)
    color = _color(rng, hue / _HUES + rng.uniform(-_HUE_JITTER, _HUE_JITTER))
    image[patch][inside & light] = color
    image[patch][inside & ~light] = 0.35 * color
    mask[patch][inside] = class_id


def _color(rng: np.random.Generator, hue: float) -> Color:
    """A saturated colour of this hue (1 is a full turn) and random strength: float [3], 0..255."""
    strength, saturation = rng.uniform(190, 255), rng.uniform(0.7, 1.0)
    third = (hue + np.array([0.0, 2 / 3, 1 / 3])) % 1
    channels = np.clip(np.abs(6 * third - 3) - 1, 0, 1)
    return np.asarray(strength * (1 - saturation * (1 - channels)), np.float32)


def find(root: Path) -> Splits:
    """Refuses: these images are made, not read."""
    raise DataError(
        f"data set 'shapes' is generated and cannot be read from '{root}'; leave --data out, "
        "or say --data generated"
    )


SHAPES = Dataset(
    "shapes",
    ("background", *_SHAPES),
    "nothing: its images are generated",
    "it needs no files",
    find,
    read_ids,
    example="shapes-8-2",
)
