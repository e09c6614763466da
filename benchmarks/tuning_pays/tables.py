"""The tables of an experiment, as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.tuning_pays.rows import (
    PUBLISHED,
    SHOWN,
    Record,
    by_seed,
    difference,
    groups,
    kept,
    num_steps,
    of_row,
)
from ucd_ray.tune.statistics import Spread


def rows_table(record: Record) -> str:
    """One line a row, one cell a metric."""
    head = ["row", "seeds", "base step", *groups(record), "all classes", "forgetting"]
    lines = []
    for row in record["rows"]:
        seeds = by_seed(record, row, "miou_all")
        if not seeds:
            continue
        first = "" if row == "joint" else with_spread(of_row(record, row, "miou_all", 0))
        cells = [with_spread(of_row(record, row, metric)) for metric in SHOWN]
        lines.append([f"`{row}`", str(len(seeds)), first, *cells])
    return table(head, lines)


def paired_table(record: Record) -> str:
    """Every row minus the published params."""
    head = ["row", *groups(record), "all classes", "t-test, all classes", "forgetting"]
    lines = []
    for row in record["rows"]:
        found = {metric: difference(record, row, PUBLISHED, metric) for metric in SHOWN}
        whole = found["miou_all"]
        if row == PUBLISHED or whole is None:
            continue
        shown = {metric: str(one) if one else "" for metric, one in found.items()}
        cells = [*(shown[metric] for metric in SHOWN[:3]), whole.p, shown["forgetting"]]
        lines.append([f"`{row}`", *cells])
    return table(head, lines)


def steps_table(record: Record) -> str:
    """mIoU of the base classes and of all classes seen, after every step."""
    steps = range(num_steps(record))
    head = ["row"]
    head += [f"{groups(record)[0]}, after step {step}" for step in steps]
    head += [f"all seen, after step {step}" for step in steps]
    lines = []
    for row in record["rows"]:
        if row != "joint" and by_seed(record, row, "miou_all"):
            cells = [
                with_spread(of_row(record, row, metric, step))
                for metric in ("miou_base", "miou_all")
                for step in steps
            ]
            lines.append([f"`{row}`", *cells])
    return table(head, lines)


def params_table(record: Record) -> str:
    """What was searched, the published and the best values, and the importances."""
    study = record["study"]
    weights = study["importances"]
    lines = [
        [
            f"`{key}`",
            space(study["search"][key]),
            value(study["first"].get(key)),
            value(study["best"]["params"].get(key)),
            f"{100 * weights[key]:.0f} %" if key in weights else "",
        ]
        for key in sorted(study["search"], key=lambda key: -weights.get(key, 0))
    ]
    best = f"trial {study['best']['number']}"
    return table(["key", "searched", "published", f"best ({best})", "importance"], lines)


def trials_table(record: Record) -> str:
    """Every trial of the study, best first."""
    study = record["study"]
    keys = list(study["search"])
    rows = sorted(study["trials"], key=lambda t: (t["value"] is None, -(t["value"] or 0)))
    lines = [
        [
            str(trial["number"]),
            state(trial, study["curves"]),
            "" if trial["value"] is None else f"{trial['value']:.1f}",
            *(value(trial[key]) for key in keys),
        ]
        for trial in rows
    ]
    return table(["trial", "state", "hold-out", *(f"`{key}`" for key in keys)], lines)


def state(trial: dict[str, Any], curves: dict[str, Any]) -> str:
    """A trial's state, and after how many epochs it was pruned."""
    if trial["state"] != "PRUNED":
        return str(trial["state"])
    return f"PRUNED after {len(curves.get(str(trial['number']), ()))} epochs"


def beside_table(record: Record, other: Record) -> str:
    """The same rows in two scenarios."""
    head = ["row"]
    for one in (other, record):
        name = f"{one['scenario']}, {num_steps(one)} steps"
        head += [f"{name}: all classes", "base classes kept, %", "forgetting"]
    lines = []
    for row in record["rows"]:
        if not by_seed(record, row, "miou_all") or not by_seed(other, row, "miou_all"):
            continue
        cells = []
        for one in (other, record):
            share = None if row == "joint" else kept(one, row)
            cells += [with_spread(of_row(one, row, "miou_all")), with_spread(share)]
            cells.append(with_spread(of_row(one, row, "forgetting")))
        lines.append([f"`{row}`", *cells])
    return table(head, lines)


def space(parameter: dict[str, Any]) -> str:
    """A searched range or its choices."""
    if "choices" in parameter:
        return ", ".join(value(choice) for choice in parameter["choices"])
    log = ", log" if parameter.get("log") else ""
    return f"{parameter['low']:g} to {parameter['high']:g}{log}"


def value(given: Any) -> str:
    """A param; a sample count of null takes all positions."""
    if given is None:
        return "all"
    return f"{given:.3g}" if isinstance(given, float) else str(given)


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rule = "|".join("---" for _ in head)
    body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *body])


def with_spread(found: Spread | None) -> str:
    """Mean ± std [interval]; empty where nothing was measured."""
    if found is None:
        return ""
    if found.std is None:
        return f"{found.mean:.1f}"
    return f"{found.mean:.1f} ± {found.std:.1f} [{found.low:.1f}, {found.high:.1f}]"
