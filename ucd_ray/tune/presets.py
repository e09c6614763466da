"""Search spaces of presets, and the list of presets."""

from __future__ import annotations

from rich.table import Table

from ucd_ray.errors import ConfigError
from ucd_ray.published.presets import Preset, find_preset, presets
from ucd_ray.tune.space import SearchSpace, small_budget, space_for, space_of


def space_asked(
    scenario: str | None,
    space: str | None,
    preset: str | None,
    *,
    method: str | None,
    setting: str | None,
    generated: bool,
) -> tuple[SearchSpace, Preset | None]:
    """What a command searches, and the preset that it names.  Raises ConfigError."""
    if preset is None:
        if scenario is None:
            raise ConfigError(
                "give --scenario, such as voc-15-1, or --preset, such as voc-15-1/mib"
            )
        return space_of(scenario, space, generated=generated), None
    if space is not None:
        raise ConfigError(f"--space '{space}' and --preset '{preset}': leave one out")
    found = preset_of(preset, scenario=scenario, method=method, setting=setting)
    own = preset_space(found)
    return small_budget(own) if generated else own, found


def preset_of(
    name: str, *, scenario: str | None, method: str | None, setting: str | None
) -> Preset:
    """The preset called `name`; what else is given must agree with it.  Raises ConfigError."""
    preset = find_preset(name)
    own = {
        "scenario": preset.scenario,
        "method": preset.method,
        "setting": preset.values["setting"],
    }
    given = {"scenario": scenario, "method": method, "setting": setting}
    for option, value in given.items():
        if value is not None and value != own[option]:
            raise ConfigError(
                f"--{option} '{value}' and --preset '{name}', which is {option} '{own[option]}': leave "
                "one out"
            )
    return preset


def preset_space(preset: Preset) -> SearchSpace:
    """The search space of a preset: its values are fixed, or the first trial's where keys are searched.

    A key is not searched if the row has a value outside of its range.
    """
    space = space_for(preset.scenario)
    part = space.part(preset.method)
    search = {
        key: parameter
        for key, parameter in part.search.items()
        if key not in preset.values or parameter.holds(preset.values[key])
    }
    fixed = {key: value for key, value in preset.values.items() if key not in search}
    first = {key: value for key, value in preset.values.items() if key in search}
    return SearchSpace(
        scenario=preset.scenario,
        method=preset.method,
        recipe={**part.recipe, **fixed},
        search=search,
        first={**{k: v for k, v in part.first.items() if k in search}, **first},
        constraints=part.constraints,
    )


def presets_table() -> Table:
    """All presets: where the row stands, what it should give."""
    table = Table(title="Presets", caption="mIoU in percent; --preset NAME of train and tune")
    for column in ("preset", "row", "should give", "note"):
        table.add_column(column, overflow="fold")
    for name, preset in sorted(presets().items()):
        row = preset.row
        table.add_row(name, f"{row.source}, {row.table}", preset.numbers, preset.note or "")
    return table
