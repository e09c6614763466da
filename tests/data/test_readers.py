"""Every layout is found, read and refused by its reader."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ucd_ray.data import DATASETS, find_dataset
from ucd_ray.data.cityscapes import read_label_ids, read_train_ids
from ucd_ray.data.reader import read_ids
from ucd_ray.data.voc import read_list
from ucd_ray.errors import DataError

FILE_DATASETS = ("voc", "ade", "cityscapes", "msrc", "folder")


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_list(root: Path, name: str, *lines: str) -> None:
    path = root / "ImageSets" / "Segmentation" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def voc_layout(root: Path) -> None:
    touch(root, "JPEGImages/a.jpg", "JPEGImages/b.jpg", "SegmentationClass/a.png")
    write_list(root, "train.txt", "a")
    write_list(root, "val.txt", "b")


def ade_layout(root: Path) -> None:
    for folder in ("training", "validation"):
        touch(root, f"images/{folder}/{folder}_1.jpg", f"annotations/{folder}/{folder}_1.png")


def cityscapes_layout(root: Path) -> None:
    for split, city in (("train", "ulm"), ("val", "munster")):
        touch(root, f"leftImg8bit/{split}/{city}/{city}_0_leftImg8bit.png")
        touch(root, f"gtFine/{split}/{city}/{city}_0_gtFine_labelIds.png")


def folder_layout(root: Path) -> None:
    touch(root, "images/train/a.jpeg", "images/val/a.PNG", "masks/train/a.png", "masks/val/a.png")
    (root / "classes.txt").write_text("background\ncat\ndog\n")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "voc": voc_layout,
    "ade": ade_layout,
    "cityscapes": cityscapes_layout,
    "msrc": voc_layout,
    "folder": folder_layout,
}


def png(values: object, mode: str | None = None, dtype: type = np.uint8) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.array(values, dtype), mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", FILE_DATASETS)
def test_find_gives_the_files_of_both_splits(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)

    splits = find_dataset(name, tmp_path).find(tmp_path)

    assert {split: len(samples) for split, samples in splits.items()} == {"train": 1, "val": 1}
    (sample,) = splits["train"]
    assert sample.image.is_file()
    assert sample.mask.is_file()


@pytest.mark.parametrize("name", FILE_DATASETS)
def test_an_absent_directory_is_refused_with_what_is_expected_and_how_to_get_it(
    name: str, tmp_path: Path
) -> None:
    absent = tmp_path / "nowhere"

    with pytest.raises(DataError) as refused:
        find_dataset(name, absent).find(absent)

    message = str(refused.value)
    assert f"'{absent}'" in message
    assert "does not exist" in message
    assert DATASETS[name].expects.splitlines()[0] in message
    assert DATASETS[name].how_to_get in message
    assert ("--data generated" in message) == (name != "folder")


@pytest.mark.parametrize("name", FILE_DATASETS)
def test_another_layout_is_refused_with_what_was_found(name: str, tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "photos/1.jpg")

    with pytest.raises(DataError, match=r"found instead: notes\.txt, photos/"):
        find_dataset(name, tmp_path).find(tmp_path)


@pytest.mark.parametrize(
    ("name", "actual", "clue"),
    [
        ("voc", "ade", "looks like ADE20K"),
        ("ade", "voc", "looks like the Pascal VOC layout"),
        ("msrc", "cityscapes", "looks like Cityscapes"),
        ("cityscapes", "folder", "looks like a folder of images and masks"),
    ],
)
def test_a_known_layout_of_another_data_set_is_recognised(
    name: str, actual: str, clue: str, tmp_path: Path
) -> None:
    LAYOUTS[actual](tmp_path)

    with pytest.raises(DataError, match=clue):
        find_dataset(name, tmp_path).find(tmp_path)


def test_an_archive_is_refused_as_a_file_to_unpack(tmp_path: Path) -> None:
    touch(tmp_path, "voc.tar")

    with pytest.raises(DataError, match="unpack it"):
        DATASETS["voc"].find(tmp_path / "voc.tar")


def test_a_long_listing_is_cut(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number:02d}" for number in range(13)))

    with pytest.raises(DataError, match="08, 09 and 3 more"):
        DATASETS["ade"].find(tmp_path)


def test_class_lists_have_the_published_lengths_and_no_repeats() -> None:
    assert {name: DATASETS[name].num_classes for name in DATASETS} == {
        "voc": 20,
        "ade": 150,
        "cityscapes": 19,
        "msrc": 21,
        "folder": 0,
        "shapes": 12,
    }
    for dataset in DATASETS.values():
        assert len(set(dataset.classes)) == len(dataset.classes)


def test_class_ids_are_the_published_ones() -> None:
    assert DATASETS["voc"].classes[15] == "person"
    assert DATASETS["ade"].classes[13] == "person"
    assert DATASETS["ade"].classes[150] == "flag"
    assert DATASETS["cityscapes"].classes[13] == "rider"
    assert DATASETS["msrc"].classes[21] == "boat"


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(DataError, match="did you mean 'cityscapes'"):
        find_dataset("cityscape")


def test_voc_prefers_the_augmented_list_and_masks_when_both_exist(tmp_path: Path) -> None:
    voc_layout(tmp_path)
    touch(tmp_path, "SegmentationClassAug/a.png")
    write_list(tmp_path, "trainaug.txt", "a", "b")

    splits = DATASETS["voc"].find(tmp_path)

    assert [sample.id for sample in splits["train"]] == ["a", "b"]
    assert splits["val"][0].mask == tmp_path / "SegmentationClassAug" / "b.png"


def test_voc_uses_the_plain_list_when_the_augmented_masks_are_absent(tmp_path: Path) -> None:
    voc_layout(tmp_path)
    write_list(tmp_path, "train_aug.txt", "a", "b")

    splits = DATASETS["voc"].find(tmp_path)

    assert [sample.mask for sample in splits["train"]] == [tmp_path / "SegmentationClass" / "a.png"]


@pytest.mark.parametrize("below", ["VOC2012", "VOCdevkit/VOC2012"])
def test_voc_is_found_inside_its_devkit(below: str, tmp_path: Path) -> None:
    voc_layout(tmp_path / below)

    assert DATASETS["voc"].find(tmp_path)["train"][0].id == "a"


@pytest.mark.parametrize("missing", ["train.txt", "val.txt"])
def test_voc_without_a_list_is_refused(missing: str, tmp_path: Path) -> None:
    voc_layout(tmp_path)
    (tmp_path / "ImageSets" / "Segmentation" / missing).unlink()

    with pytest.raises(DataError, match=f"no ImageSets/Segmentation/{missing}"):
        DATASETS["voc"].find(tmp_path)


def test_voc_without_masks_is_refused(tmp_path: Path) -> None:
    voc_layout(tmp_path)
    (tmp_path / "SegmentationClass" / "a.png").unlink()
    (tmp_path / "SegmentationClass").rmdir()

    with pytest.raises(DataError, match="neither SegmentationClass/ nor SegmentationClassAug/"):
        DATASETS["voc"].find(tmp_path)


def test_a_list_may_hold_ids_or_image_and_mask_paths(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(
        "2007_000032\n\nan id with.dots\n/JPEGImages/2007_000039.jpg /Masks/2007_000039.png\n"
    )

    assert read_list(path) == ["2007_000032", "an id with.dots", "2007_000039"]


def test_ade_is_found_below_its_archive_directory(tmp_path: Path) -> None:
    ade_layout(tmp_path / "ADEChallengeData2016")

    splits = DATASETS["ade"].find(tmp_path)

    assert splits["val"][0].id == "validation_1"
    assert splits["val"][0].mask.is_file()


def test_cityscapes_without_images_is_refused(tmp_path: Path) -> None:
    cityscapes_layout(tmp_path)
    (tmp_path / "leftImg8bit/val/munster/munster_0_leftImg8bit.png").unlink()

    with pytest.raises(DataError, match="no image in leftImg8bit/val/<city>/"):
        DATASETS["cityscapes"].find(tmp_path)


def test_cityscapes_label_ids_become_class_ids() -> None:
    # unlabeled, road, sidewalk, parking, rider, caravan, train, bicycle
    labels = [[0, 7, 8, 9], [25, 29, 31, 33]]

    assert read_label_ids(png(labels)).tolist() == [[0, 1, 2, 0], [13, 0, 17, 19]]


def test_cityscapes_train_ids_become_class_ids_with_void_as_class_0() -> None:
    assert read_train_ids(png([[0, 12, 18, 255]])).tolist() == [[1, 13, 19, 0]]


@pytest.mark.parametrize(("read", "value"), [(read_label_ids, 34), (read_train_ids, 19)])
def test_cityscapes_refuses_ids_it_does_not_have(
    read: Callable[[bytes], object], value: int
) -> None:
    with pytest.raises(DataError, match=f"id {value} is not one of Cityscapes"):
        read(png([[0, value]]))


def test_cityscapes_reads_train_ids_where_there_are_no_label_ids(tmp_path: Path) -> None:
    cityscapes_layout(tmp_path)
    for path in list(tmp_path.glob("gtFine/*/*/*.png")):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))

    dataset = find_dataset("cityscapes", tmp_path)

    assert dataset.read_mask is read_train_ids
    assert dataset.find(tmp_path)["train"][0].mask.is_file()


def test_cityscapes_prefers_label_ids(tmp_path: Path) -> None:
    cityscapes_layout(tmp_path)
    touch(tmp_path, "gtFine/train/ulm/ulm_0_gtFine_labelTrainIds.png")

    assert find_dataset("cityscapes", tmp_path).read_mask is read_label_ids


def test_a_folder_names_its_classes_with_or_without_background(tmp_path: Path) -> None:
    folder_layout(tmp_path)
    with_background = find_dataset("folder", tmp_path).classes
    (tmp_path / "classes.txt").write_text("cat\n\n dog \n")

    assert find_dataset("folder", tmp_path).classes == with_background
    assert with_background == ("background", "cat", "dog")


def test_a_folder_may_be_laid_out_like_voc_with_png_images(tmp_path: Path) -> None:
    voc_layout(tmp_path)
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "a.png")
    (tmp_path / "classes.txt").write_text("cat\n")

    (sample,) = find_dataset("folder", tmp_path).find(tmp_path)["train"]

    assert sample.image == tmp_path / "JPEGImages" / "a.png"


def test_a_folder_keeps_equal_names_of_both_splits_apart(tmp_path: Path) -> None:
    folder_layout(tmp_path)

    splits = find_dataset("folder", tmp_path).find(tmp_path)

    assert (splits["train"][0].id, splits["val"][0].id) == ("train/a", "val/a")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names 0 classes"),
        ("background\n", "names 0 classes"),
        ("cat\ndog\ncat\n", "names a class twice: cat"),
        ("".join(f"c{number}\n" for number in range(255)), "names 255 classes"),
    ],
)
def test_a_folder_refuses_unusable_classes(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)

    with pytest.raises(DataError, match=problem):
        find_dataset("folder", tmp_path)


def test_a_folder_refuses_classes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(DataError, match=r"classes\.txt' cannot be read"):
        find_dataset("folder", tmp_path)


@pytest.mark.parametrize("missing", ["images/val", "masks/train"])
def test_a_folder_without_one_of_its_folders_is_refused(missing: str, tmp_path: Path) -> None:
    folder_layout(tmp_path)
    (tmp_path / missing).rename(tmp_path / "elsewhere")

    with pytest.raises(DataError, match=f"no {missing}/"):
        find_dataset("folder", tmp_path).find(tmp_path)


def test_shapes_refuses_a_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'shapes' is generated"):
        DATASETS["shapes"].find(tmp_path)


def test_ids_of_a_palette_mask_are_its_indices() -> None:
    image = Image.fromarray(np.array([[0, 3], [255, 1]], np.uint8)).convert("P")
    image.putdata([0, 3, 255, 1])
    buffer = BytesIO()
    image.save(buffer, "PNG")

    ids = read_ids(buffer.getvalue())

    assert ids.dtype == np.uint8
    assert ids.tolist() == [[0, 3], [255, 1]]


def test_a_16_bit_mask_is_read_when_its_values_are_ids() -> None:
    assert read_ids(png([[0, 7, 255]], dtype=np.uint16)).tolist() == [[0, 7, 255]]


def test_a_16_bit_mask_with_larger_values_is_refused() -> None:
    with pytest.raises(DataError, match="values from 0 to 256"):
        read_ids(png([[0, 256]], dtype=np.uint16))


def test_a_colour_mask_is_refused() -> None:
    with pytest.raises(DataError, match="RGB pixels"):
        read_ids(png(np.zeros((2, 2, 3))))


def test_data_sets_import_without_torch() -> None:
    code = "import sys, ucd_ray.data, ucd_ray.data.prepare; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
