"""Preparing a data set: what is stored, what is refused, what is reused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ucd_ray.data import prepare as prepare_module
from ucd_ray.data.prepare import (
    SCHEMA,
    Generated,
    Prepared,
    open_prepared,
    prepare,
    prepared_for,
)
from ucd_ray.errors import DataError

FEW = Generated(train=3, val=2, size=32)


def write_image(path: Path, width: int = 6, height: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    Image.fromarray(pixels).save(path)


def write_mask(path: Path, ids: object, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(ids, dtype)).save(path)


def ids_with(*values: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A 4 x 6 mask of zeros that starts with `values`."""
    ids = np.zeros(24, np.uint8)
    ids[: len(values)] = values
    return ids.reshape(4, 6)


@pytest.fixture
def msrc(tmp_path: Path) -> Path:
    """Three training images and one validation image in the VOC layout."""
    root = tmp_path / "msrc"
    for name, values in {"a": (3, 3, 255), "b": (21,), "c": (1, 2), "d": (5,)}.items():
        write_image(root / "JPEGImages" / f"{name}.jpg")
        write_mask(root / "SegmentationClass" / f"{name}.png", ids_with(*values))
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\nc\n")
    (lists / "val.txt").write_text("d\n")
    return root


def assert_nothing_left(directory: Path, *kept: str) -> None:
    assert sorted(path.name for path in directory.iterdir()) == sorted(kept)


def test_a_row_holds_the_files_as_found_and_what_the_mask_shows(msrc: Path, tmp_path: Path) -> None:
    prepared = prepare("msrc", msrc, tmp_path / "out")

    assert prepared.train.schema.equals(SCHEMA)
    assert prepared.train["id"].to_pylist() == ["a", "b", "c"]
    assert prepared.val["id"].to_pylist() == ["d"]
    assert prepared.train.slice(0, 1).to_pylist() == [
        {
            "id": "a",
            "image": (msrc / "JPEGImages/a.jpg").read_bytes(),
            "mask": (msrc / "SegmentationClass/a.png").read_bytes(),
            "height": 4,
            "width": 6,
            "classes": [0, 3],
            "pixels": [21, 2],
        }
    ]


def test_a_prepared_data_set_opens_again_as_it_was(msrc: Path, tmp_path: Path) -> None:
    written = prepare("msrc", msrc, tmp_path / "out")
    opened = open_prepared(tmp_path / "out")

    assert opened.dataset == "msrc"
    assert opened.classes == written.classes
    assert opened.fingerprint == written.fingerprint
    assert opened.train.equals(written.train)
    assert opened.val.equals(written.val)


