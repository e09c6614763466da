"""Presets: the recipe of a published row, with the numbers that it should give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.published.protocol import RULES, compare, protocol_of
from ucd_ray.published.rows import PublishedRow, published_rows
from ucd_ray.recipe import Recipe

FILE = Path(__file__).parent / "presets.yaml"
USUAL = "overlapped"  # the setting that names of presets leave out
VERDICTS = {"refused": "not comparable", "marked": "not quite comparable"}
ALL_IMAGES = {"eval.select_on": "val", "seed": 42}  # of all publications: no hold-out, seed 42


@dataclass(frozen=True)
class Preset:
    """A published row as a recipe.  values: flat keys, beside what the scenario's search space has."""

    name: str
    method: str
    row: PublishedRow
    values: Mapping[str, Any]
    read_in: str
    note: str | None

    @property
    def scenario(self) -> str:
        """The scenario of the row."""
        return str(self.row.protocol.scenario)

    @property
    def numbers(self) -> str:
        """What the row should give, in percent."""
        means = {m: v for m, v in self.row.values.items() if m.startswith("miou_")}
        return ", ".join(f"{m.removeprefix('miou_')} {v}" for m, v in means.items())

    def lines(self, recipe: Recipe) -> list[str]:
        """What a run of `recipe` should give, under which protocol, and what differs from it."""
        row, facts = self.row, self.row.protocol
        known = [f"{RULES[f][0]} {value}" for f, value in vars(facts).items() if value is not None]
        ours = protocol_of(recipe, images=None, background=facts.background or "without")
        verdict, reasons = compare(ours, facts)
        flat = recipe.flat()
        changed = [
            f"{k} {_shown(flat[k])} instead of {v}" for k, v in self.values.items() if flat[k] != v
        ]
        return [
            f"preset {self.name}: should give mIoU {self.numbers} in percent on val",
            f"  as {row.method} in {row.source}, {row.table}; recipe from {self.read_in}",
            f"  under: {', '.join(known)}",
            *([f"  {VERDICTS[verdict]}: {'; '.join(reasons)}"] if reasons else []),
            *([f"  changed here: {', '.join(changed)}"] if changed else []),
            *([f"  note: {self.note}"] if self.note else []),
        ]


@cache
def presets() -> dict[str, Preset]:
    """All presets by name."""
    return {preset.name: preset for preset in _presets()}


def find_preset(name: str) -> Preset:
    """The preset of that name.  Raises ConfigError."""
    if name not in presets():
        known = presets()
        hint = did_you_mean(name, known)
        if not hint.startswith("did"):
            hint = "`ucd-ray presets` lists them"
        raise ConfigError(f"unknown preset '{name}'; {hint}")
    return presets()[name]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _presets() -> Iterator[Preset]:
    for source, group in yaml.safe_load(FILE.read_text(encoding="utf-8")).items():
        for method, entry in group["methods"].items():
            rows = [r for r in published_rows() if (r.source, r.method) == (source, entry["row"])]
            for row in rows:
                scenario, wanted = str(row.protocol.scenario), entry.get("only", ["*"])
                if row.step is None and any(fnmatchcase(scenario, name) for name in wanted):
                    yield _preset(method, entry, row, _values(group, scenario))


def _values(entry: Mapping[str, Any], scenario: str) -> dict[str, Any]:
    """What an entry, or a group of them, has for a scenario; later patterns win."""
    found = dict(entry.get("recipe", {}))
    for pattern, values in entry.get("in", {}).items():
        if fnmatchcase(scenario, pattern):
            found |= values
    return found


def _preset(
    method: str, entry: Mapping[str, Any], row: PublishedRow, shared: Mapping[str, Any]
) -> Preset:
    scenario, setting = str(row.protocol.scenario), str(row.protocol.setting)
    own = _values(entry, scenario)
    parts = (scenario, method) if setting == USUAL else (scenario, setting, method)
    values = {"setting": setting, **ALL_IMAGES, **shared, **own}
    return Preset("/".join(parts), method, row, values, entry["from"], entry.get("note"))
