"""The files of published rows, read and checked."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from ucd_ray.errors import DataError, did_you_mean
from ucd_ray.published.arithmetic import background_of
from ucd_ray.published.protocol import Protocol

FOLDER = Path(__file__).parent
ROWS, FACTS = FOLDER / "rows.csv", FOLDER / "facts.csv"
ROW_COLUMNS = ("source", "table", "scenario", "setting", "step", "method", "metric", "value")
FACT_COLUMNS = ("source", "scenario", "method", "fact", "value", "from")
SETTINGS = ("sequential", "disjoint", "overlapped", "domain-incremental")
GIVEN = ("scenario", "setting")  # facts that a row has itself
SCENARIO = re.compile(r"[a-z]+-\d+-\d+")
METRIC = re.compile(r"miou_(\d+_\d+|\d+|all|old|new|\w+)|iou_\w+|hiou|mean_(pixel|class)_acc")


@dataclass(frozen=True)
class PublishedRow:
    """One method in one table of a publication."""

    source: str
    table: str
    step: int | None  # after which it was measured; None: the last
    method: str
    values: Mapping[str, str]  # numbers as printed, in percent, by metric
    protocol: Protocol
    known_from: tuple[str, ...]  # where each fact of the protocol was read

    @property
    def is_joint(self) -> bool:
        """Whether all classes were trained at once: an upper bound, no incremental result."""
        return "joint" in self.method.lower()

    def value(self, *metrics: str) -> float | None:
        """The first of some metrics that the row has."""
        found = next((self.values[metric] for metric in metrics if metric in self.values), None)
        return None if found is None else float(found)


@dataclass(frozen=True)
class Fact:
    """A fact about the rows that three patterns match."""

    source: str
    scenario: str
    method: str
    fact: str
    value: str
    read_in: str

    def holds_for(self, source: str, scenario: str, method: str) -> bool:
        """Whether it is about a row."""
        pairs = ((source, self.source), (scenario, self.scenario), (method, self.method))
        return all(fnmatchcase(text, pattern) for text, pattern in pairs)


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """All rows that come with the package.  Raises DataError if their files are damaged."""
    return tuple(read_rows(ROWS, FACTS))


def scenarios() -> list[str]:
    """The scenarios of the published rows."""
    return sorted({row.protocol.scenario or "" for row in published_rows()})


def read_rows(rows: Path, facts: Path) -> list[PublishedRow]:
    """The rows of two files as the package has them.  Raises DataError naming line and column."""
    known = [_fact(path, line, cells) for path, line, cells in _lines(facts, FACT_COLUMNS)]
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for path, line, cells in _lines(rows, ROW_COLUMNS):
        _check_row(path, line, cells)
        values = found.setdefault(tuple(cells[name] for name in ROW_COLUMNS[:-2]), {})
        if cells["metric"] in values:
            raise _error(path, line, "metric", f"'{cells['metric']}' stands twice in this row")
        values[cells["metric"]] = cells["value"]
    return [_row(key, values, known) for key, values in found.items()]


def _row(key: tuple[str, ...], values: Mapping[str, str], known: Sequence[Fact]) -> PublishedRow:
    source, table, scenario, setting, step, method = key
    facts = {f.fact: f for f in known if f.holds_for(source, scenario, method)}
    protocol = replace(
        Protocol(scenario=scenario, setting=setting), **{f.fact: f.value for f in facts.values()}
    )
    places = {fact.fact: fact.read_in for fact in facts.values()}
    background = None if step else background_of(scenario, values)
    if background is not None:
        protocol = replace(protocol, background=background)
        places["background"] = "arithmetic on this row"
    last = int(step) if step else None
    known_from = tuple(f"{fact}: {place}" for fact, place in places.items())
    return PublishedRow(source, table, last, method, values, protocol, known_from)


def _lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[Path, int, dict[str, str]]]:
    """Path, number and cells of every line below the head."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            head = next(reader, [])
            for wanted, name in zip(columns, [*head, *[""] * len(columns)], strict=False):
                if wanted != name:
                    raise _error(path, 1, wanted, f"the head has '{name}' in its place")
            for cells in reader:
                if len(cells) != len(columns):
                    name = columns[min(len(cells), len(columns) - 1)]
                    text = f"the line has {len(cells)} cells, not {len(columns)}"
                    raise _error(path, reader.line_num, name, text)
                yield path, reader.line_num, dict(zip(columns, cells, strict=True))
    except OSError as error:
        raise DataError(f"cannot read published rows '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"published rows '{path}' are not UTF-8 text") from None
    except csv.Error as error:
        raise _error(path, reader.line_num, columns[-1], str(error)) from None


def _check_row(path: Path, line: int, cells: Mapping[str, str]) -> None:
    for name in ("source", "table", "method"):
        if not cells[name].strip():
            raise _error(path, line, name, "it is empty")
    if SCENARIO.fullmatch(cells["scenario"]) is None:
        raise _error(path, line, "scenario", f"'{cells['scenario']}' is not like voc-15-1")
    if cells["setting"] not in SETTINGS:
        hint = did_you_mean(cells["setting"], SETTINGS)
        raise _error(path, line, "setting", f"'{cells['setting']}' is none; {hint}")
    if cells["step"] and not cells["step"].isdigit():
        raise _error(path, line, "step", f"'{cells['step']}' is no number of a step")
    if METRIC.fullmatch(cells["metric"]) is None:
        raise _error(path, line, "metric", f"'{cells['metric']}' is none, such as miou_all")
    if not _is_percent(cells["value"]):
        raise _error(path, line, "value", f"'{cells['value']}' is no number from 0 to 100")


def _fact(path: Path, line: int, cells: Mapping[str, str]) -> Fact:
    known = [field.name for field in fields(Protocol) if field.name not in GIVEN]
    if cells["fact"] not in known:
        hint = did_you_mean(cells["fact"], known)
        raise _error(path, line, "fact", f"'{cells['fact']}' is none; {hint}")
    for name in FACT_COLUMNS:
        if not cells[name].strip():
            raise _error(path, line, name, "it is empty")
    if cells["fact"] == "joint" and not _is_percent(cells["value"]):
        raise _error(path, line, "value", f"'{cells['value']}' is no number from 0 to 100")
    return Fact(*(cells[name] for name in FACT_COLUMNS))


def _is_percent(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None and float(text) <= 100


def _error(path: Path, line: int, column: str, what: str) -> DataError:
    return DataError(
        f"published rows '{path}', line {line}, column '{column}': {what}; "
        "install the package anew if you did not change the file"
    )