def test_rows_are_written_in_several_batches(
    msrc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare("msrc", msrc, tmp_path / "whole")
    monkeypatch.setattr(prepare_module, "_ROWS_PER_BATCH", 2)
    split = prepare("msrc", msrc, tmp_path / "split")

    assert split.train["id"].num_chunks == 2
    assert split.train.equals(whole.train)
    assert split.fingerprint == whole.fingerprint


def test_progress_counts_to_all_images(msrc: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    prepare("msrc", msrc, tmp_path / "out", progress=lambda *call: calls.append(call))

    assert calls == [(3, 4), (4, 4)]


def test_masks_that_need_mapping_are_stored_as_class_ids(tmp_path: Path) -> None:
    root = tmp_path / "cityscapes"
    for split in ("train", "val"):
        write_image(root / f"leftImg8bit/{split}/ulm/{split}_leftImg8bit.png")
        write_mask(root / f"gtFine/{split}/ulm/{split}_gtFine_labelIds.png", ids_with(7, 33, 9))

    train = prepare("cityscapes", root, tmp_path / "out").train

    with Image.open(BytesIO(train["mask"][0].as_py())) as mask:
        assert (mask.format, mask.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(mask), ids_with(1, 19, 0))
    assert train["classes"][0].as_py() == [0, 1, 19]


def test_a_16_bit_mask_is_stored_with_8_bits(msrc: Path, tmp_path: Path) -> None:
    write_mask(msrc / "SegmentationClass/a.png", ids_with(3, 255), np.uint16)

    train = prepare("msrc", msrc, tmp_path / "out").train

    with Image.open(BytesIO(train["mask"][0].as_py())) as mask:
        assert mask.mode == "L"
        np.testing.assert_array_equal(np.asarray(mask), ids_with(3, 255))


def test_equal_input_has_an_equal_fingerprint(msrc: Path, tmp_path: Path) -> None:
    first = prepare("msrc", msrc, tmp_path / "first")

    assert prepare("msrc", msrc, tmp_path / "second").fingerprint == first.fingerprint


def change_image(root: Path) -> None:
    write_image(root / "JPEGImages/a.jpg")
    Image.new("RGB", (6, 4)).save(root / "JPEGImages/a.jpg")


def change_mask(root: Path) -> None:
    write_mask(root / "SegmentationClass/d.png", ids_with(6))


def change_order(root: Path) -> None:
    (root / "ImageSets/Segmentation/train.txt").write_text("b\na\nc\n")


def change_sides(root: Path) -> None:
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("c\nd\n")


@pytest.mark.parametrize("change", [change_image, change_mask, change_order, change_sides])
def test_the_fingerprint_notices(
    change: Callable[[Path], None], msrc: Path, tmp_path: Path
) -> None:
    before = prepare("msrc", msrc, tmp_path / "before").fingerprint
    change(msrc)

    assert prepare("msrc", msrc, tmp_path / "after").fingerprint != before


def test_the_fingerprint_holds_the_name_of_the_data_set(msrc: Path, tmp_path: Path) -> None:
    write_mask(msrc / "SegmentationClass/b.png", ids_with(20))
    as_msrc = prepare("msrc", msrc, tmp_path / "msrc-out")

    assert prepare("voc", msrc, tmp_path / "voc-out").fingerprint != as_msrc.fingerprint


def truncate_image(root: Path) -> None:
    path = root / "JPEGImages/a.jpg"
    path.write_bytes(path.read_bytes()[:-40])


def truncate_mask(root: Path) -> None:
    path = root / "SegmentationClass/a.png"
    path.write_bytes(path.read_bytes()[:45])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate_image, "the image is damaged or truncated"),
        (lambda root: (root / "JPEGImages/a.jpg").write_text("hello"), "is not a JPEG or PNG file"),
        (truncate_mask, r"SegmentationClass/a\.png is damaged or truncated"),
        (lambda root: write_image(root / "SegmentationClass/a.png"), r"a\.png: .*RGB pixels"),
        (
            lambda root: write_mask(root / "SegmentationClass/a.png", np.zeros((6, 4))),
            r"the image is 6 x 4 pixels, but mask .*a\.png is 4 x 6",
        ),
        (
            lambda root: write_mask(root / "SegmentationClass/a.png", ids_with(22, 22)),
            r"class id 22 \(2 pixels\); the ids are 0\.\.21 and 255",
        ),
        (
            lambda root: (root / "SegmentationClass/a.png").unlink(),
            r"SegmentationClass/a\.png: the file is missing",
        ),
        (
            lambda root: (root / "JPEGImages/a.jpg").unlink(),
            r"JPEGImages/a\.jpg: the file is missing",
        ),
    ],
)
def test_a_bad_file_is_refused_by_name_and_nothing_is_left(
    damage: Callable[[Path], object], reason: str, msrc: Path, tmp_path: Path
) -> None:
    damage(msrc)

    with pytest.raises(DataError, match=reason) as refused:
        prepare("msrc", msrc, tmp_path / "out")

    assert "/a." in str(refused.value)
    assert_nothing_left(tmp_path, "msrc")


def test_all_bad_files_are_listed_up_to_twenty(tmp_path: Path) -> None:
    root = tmp_path / "folder"
    (root / "masks/train").mkdir(parents=True)
    (root / "masks/val").mkdir(parents=True)
    (root / "images/val").mkdir(parents=True)
    (root / "classes.txt").write_text("cat\n")
    write_image(root / "images/val/ok.jpg")
    write_mask(root / "masks/val/ok.png", ids_with(1))
    for number in range(22):
        write_image(root / f"images/train/{number:02d}.jpg")

    with pytest.raises(DataError) as refused:
        prepare("folder", root, tmp_path / "out")

    lines = str(refused.value).splitlines()
    assert "(22)" in lines[0]
    assert "masks/train/00.png: the file is missing" in lines[1]
    assert "masks/train/19.png" in lines[20]
    assert lines[21:] == ["  and 2 more"]


def test_an_id_in_both_splits_is_refused(msrc: Path, tmp_path: Path) -> None:
    (msrc / "ImageSets/Segmentation/val.txt").write_text("d\nb\n")

    with pytest.raises(DataError, match="b: the id occurs 2 times"):
        prepare("msrc", msrc, tmp_path / "out")


def test_an_empty_split_is_refused(msrc: Path, tmp_path: Path) -> None:
    (msrc / "ImageSets/Segmentation/val.txt").write_text("\n")

    with pytest.raises(DataError, match="has no val image"):
        prepare("msrc", msrc, tmp_path / "out")


