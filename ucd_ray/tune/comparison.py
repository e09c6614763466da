"""`ucd-ray study compare`: whether the best trials of two studies differ, and in what the studies do.

What a score means must agree: scenario, setting, objective and the images.  Everything else may differ,
and is shown: it is what the difference may come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ucd_ray.errors import StudyError
from ucd_ray.tune.database import Database
from ucd_ray.tune.goals import Goals, goals_of
from ucd_ray.tune.progress import short, show_params
from ucd_ray.tune.standing import Standing, best_trials, count_complete, sentence
from ucd_ray.tune.statistics import Comparison, compare

FACTS = ("scenario", "setting", "objective", "select_on", "step_classes", "images", "classes")
RECIPE = ("data.holdout", "eval.mode", "eval.size", "eval.unseen")  # of the images and their scores
SPEC = ("seeds", "class_orders", "sampler", "pruner", "workers")  # shown where they differ
PLACES = ("data.source", "scenario", "setting")  # not shown: where data lie, and what agrees anyway


@dataclass(frozen=True)
class Side:
    """One of the two studies."""

    study: str
    complete: int  # trials that its best is the best of
    best: Standing


@dataclass(frozen=True)
class Compared:
    """Two studies beside each other."""

    sides: tuple[Side, Side]
    found: Comparison | None  # of the best trials; None: there are too few replicates
    differing: dict[str, tuple[Any, Any]]  # what else differs, by key

    @property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        return sentence(self.found, *(f"{s.study} (trial {s.best.number})" for s in self.sides))

    def content(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "studies": [
                {
                    **{"study": side.study, "complete": side.complete, "trial": side.best.number},
                    **{"value": side.best.value},
                    **{"params": side.best.params, **asdict(side.best.spread)},
                    "measured": [
                        {"seed": seed, "class_order": order, "value": value}
                        for (seed, order), value in side.best.measured.items()
                    ],
                }
                for side in self.sides
            ],
            "comparison": None if self.found is None else asdict(self.found),
            "distinguishable": self.found is not None and self.found.is_distinguishable,
            "verdict": self.verdict,
            "differing": {key: list(values) for key, values in self.differing.items()},
        }

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Compared:
        """What has such a content."""
        one, other = map(_side_of, content["studies"])
        test = content["comparison"]
        found = None if test is None else Comparison(**{**test, "counts": tuple(test["counts"])})
        differing = {key: (mine, its) for key, (mine, its) in content["differing"].items()}
        return cls((one, other), found, differing)


def _side_of(content: Mapping[str, Any]) -> Side:
    values = {(run["seed"], run["class_order"]): run["value"] for run in content["measured"]}
    best = Standing(content["trial"], content["value"], content["params"], values)
    return Side(content["study"], content["complete"], best)


def compare_studies(database: Database, first: str, second: str) -> Compared:
    """Compares the best trials of two studies.

    Raises StudyError if a study is not there, has no complete trial, or measures something else.
    """
    if first == second:
        raise StudyError(f"study '{first}' is compared with itself; name two studies")
    stored = [database.stored_spec(name) for name in (first, second)]
    about = [database.about(name) for name in (first, second)]
    for name, spec in zip((first, second), stored, strict=True):
        _check_single(name, goals_of(spec))
    _check_alike((first, second), about)
    one, other = (_side(database, name) for name in (first, second))
    _check_orders(one, other, [spec.get("class_orders", 1) for spec in stored])
    found = compare(one.best.measured, other.best.measured)
    return Compared((one, other), found, _differing(stored, about))


def _check_single(study: str, goals: Goals) -> None:
    if goals.several:
        raise StudyError(
            f"study '{study}' has {len(goals.objectives)} objectives ({', '.join(goals.objectives)}), so "
            f"no best trial to compare; `ucd-ray results {study} --filter pareto=true` shows its Pareto set"
        )


def _check_orders(one: Side, other: Side, orders: list[int]) -> None:
    """Means over other class orders are paired over those that both have."""
    shared = one.best.measured.keys() & other.best.measured.keys()
    if orders[0] != orders[1] and len(shared) < 2:
        raise StudyError(
            f"studies '{one.study}' and '{other.study}' cannot be compared: they go over {orders[0]} and "
            f"{orders[1]} class orders and share {len(shared)} replicate(s), where two are needed"
        )


def _side(database: Database, study: str) -> Side:
    best = best_trials(database, study, 1)
    if not best:
        limits = " and ".join(limit.text for limit in goals_of(database.stored_spec(study)).limits)
        keeping = f" that keeps {limits}" if limits else ""
        raise StudyError(
            f"study '{study}' has no complete trial{keeping} to compare; "
            f"`ucd-ray study run {study}` goes on with it"
        )
    return Side(study, count_complete(database, study), best[0])


def _check_alike(names: tuple[str, str], about: list[dict[str, Any]]) -> None:
    """What an older study did not store is taken to agree."""
    facts = [{**a, **{key: a.get("recipe", {}).get(key) for key in RECIPE}} for a in about]
    for key in (*FACTS, *RECIPE):
        one, other = (fact.get(key) for fact in facts)
        if one != other and None not in (one, other):
            values = f": {one} and {other}" if len(f"{one}{other}") < 60 else ""
            raise StudyError(
                f"studies '{names[0]}' and '{names[1]}' cannot be compared: "
                f"they differ in {key.replace('_', ' ')}{values}"
            )


def _differing(
    stored: list[dict[str, Any]], about: list[dict[str, Any]]
) -> dict[str, tuple[Any, Any]]:
    """What else two studies do differently; searched keys are left to the params of the best trials."""
    searched = {key for spec in stored for key in spec["search"]}
    one, other = (a.get("recipe", {}) for a in about)
    keys = sorted({*one, *other} - searched - {*PLACES, *RECIPE})
    found = {key: (one.get(key), other.get(key)) for key in keys}
    found |= {key: (stored[0].get(key), stored[1].get(key)) for key in SPEC}
    return {key: pair for key, pair in found.items() if pair[0] != pair[1]}


def comparison_view(compared: Compared) -> RenderableType:
    """Two studies beside each other, for a terminal."""
    table = Table(title="best trials", caption="values are means over replicates")
    for name in (
        "study",
        "trial",
        "best of",
        "value",
        "std",
        "95 % interval",
        "replicates",
        "params",
    ):
        right = name in ("trial", "best of", "value", "std", "replicates")
        table.add_column(name, justify="right" if right else "left")
    for side in compared.sides:
        table.add_row(side.study, *_cells(side), show_params(side.best.params))
    parts: list[RenderableType] = [table]
    if compared.differing:
        differing = Table(title="what else differs")
        for name in ("key", *(side.study for side in compared.sides)):
            differing.add_column(name)
        for key, values in compared.differing.items():
            differing.add_row(key, *("" if v is None else short(v) for v in values))
        parts.append(differing)
    return Group(*parts, Text(compared.verdict))


def _cells(side: Side) -> tuple[str, ...]:
    found = side.best.spread
    std = "" if found.std is None else f"{found.std:.2f}"
    interval = "" if found.low is None else f"{found.low:.2f} .. {found.high:.2f}"
    return (
        *(str(side.best.number), str(side.complete), f"{found.mean:.2f}"),
        *(std, interval, str(found.count)),
    )
