"""Tables for a terminal: the columns that tell most, few digits, and how many rows fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from ucd_ray.tune.cells import is_right, readable
from ucd_ray.tune.selection import select
from ucd_ray.tune.views import FINAL_METRICS

ROWS = 100  # unless another number is asked for
BEST_FIRST = ("best",)
WORDS = ("with", "without")  # background in the means of a paper table
HIDDEN = (
    *("code", "step0_miou_old", "step0_miou_new"),
    *("class_order", "images", "holdout", "head", "pretraining", "known_from"),  # of published rows
)


def render(rows: pa.RecordBatchReader, title: str, *, limit: int = ROWS) -> Table:
    """The first `limit` rows of a view: numbers right, what they are in the caption.

    Reasons in a column `notes` become numbers, explained below the table.
    """
    found = select(rows, limit=limit + 1).read_all()
    more = found.num_rows > limit
    shown, notes = Table(title=title, caption_justify="left"), Footnotes()
    columns = [c for c in readable(found[:limit]) if c[0] in list(shown_fields(found.schema))]
    for field, _ in columns:
        wide = field.name == "reason"
        shown.add_column(
            field.name.replace("_miou_", "\n").replace(".", ".\n").replace("miou_", "miou\n"),
            justify="right" if is_right(field) else "left",
            min_width=24 if wide else None,
        )
    texts = [map(notes, cells) if field.name == "notes" else cells for field, cells in columns]
    for row in zip(*texts, strict=True):
        shown.add_row(*map(escape, row))
    about = {key.decode(): value.decode() for key, value in (found.schema.metadata or {}).items()}
    caption = [_caption(about), *notes.lines()]
    if more:
        caption.append(f"the first {limit} rows: --limit shows more, --format csv all")
    shown.caption = escape("\n".join(filter(None, caption)))
    return shown


class Footnotes:
    """Numbers reasons, the same ones alike."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str) -> str:
        reasons = text.split("; ") if text else []
        for reason in reasons:
            self.numbers.setdefault(reason, len(self.numbers) + 1)
        return " ".join(str(self.numbers[reason]) for reason in reasons)

    def lines(self) -> Iterator[str]:
        """What the numbers stand for."""
        yield from (f"{number}  {reason}" for reason, number in self.numbers.items())


def shown_fields(schema: pa.Schema) -> Iterator[pa.Field]:
    """Without background and what other columns say already; a view of trials has steps as columns."""
    of_trials = "step0_miou_all" in schema.names
    final = set(FINAL_METRICS) - {"forgetting"} if of_trials else set()
    for field in schema:
        if field.name not in HIDDEN and field.name not in final and not field.name.endswith("_bg"):
            yield field


def _caption(about: Mapping[str, str]) -> str:
    """What the numbers of a table are; about: the metadata of its schema."""
    if "study" not in about:
        return "mIoU in percent as printed; background: whether the means count it"
    background = about["background"] if about.get("background") in WORDS else "without"
    on = about.get("select_on", "holdout")
    parts = [f"mIoU in percent on val, {background} background"]
    parts.append(f"setting {about.get('setting', '')}")
    if "objective" in about:
        parts.append(f"value: {about['objective']} on {on}")
    if on == "val":
        parts.append("searched on val, as the papers do")
    return "; ".join(parts)
