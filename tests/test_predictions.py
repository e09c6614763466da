"""Masks and overlays of image files of any kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.networks import random_network
from ucd_ray.errors import ConfigError, DataError
from ucd_ray.network import Network
from ucd_ray.palette import palette
from ucd_ray.predictions import (
    LEGEND,
    find_images,
    mask_image,
    overlay_image,
    plan_outputs,
    predict_files,
    read_image,
    shares,
)


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network()


def image(path: Path, size: tuple[int, int] = (40, 24), mode: str = "RGB") -> Path:
    """An image file of noise; size: width, height."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def predicted(network: Network, images: list[Path], out: Path) -> list[np.ndarray]:
    return [ids for _, ids in predict_files(network, plan_outputs(images, out))]


@pytest.mark.parametrize("size", [(40, 24), (1, 1), (7, 150), (200, 133)])
def test_an_image_of_any_size_gets_a_mask_and_an_overlay_of_its_size(
    network: Network, tmp_path: Path, size: tuple[int, int]
) -> None:
    path = image(tmp_path / "scene.png", size)
    (ids,) = predicted(network, [path], tmp_path / "out")
    assert ids.shape == (size[1], size[0])
    with Image.open(tmp_path / "out/scene-mask.png") as mask:
        assert (mask.mode, mask.size) == ("P", size)
        assert np.array_equal(np.asarray(mask), ids)
        assert mask.getpalette() == palette().ravel().tolist()
    with Image.open(tmp_path / "out/scene-overlay.png") as overlay:
        assert (overlay.mode, overlay.size) == ("RGB", size)


def test_masks_hold_ids_of_the_data_set_and_not_channels(tmp_path: Path) -> None:
    scenario = {"dataset": "shapes", "steps": [[5, 2], [7]], "background": True}
    network = random_network(step=1, scenario=scenario, method="mib")
    for channel, number in enumerate((0, 5, 2, 7)):
        (ids,) = predicted(
            favouring(network, channel), [image(tmp_path / "a.png")], tmp_path / "out"
        )
        assert np.unique(ids).tolist() == [number]


def favouring(network: Network, channel: int) -> Network:
    """The same network with one channel above all others."""
    weights = {name: value.clone() for name, value in network.weights.items()}
    for step, first in ((0, 0), (1, 3)):
        bias = weights[f"classifiers.{step}.bias"]
        bias += torch.tensor([1e4 * (first + i == channel) for i in range(len(bias))])
    return Network(network.info, weights)


def test_an_overlay_leaves_background_as_it_is_and_mixes_colours_elsewhere() -> None:
    pixels = np.full((1, 2, 3), 200, np.uint8)
    overlay = np.asarray(overlay_image(pixels, np.array([[0, 1]], np.uint8)))
    assert overlay[0, 0].tolist() == [200, 200, 200]
    assert overlay[0, 1].tolist() == [round(0.45 * 200 + 0.55 * c) for c in palette()[1]]


def test_a_mask_shows_the_colours_of_the_palette() -> None:
    shown = np.asarray(mask_image(np.array([[0, 3, 12]], np.uint8)).convert("RGB"))
    assert shown[0].tolist() == palette()[[0, 3, 12]].tolist()


def test_the_legend_is_drawn_once_for_all_images(network: Network, tmp_path: Path) -> None:
    images = [image(tmp_path / name) for name in ("a.png", "b.jpg")]
    predicted(network, images, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a-mask.png", "a-overlay.png", "b-mask.png", "b-overlay.png", LEGEND]
    with Image.open(tmp_path / "out" / LEGEND) as legend:
        drawn = {
            tuple(pixel) for pixel in np.asarray(legend.convert("RGB")).reshape(-1, 3).tolist()
        }
    assert {tuple(color) for color in palette()[:13].tolist()} <= drawn


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    assert read_image(image(tmp_path / f"a.{suffix}", mode=mode)).shape == (24, 40, 3)


def test_a_camera_held_upright_gives_an_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 24)).save(tmp_path / "photo.jpg", exif=exif)
    assert read_image(tmp_path / "photo.jpg").shape == (40, 24, 3)


def test_shares_name_classes_by_their_pixels(network: Network) -> None:
    assert shares(network.info, np.array([[0, 2, 2, 2]], np.uint8)) == [
        *(("square", 75.0), ("background", 25.0)),
    ]


# Which images.


def test_directories_give_their_images_by_name_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b.JPG", "a.png"):
        image(folder / name)
    (folder / "notes.txt").touch()
    single = image(tmp_path / "z.bmp")
    assert find_images([single, folder]) == [single, folder / "a.png", folder / "b.JPG"]


def test_an_absent_image_and_an_empty_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image '.*/gone.png' does not exist"):
        find_images([tmp_path / "gone.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"directory '.*/empty' has no image \(.jpg, "):
        find_images([tmp_path / "empty"])


def test_two_images_of_one_name_and_an_output_among_the_images_are_refused(tmp_path: Path) -> None:
    one, other = image(tmp_path / "a.png"), image(tmp_path / "a.jpg")
    with pytest.raises(ConfigError, match=r"a.png' and '.*a.jpg' have the same name"):
        plan_outputs([one, other], tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--out '.*' holds the image '.*a.png'"):
        plan_outputs([one], tmp_path)
    assert len(plan_outputs([one, one], tmp_path / "out")) == 1


def truncated(path: Path) -> None:
    content = image(path, (200, 200)).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(path)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_text("no image"), "it is damaged, or no image"),
        (truncated, "cannot read image"),
        (sixteen_bits, "more than 8 bits a channel"),
        (lambda path: path.mkdir(), "Is a directory"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_and_nothing_is_written(
    network: Network, tmp_path: Path, spoil: object, why: str
) -> None:
    good, bad = image(tmp_path / "a.png"), tmp_path / "bad.png"
    spoil(bad)  # type: ignore[operator]
    with pytest.raises(DataError, match=why) as error:
        predicted(network, [good, bad], tmp_path / "out")
    assert str(bad) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_named(network: Network, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write to --out '.*/file/x'"):
        predicted(network, [image(tmp_path / "a.png")], tmp_path / "file/x")
