"""The paper table: the best trials of a study beside the published rows that were measured alike.

Columns are those of the publications: the classes of step 0, of the later steps, all of them.  A guard
compares the protocol of each published row with the study's: what is another measurement is refused, what
is shifted a little or not known is marked (`ucd_ray.published.protocol`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ucd_ray.errors import ConfigError, StudyError, did_you_mean
from ucd_ray.published import Protocol, PublishedRow, compare, published_rows
from ucd_ray.tune.cells import column
from ucd_ray.tune.chunks import StoredTrial
from ucd_ray.tune.database import Database
from ucd_ray.tune.measured import BEST, Measured
from ucd_ray.tune.statistics import Spread

BACKGROUNDS = ("without", "with")  # in the means
JOINT = "all classes trained at once: an upper bound"

Row = dict[str, Any]


def paper_view(
    database: Database,
    study: str,
    *,
    background: str = "without",
    all_rows: bool = False,
    best: int | None = None,
) -> pa.RecordBatchReader:
    """The best trials of a study and the published rows of its scenario and setting.

    The best are those with the highest value or, with several objectives, the Pareto set; notes say so.

    Columns: `method origin number` (of the trial), one per group of classes in percent on val, with
    the half width of its 95 % interval as `<group> ±` where trials have replicates, `joint` (what the
    same set-up reaches with all classes at once), `verdict notes`.
    background: whether the means count it; all_rows: refused and repeated rows too
    best: trials of the study; None: three, or the whole Pareto set
    Raises StudyError if no trial is complete, ConfigError.
    """
    if background not in BACKGROUNDS:
        hint = did_you_mean(background, BACKGROUNDS)
        raise ConfigError(f"unknown background '{background}'; {hint}")
    own = Measured(database, study, background)
    dataset = own.recipe.scenario.dataset
    if background == "with" and not own.recipe.scenario.background:
        raise ConfigError(f"--background with: {dataset} does not score background; leave it out")
    count = BEST if best is None and not own.goals.several else best
    trials = own.best(count) or own.best(count, joint=True)
    if not trials:
        limits = " and ".join(limit.text for limit in own.goals.limits)
        keeping = f" that keeps {limits}" if limits and own.goals.several else ""
        raise StudyError(
            f"study '{study}' has no complete trial{keeping} yet, which a paper table needs"
        )
    bound = joint_bound(own)
    ours = own.protocol()
    if bound is not None:
        ours = replace(ours, joint=f"{bound['all']:.1f}")
    rows = [_own_row(own, trial, ours) for trial in trials]
    rows += [bound] if bound is not None and bound["method"] != rows[0]["method"] else []
    rows += _published(own, ours, all_rows=all_rows)
    return _table(rows, own).to_reader()


def joint_bound(own: Measured) -> Row | None:
    """The best trial of method joint under the same protocol, of any study; None if there is none."""
    found = []
    for stored in own.database.studies():
        other = Measured(own.database, stored.name, own.background)
        if "joint" not in other.methods() or other.protocol() != own.protocol():
            continue
        for trial in other.best(1, joint=True):
            found.append({**_described_trial(other, trial), **_verdict(JOINT)})
    return max(found, key=lambda row: row.get("all", 0.0), default=None)


def _own_row(own: Measured, trial: StoredTrial, ours: Protocol) -> Row:
    """A trial of the study; searched values may give it a protocol of its own."""
    theirs = replace(own.protocol(own.recipe_of(trial)), joint=ours.joint)
    differing = compare(ours, theirs).reasons if theirs != ours else ()
    joint = None if ours.joint is None else float(ours.joint)
    verdict = _verdict(*differing, *(f"breaks {limit}" for limit in own.broken(trial)))
    if (said := own.set_of(trial)) is not None:  # no reason against it
        verdict["notes"] = "; ".join(filter(None, (said, verdict["notes"])))
    return {**_described_trial(own, trial), "joint": joint, **verdict}


def _described_trial(study: Measured, trial: StoredTrial) -> Row:
    return {
        "method": study.recipe_of(trial).method,
        "origin": f"study {study.name}",
        "number": trial.number,
        **_cells(study.means(trial)),
    }


def _published(own: Measured, ours: Protocol, *, all_rows: bool) -> list[Row]:
    """Published rows, the best first, what has all classes at once after them, refused ones last."""
    rows: list[tuple[Any, Row]] = []
    seen: set[tuple[float | None, ...]] = set()
    for published in sorted(published_rows(), key=_distance):
        cells = {g.name: published.value(*g.metrics) for g in own.groups}
        if published.protocol.scenario != ours.scenario or published.step is not None:
            continue
        verdict, reasons = compare(ours, published.protocol)
        if published.is_joint and verdict != "refused":
            verdict, reasons = "marked", (JOINT, *reasons)
        key = tuple(cells.values())
        repeated = key in seen and sum(value is not None for value in key) > 1
        if not all_rows and (verdict == "refused" or repeated or not any(key)):
            continue
        seen.add(key)
        rank = (verdict == "refused", published.is_joint, -(cells["all"] or 0.0))
        rows.append((rank, {**_described(published), **cells, **_verdict(*reasons, kind=verdict)}))
    return [row for _, row in sorted(rows, key=lambda ranked: ranked[0])]


def _distance(row: PublishedRow) -> int:
    """0: the method's own publication, 1: another's table, 2: copied, as far as the row says so."""
    if row.source.startswith("as quoted by") or "copied from" in row.method:
        return 2
    return 0 if row.source.startswith(re.split(r"[+ ]", row.method)[-1]) else 1


def _described(row: PublishedRow) -> Row:
    joint = row.protocol.joint
    return {
        "method": row.method,
        "origin": f"{row.source}, {row.table}",
        "joint": None if joint is None else float(joint),
    }


def _verdict(*reasons: str, kind: str | None = None) -> Row:
    kind = kind or ("marked" if reasons else "comparable")
    return {"verdict": kind, "notes": "; ".join(reasons) or None}


def _cells(means: Mapping[str, Spread]) -> Row:
    """Means, and half of their intervals where they have one."""
    cells: Row = {name: found.mean for name, found in means.items()}
    for name, found in means.items():
        if found.high is not None:
            cells[f"{name} ±"] = found.high - found.mean
    return cells


def _table(rows: Sequence[Row], own: Measured) -> pa.Table:
    schema = pa.schema(list(_columns(rows, own)), _metadata(own))
    return pa.Table.from_pylist([dict(row) for row in rows], schema)


def _columns(rows: Sequence[Row], own: Measured) -> Iterator[pa.Field]:
    yield from (column("method", str), column("origin", str), column("number", int))
    for group in own.groups:
        yield column(group.name, float, "percent")
        if any(f"{group.name} ±" in row for row in rows):
            yield column(f"{group.name} ±", float, "points")
    yield column("joint", float, "percent")
    yield from (column("verdict", str), column("notes", str))


def _metadata(own: Measured) -> dict[str, str]:
    about = {key: str(own.about.get(key, "")) for key in ("scenario", "setting", "select_on")}
    return {"study": own.name, "background": own.background, **about}
