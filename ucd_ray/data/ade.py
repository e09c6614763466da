"""ADE20K as the scene-parsing challenge has it: 150 classes, label 0 void."""

from __future__ import annotations

from pathlib import Path

from ucd_ray.data.reader import (
    Dataset,
    Sample,
    Splits,
    directory_problem,
    layout_error,
    list_images,
    read_ids,
)

# The first name of every class in the challenge's objectInfo150.txt, in its order.
_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass,
cabinet, sidewalk, person, earth, door, table, mountain, plant, curtain, chair,
car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion,
base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace,
refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway,
river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine,
hovel,
bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television,
airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet,
poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool,
stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher,
screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan,
pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""
CLASSES = ("void", *(name.strip() for name in _NAMES.replace("\n", " ").split(",")))

EXPECTS = """\
ADEChallengeData2016/images/{training,validation}/<id>.jpg
ADEChallengeData2016/annotations/{training,validation}/<id>.png (0 void, 1..150)"""
HOW_TO_GET = (
    "ADEChallengeData2016.zip (SceneParse150, 20210 training and 2000 validation images) from "
    "sceneparsing.csail.mit.edu; the full ADE20K release has other masks and will not do"
)
_FOLDERS = {"train": "training", "val": "validation"}


def find(root: Path) -> Splits:
    """Samples of ADEChallengeData2016 or of the directory that holds it."""
    base = root / "ADEChallengeData2016"
    base = base if base.is_dir() else root
    problem = directory_problem(root)
    for folder in _FOLDERS.values():
        for kind in ("images", "annotations"):
            if problem is None and not (base / kind / folder).is_dir():
                problem = f"there is no {kind}/{folder}/ in it"
    if problem:
        raise layout_error(root, "ade", problem, EXPECTS, HOW_TO_GET)
    return {
        split: [
            Sample(image.stem, image, base / "annotations" / folder / f"{image.stem}.png")
            for image in list_images(base / "images" / folder)
        ]
        for split, folder in _FOLDERS.items()
    }


ADE = Dataset("ade", CLASSES, EXPECTS, HOW_TO_GET, find, read_ids, example="ade-100-50")