def test_an_unreadable_list_is_refused(msrc: Path, tmp_path: Path) -> None:
    (msrc / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff\xfe")

    with pytest.raises(DataError, match="'msrc' cannot be read"):
        prepare("msrc", msrc, tmp_path / "out")


def test_an_output_with_other_content_is_refused_and_kept(msrc: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()

    with pytest.raises(DataError, match="is not empty"):
        prepare("msrc", msrc, tmp_path / "out")

    assert_nothing_left(tmp_path / "out", "mine.txt")


def test_an_output_that_cannot_be_written_is_refused(msrc: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(DataError, match="cannot write"):
        prepare("msrc", msrc, tmp_path / "file" / "out")


def test_an_interrupt_leaves_nothing_behind(msrc: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("msrc", msrc, tmp_path / "out", progress=interrupt)

    assert_nothing_left(tmp_path, "msrc")


def test_a_process_that_is_second_uses_what_the_first_one_wrote(msrc: Path, tmp_path: Path) -> None:
    def prepare_meanwhile(done: int, total: int) -> None:
        if done == total:
            prepare("msrc", msrc, tmp_path / "out")

    second = prepare("msrc", msrc, tmp_path / "out", progress=prepare_meanwhile)

    assert second.train.num_rows == 3
    assert_nothing_left(tmp_path, "msrc", "out")


def test_a_process_that_wrote_other_data_meanwhile_is_noticed(msrc: Path, tmp_path: Path) -> None:
    def prepare_other(done: int, total: int) -> None:
        if done == total:
            prepare("shapes", None, tmp_path / "out", generated=FEW)

    with pytest.raises(DataError, match="another process wrote other data"):
        prepare("msrc", msrc, tmp_path / "out", progress=prepare_other)


def test_a_directory_that_is_not_prepared_is_refused(msrc: Path) -> None:
    with pytest.raises(DataError, match=r"no dataset\.json in it"):
        open_prepared(msrc)


def damage_info(path: Path) -> None:
    (path / "dataset.json").write_text('{"schema_version": 1')


def damage_keys(path: Path) -> None:
    (path / "dataset.json").write_text('{"schema_version": 1}')


def damage_table(path: Path) -> None:
    table = path / "train.arrow"
    table.write_bytes(table.read_bytes()[:-100])


def damage_rows(path: Path) -> None:
    (path / "train.arrow").write_bytes((path / "val.arrow").read_bytes())


def damage_files(path: Path) -> None:
    (path / "val.arrow").unlink()


@pytest.mark.parametrize(
    "damage", [damage_info, damage_keys, damage_table, damage_rows, damage_files]
)
def test_a_damaged_prepared_data_set_is_refused(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    path = prepare("shapes", None, tmp_path / "out", generated=FEW).path
    damage(path)

    with pytest.raises(DataError, match=r"is damaged .* delete it and prepare it again"):
        open_prepared(path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = prepare("shapes", None, tmp_path / "out", generated=FEW).path
    info = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps({**info, "schema_version": 99}))

    with pytest.raises(DataError, match=r"newer ucd-ray \(schema 99"):
        open_prepared(path)


def test_generated_images_are_stored_with_their_classes(tmp_path: Path) -> None:
    prepared = prepare("voc", None, tmp_path / "out", generated=FEW)

    assert (prepared.train.num_rows, prepared.val.num_rows) == (3, 2)
    assert len(prepared.classes) == 21
    row = prepared.train.slice(1, 1).to_pylist()[0]
    with Image.open(BytesIO(row["mask"])) as mask:
        ids, counts = np.unique(np.asarray(mask), return_counts=True)
    assert (row["classes"], row["pixels"]) == (ids.tolist(), counts.tolist())
    assert (row["height"], row["width"]) == (32, 32)


def test_generated_data_depends_on_the_seed_only(tmp_path: Path) -> None:
    def fingerprint(name: str, seed: int) -> str:
        options = Generated(seed=seed, train=3, val=2, size=32)
        return prepare("shapes", None, tmp_path / name, generated=options).fingerprint

    assert fingerprint("a", 0) == fingerprint("b", 0)
    assert fingerprint("c", 1) != fingerprint("d", 0)


def test_more_training_images_leave_the_validation_images_as_they_are(tmp_path: Path) -> None:
    few = prepare("shapes", None, tmp_path / "few", generated=FEW)
    more = prepare("shapes", None, tmp_path / "more", generated=Generated(0, 5, 2, 32))

    assert more.val.equals(few.val)
    assert more.train.slice(0, 3).to_pylist() == few.train.to_pylist()


@pytest.mark.parametrize(("name", "classes"), [("shapes", 12), ("ade", 150)])
def test_by_default_every_generated_class_is_in_ten_training_images(
    name: str, classes: int, tmp_path: Path
) -> None:
    prepared = prepare(name, None, tmp_path / "out", generated=Generated(size=32))

    assert min(images_per_class(prepared, "train")[1 : classes + 1]) >= 10
    assert min(images_per_class(prepared, "val")[1 : classes + 1]) >= 2


def images_per_class(prepared: Prepared, split: str) -> list[int]:
    table = prepared.train if split == "train" else prepared.val
    shown = np.concatenate([np.array(classes) for classes in table["classes"].to_pylist()])
    counts = np.bincount(shown, minlength=len(prepared.classes))
    return [int(count) for count in counts]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Generated(train=0), r"train \(0\) must be at least 1"),
        (Generated(val=-1), r"val \(-1\) must be at least 1"),
        (Generated(size=16), r"size \(16\) must be at least 32"),
        (Generated(seed=-2), r"seed \(-2\) must be at least 0"),
    ],
)
def test_generating_refuses_impossible_options(
    options: Generated, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        prepare("shapes", None, tmp_path / "out", generated=options)


def test_a_folder_cannot_be_generated(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'folder' has no fixed classes"):
        prepared_for("folder", "generated", tmp_path)


def test_raw_data_is_prepared_once_and_again_when_a_file_changes(
    msrc: Path, tmp_path: Path
) -> None:
    first = prepared_for("msrc", str(msrc), tmp_path / "home")
    written = (first.path / "train.arrow").stat().st_mtime_ns
    second = prepared_for("msrc", msrc, tmp_path / "home")
    assert second.path == first.path
    assert (second.path / "train.arrow").stat().st_mtime_ns == written

    change_mask(msrc)
    os.utime(msrc / "SegmentationClass/d.png", ns=(0, 0))
    third = prepared_for("msrc", msrc, tmp_path / "home")

    assert third.path != first.path
    assert third.fingerprint != first.fingerprint


def test_generated_data_is_prepared_once_per_options(tmp_path: Path) -> None:
    calls: list[int] = []

    def path_for(options: Generated) -> Path:
        home = tmp_path / "home"
        return prepared_for("ade", "generated", home, lambda *call: calls.append(1), options).path

    first = path_for(FEW)
    made = len(calls)
    assert path_for(FEW) == first
    assert len(calls) == made
    assert path_for(Generated(seed=1, train=3, val=2, size=32)) != first
    assert path_for(Generated(train=3, val=2, size=40)) != first
    assert path_for(Generated(train=4, val=2, size=32)) != first


def test_shapes_need_no_data(tmp_path: Path) -> None:
    prepared = prepared_for("shapes", None, tmp_path, generated=FEW)

    assert prepared.dataset == "shapes"
    assert prepared_for("shapes", "generated", tmp_path, generated=FEW).path == prepared.path


def test_a_prepared_directory_is_used_where_it_is(tmp_path: Path) -> None:
    path = prepare("msrc", None, tmp_path / "out", generated=FEW).path

    assert prepared_for("msrc", path, tmp_path / "home").path == path
    assert not (tmp_path / "home").exists()


def test_a_prepared_directory_of_another_data_set_is_refused(tmp_path: Path) -> None:
    path = prepare("msrc", None, tmp_path / "out", generated=FEW).path

    with pytest.raises(DataError, match="prepared data set 'msrc', not 'voc'"):
        prepared_for("voc", path, tmp_path / "home")


@pytest.mark.parametrize("name", ["voc", "ade", "cityscapes", "msrc"])
def test_no_data_is_refused_with_how_to_get_it_and_a_command_that_needs_none(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="how to get it") as refused:
        prepared_for(name, None, tmp_path)

    assert f"ucd-ray tune --scenario {name}-" in str(refused.value)
    assert "--data generated" in str(refused.value)


def test_no_data_for_ade_names_the_exact_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ucd-ray tune --scenario ade-100-50 --data generated"):
        prepared_for("ade", None, tmp_path)


def test_preparing_without_source_generates_only_when_asked_to(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'voc' needs --data"):
        prepare("voc", None, tmp_path / "out")


@pytest.mark.data
def test_msrc_has_the_documented_images_per_class(tmp_path: Path) -> None:
    if "UCD_RAY_TEST_DATA" not in os.environ:
        pytest.skip("UCD_RAY_TEST_DATA does not name the development data")
    root = Path(os.environ["UCD_RAY_TEST_DATA"]) / "msrc21"

    prepared = prepared_for("msrc", root, tmp_path)

    assert (prepared.train.num_rows, prepared.val.num_rows) == (318, 118)
    assert images_per_class(prepared, "train") == [
        *(0, 79, 129, 73, 24, 19, 89, 16, 40, 31, 25),
        *(17, 19, 18, 21, 19, 16, 84, 13, 16, 36, 18),
    ]
    assert images_per_class(prepared, "val") == [
        *(0, 30, 50, 29, 10, 7, 32, 6, 16, 12, 9),
        *(6, 8, 8, 8, 7, 8, 38, 5, 6, 13, 7),
    ]
