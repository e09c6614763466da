"""`ucd-ray train`: one run without a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ucd_ray.cli.shared import (
    Address,
    Base,
    BaseClasses,
    Data,
    Deterministic,
    Method,
    Preset,
    Seed,
    SelectOn,
    Set,
    Setting,
    SplitLists,
    Tensorboard,
    Triple,
    Weights,
    console,
    run_values,
    say,
)
from ucd_ray.errors import ConfigError

if TYPE_CHECKING:
    from ucd_ray.recipe import Recipe
    from ucd_ray.tune.recipe_file import RecipeFile


def train(
    scenario: Annotated[
        str | None, typer.Option(help="Such as voc-15-1 or ade-100-50, or a YAML file.")
    ] = None,
    preset: Preset = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="File of `ucd-ray study best --export`: the same run again."),
    ] = None,
    other_data: Annotated[
        bool,
        typer.Option("--other-data", help="With --recipe: although data or weights are others."),
    ] = False,
    method: Method = None,
    data: Data = None,
    weights: Weights = None,
    weights_mean: Triple = None,
    weights_std: Triple = None,
    base: Base = None,
    base_classes: BaseClasses = None,
    setting: Setting = None,
    select_on: SelectOn = None,
    split_lists: SplitLists = None,
    seed: Seed = None,
    values: Set = None,
    workers: Annotated[
        int | None, typer.Option(help="DDP training workers; default: 1.", min=1)
    ] = None,
    deterministic: Deterministic = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, train nothing.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="File for the trained network, .safetensors.")
    ] = None,
    tensorboard: Tensorboard = None,
    address: Address = None,
) -> None:
    """Run one recipe over all its steps, without a study."""
    if save is not None:
        check_save(save)
    where: dict[str, Any] = {
        "data": data,
        "weights": weights,
        "base": base,
        "base_classes": base_classes,
        "split_lists": split_lists,
    }
    what: dict[str, Any] = {
        "values": values,
        "weights_mean": weights_mean,
        "weights_std": weights_std,
        "setting": setting,
        "select_on": select_on,
        "seed": seed,
        "deterministic": deterministic,
    }
    if recipe is not None:
        names = {"scenario": scenario, "preset": preset, "method": method, "workers": workers}
        _refuse({**names, **what})
        file, found = _read(recipe, where)
        workers = file.workers
    else:
        if scenario is None and preset is None:
            raise ConfigError("give --scenario, such as shapes-8-4, --preset or --recipe FILE")
        if other_data:
            raise ConfigError("--other-data goes with --recipe FILE: without one there is no other")
        file, found = None, _recipe(scenario, preset, method, run_values(**what, **where))
    from ucd_ray.tune.run import check_machine, plan_table, result_table, run_job, run_prepared

    if not dry_run:
        check_machine(workers or 1, address)
    job = run_job(found, workers=workers or 1, console=console)
    if file is not None:
        from ucd_ray.tune.reproduce import as_before

        job = as_before(file, job, other_data=other_data, console=console)
    if dry_run:
        console.print(plan_table(job))
        return
    result = run_prepared(job, address=address, console=console, tensorboard=tensorboard)
    console.print(result_table(result))
    if save is not None:
        from ucd_ray.tune.networks import run_network, save_network

        save_network(run_network(result, job.prepared.classes), save)
        say(f"wrote {save}")
    if file is not None and file.measured:
        from ucd_ray.tune.reproduce import verdict

        say(verdict(file, result))


def check_save(path: Path) -> None:
    """Raises ConfigError unless a network can be written there."""
    if path.suffix != ".safetensors":
        raise ConfigError(f"--save '{path}' must end with .safetensors")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--save '{path}': there is no directory '{path.parent}'")


def _refuse(fixed: dict[str, Any]) -> None:
    """Raises ConfigError if options are given that a recipe file decides."""
    given = [n for n, value in fixed.items() if value is not None and value is not False]  # seed 0
    if given:
        option = "--set" if given[0] == "values" else f"--{given[0].replace('_', '-')}"
        raise ConfigError(
            f"{option} does not go with --recipe, which decides it; what goes with it says where "
            "things are: --data, --weights, --base, --base-classes, --split-lists, --address"
        )


def _recipe(
    scenario: str | None, preset: str | None, method: str | None, overrides: dict[str, Any]
) -> Recipe:
    """The recipe that options give.  With a preset, says what it should give."""
    from ucd_ray.tune.presets import space_asked
    from ucd_ray.tune.space import build_spec

    space, named = space_asked(
        scenario,
        None,
        preset,
        method=method,
        setting=overrides.get("setting"),
        generated=overrides.get("data.source") == "generated",
    )
    spec = build_spec(space, method=method, overrides=overrides)
    recipe = spec.trial_recipe(spec.first_params)
    for line in named.lines(recipe) if named else ():
        say(line)
    return recipe


def _read(path: Path, where: dict[str, Any]) -> tuple[RecipeFile, Recipe]:
    """A recipe file, and its recipe with what it reads in other places."""
    from ucd_ray.tune.recipe_file import read_recipe_file

    file, recipe = read_recipe_file(path)
    return file, recipe.with_overrides(run_values(**where))
