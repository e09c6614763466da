"""Generated scenes are deterministic, complete and well formed."""

from __future__ import annotations

import numpy as np
import pytest

from ucd_ray.data.shapes import SHAPES, generate, look_of


def test_a_scene_depends_on_seed_and_index_only_not_on_what_was_made_before() -> None:
    image, mask = generate(7, seed=3)
    generate(8, seed=3)
    again, mask_again = generate(7, seed=3)

    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)


@pytest.mark.parametrize("other", [{"index": 8, "seed": 3}, {"index": 7, "seed": 4}])
def test_another_seed_or_index_gives_another_scene(other: dict[str, int]) -> None:
    assert not np.array_equal(generate(7, seed=3)[0], generate(**other)[0])


@pytest.mark.parametrize(("size", "shape"), [(96, (96, 96)), ((64, 120), (64, 120))])
def test_image_and_mask_have_the_size_asked_for(
    size: int | tuple[int, int], shape: tuple[int, int]
) -> None:
    image, mask = generate(0, seed=0, size=size)

    assert image.shape == (*shape, 3)
    assert mask.shape == shape
    assert image.dtype == mask.dtype == np.uint8


@pytest.mark.parametrize("num_classes", [2, 12, 150, 254])
def test_as_many_scenes_as_classes_show_every_class(num_classes: int) -> None:
    shown: set[int] = set()
    for index in range(num_classes):
        mask = generate(index, seed=1, num_classes=num_classes)[1]
        assert 1 + index % num_classes in mask
        shown |= set(np.unique(mask).tolist())

    assert shown == set(range(num_classes + 1))


def test_objects_cover_a_good_part_of_a_scene() -> None:
    masks = np.stack([generate(index, seed=0)[1] for index in range(60)])

    assert 0.15 < (masks > 0).mean() < 0.6
    assert np.median([np.unique(mask).size for mask in masks]) >= 3


def test_every_class_looks_different() -> None:
    assert len({look_of(class_id) for class_id in range(1, 255)}) == 254


def test_the_classes_of_shapes_are_named_after_their_shape() -> None:
    assert [look_of(class_id)[0] for class_id in range(1, 13)] == list(SHAPES.classes[1:])


def test_mean_colour_alone_does_not_tell_the_class() -> None:
    """A nearest-mean-colour rule names far from every object right."""
    pairs = [_colour_of_a_lone_class(index) for index in range(240)]
    colours = np.array([colour for _, colour in pairs])
    classes = np.array([class_id for class_id, _ in pairs])
    means = np.stack([colours[classes == class_id].mean(0) for class_id in range(1, 13)])
    nearest = 1 + np.linalg.norm(colours[:, None] - means, axis=2).argmin(1)

    assert 1 / 6 < (nearest == classes).mean() < 0.95


def _colour_of_a_lone_class(index: int) -> tuple[int, np.ndarray]:
    image, mask = generate(index, seed=5)
    class_id = 1 + index % 12
    return class_id, image[mask == class_id].mean(0)
