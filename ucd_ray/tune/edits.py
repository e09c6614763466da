"""Edits of a study: what may change while its trials stay, and what that does to its spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from ucd_ray.config import Config
from ucd_ray.errors import ConfigError, StudyError, did_you_mean
from ucd_ray.recipe import describe
from ucd_ray.tune.constraints import parse
from ucd_ray.tune.domain import Domain
from ucd_ray.tune.explain import show_range, show_value
from ucd_ray.tune.names import METHOD
from ucd_ray.tune.parameter import Choice, Parameter, Value
from ucd_ray.tune.progress import short
from ucd_ray.tune.revisions import REVISION, History
from ucd_ray.tune.seen import Fit, Misfit
from ucd_ray.tune.space import SearchSpace, build_spec
from ucd_ray.tune.spec import SETTINGS, StudySpec, changed


class Edit(Config):
    """What shall be other in a study: search space, budgets, parallelism."""

    search: dict[str, Parameter] = {}
    """Keys with their new range or choices; those not searched so far are added."""
    fix: dict[str, Value] = {}
    """Searched keys that are searched no more, with their value from then on."""
    add: tuple[tuple[str, Choice], ...] = ()
    """Choices that come to searched keys."""
    remove: tuple[tuple[str, Choice], ...] = ()
    """Choices that go."""
    constraints: tuple[str, ...] | None = None
    """All constraints; null: they stay."""
    hold: tuple[str, ...] = ()
    """Constraints that come, on params or results; each replaces those on the same keys or metrics."""
    lift: tuple[str, ...] = ()
    """Constraints that go."""
    settings: dict[str, Any] = {}
    """Budgets and parallelism: the fields of a StudySpec in SETTINGS."""


def edit_to(space: SearchSpace, spec: StudySpec) -> Edit:
    """The edit that gives a study the ranges of a search-space file.

    What the study fixes stays fixed, and its constraints hold beside those of the file; what the file does
    not search gets its value there, or the default.
    """
    fixed = {key: value for key, value in spec.recipe.items() if key != METHOD}
    wanted = build_spec(
        space, method=",".join(spec.methods), overrides=fixed, constraints=spec.constraints
    )
    gone, flat = set(spec.search) - set(wanted.search), spec.base_recipe().flat()
    return Edit(
        search=wanted.search,
        fix={key: wanted.recipe.get(key, flat.get(key)) for key in gone},
        constraints=wanted.constraints,
    )


def revised(spec: StudySpec, edit: Edit) -> StudySpec:
    """The spec after an edit.  Raises ConfigError naming key and value."""
    search = dict(spec.search)
    for key, parameter in edit.search.items():
        if key in spec.recipe:
            raise ConfigError(
                f"key '{key}' is fixed at {short(spec.recipe[key])} in study '{spec.name}', for all of its "
                "trials; start a study of another --name to search it"
            )
        search[key] = parameter
    for key, choice in edit.add:
        choices = _choices(search, key)
        if choice in choices:
            raise ConfigError(f"{show_value(choice)} is a choice of '{key}' already")
        search[key] = _with_choices(key, (*choices, choice))
    for key, choice in edit.remove:
        choices = _choices(search, key)
        if choice not in choices:
            listed = ", ".join(show_value(one) for one in choices)
            raise ConfigError(
                f"{show_value(choice)} is no choice of '{key}'; its choices: {listed}"
            )
        search[key] = _with_choices(key, tuple(one for one in choices if one != choice))
    for key in edit.fix:
        _searched(search, key)
        del search[key]
    if not search and edit.settings.get("trials", spec.trials) > 1:
        raise ConfigError(f"study '{spec.name}' would search nothing; leave it a key, or 1 trial")
    fields: dict[str, Any] = {"recipe": {**spec.recipe, **edit.fix}, "first": {}}
    fields["search"] = {key: parameter.model_dump() for key, parameter in search.items()}
    fields["constraints"] = _constraints(spec, edit)
    now = changed(spec, {**fields, **edit.settings})
    return changed(now, {"first": tuple(_inside(now.domain(), first) for first in spec.firsts)})


def _constraints(spec: StudySpec, edit: Edit) -> tuple[str, ...]:
    found = list(spec.constraints if edit.constraints is None else edit.constraints)
    for text in edit.lift:
        if text not in found:
            raise ConfigError(
                f"'{text}' is no constraint of study '{spec.name}'; "
                + (did_you_mean(text, found) if found else "it has none")
            )
        found.remove(text)
    for text in edit.hold:
        names = parse(text).names
        found = [*(one for one in found if parse(one).names != names), text]
    return tuple(found)


def _inside(domain: Domain, first: Mapping[str, Value]) -> dict[str, Value]:
    """What is left of the values of a first trial, which was queued when the study was created."""
    out = domain.outside(first)
    left = {key: value for key, value in first.items() if key in domain.search and key not in out}
    try:
        domain.check(left, "first value")
    except ConfigError:  # they do not go together any more
        return {}
    return left


def _searched(search: Mapping[str, Parameter], key: str) -> Parameter:
    if key not in search:
        raise ConfigError(f"key '{key}' is not searched; {did_you_mean(key, search)}")
    return search[key]


def _choices(search: Mapping[str, Parameter], key: str) -> tuple[Choice, ...]:
    found = _searched(search, key)
    if found.choices is None:
        raise ConfigError(f"key '{key}' has a range, {show_range(found)}; edit it with --search")
    return found.choices


def _with_choices(key: str, choices: tuple[Choice, ...]) -> Parameter:
    try:
        return Parameter(choices=choices)
    except ValidationError as error:
        raise ConfigError(f"search range of '{key}': {describe(error)}") from None


def changes(before: StudySpec, now: StudySpec) -> list[str]:
    """What differs between two specs of a study, a sentence for each."""
    found = []
    for key in sorted(set(before.search) | set(now.search)):
        old, new = before.search.get(key), now.search.get(key)
        if old is None and new is not None:
            value = show_value(before.base_recipe().flat().get(key))
            found.append(f"{key}: searched in {show_range(new)}, was {value}")
        elif new is None:
            found.append(f"{key}: fixed at {show_value(now.recipe.get(key))}")
        elif old is not None and old != new:
            found.append(f"{key}: {show_range(old)} -> {show_range(new)}")
    if before.constraints != now.constraints:
        found.append(f"constraints: {', '.join(now.constraints) or 'none'}")
    for name in SETTINGS:
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            found.append(f"{name}: {_limit(old)} -> {_limit(new)}")
    return found


def _limit(value: float | None) -> str:
    return "none" if value is None else short(value)


def check_open(history: History, now: StudySpec, trials: Sequence[FrozenTrial]) -> None:
    """Raises StudyError if a trial that runs, or is queued, would not be one of the edited study."""
    before, after = Fit(history), Fit(history.then(now))
    for trial in trials:
        if trial.state == TrialState.RUNNING and trial.params:
            revision = trial.user_attrs.get(REVISION, 0)
            values = after.history.values(revision, trial.params)
            if before.misfit(before.history.values(revision, trial.params)):  # as a user wished
                continue
            lost = after.misfit(values)
            what = f"trial {trial.number} runs with", "wait until it has ended, "
        elif trial.state == TrialState.WAITING:
            values = trial.system_attrs.get("fixed_params", {})
            lost = _ignored(after, values)
            what = f"trial {trial.number} is queued with", ""
        else:
            continue
        if lost is not None:
            shown = f"{lost.key}={show_value(values.get(lost.key))}"
            raise StudyError(
                f"{what[0]} {shown}, and in the edited study {lost}; {what[1]}cancel it "
                f"(`ucd-ray study cancel {now.name} {trial.number}`), or keep its value"
            )


def _ignored(fit: Fit, params: Mapping[str, Any]) -> Misfit | None:
    """A value of a queued trial that it would not get, as its key is searched no more."""
    for key, value in fit.history.defaults(params).items():
        if key in params and key not in fit.domain.search and params[key] != value:
            return Misfit(key, f"{key} is fixed at {show_value(value)}")
    return None
