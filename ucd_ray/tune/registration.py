"""What is stored of a study before it runs, and whether a command is about the study that is stored."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from ucd_ray.data.prepare import Prepared
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.recipe import Recipe
from ucd_ray.tune.database import Database
from ucd_ray.tune.names import METHOD
from ucd_ray.tune.places import places
from ucd_ray.tune.revisions import revisions
from ucd_ray.tune.spec import SETTINGS, StudySpec, changed, parsed

MAY_CHANGE = {
    *("trials", "max_concurrent", "cpus_per_worker", "gpus_per_worker", "trials_per_run"),
    *("oom_retries", "keep_best", "max_hours", "max_gpu_hours", "patience", "terminator"),
    *("same_failures", "racing"),
}


def register(
    database: Database,
    spec: StudySpec,
    recipe: Recipe,
    data: Prepared | None = None,
    *,
    sources: Sequence[str] = (),
) -> None:
    """Stores the spec of a new study, or checks that it is the stored one.  Raises StudyError."""
    stored = database.spec(spec.name)
    if stored is None:
        about = facts(spec, recipe, data, sources=sources)
        database.save_spec(spec.name, spec.model_dump_json(), about)
        return
    edits = revisions(database, spec.name)
    content = spec.model_dump(mode="json")
    if edits:  # which may have taken first values away; that trial is queued once
        content["first"] = with_defaults(stored).get("first")
    if differing := differences(with_defaults(stored), content):
        raise StudyError(
            f"study '{spec.name}' exists with another spec; differing: {'; '.join(differing)}. "
            + (
                f"It was edited since it was created: `ucd-ray study run {spec.name}` goes on with the "
                "edited values"
                if edits
                else "Choose another --name, or start it with the same values"
            )
        )


def with_edits(spec: StudySpec) -> StudySpec:
    """A spec with the budgets and the parallelism that its stored study was edited to.

    Where `spec` has what the study was created with: the same command again undoes no edit.
    """
    database = Database(places().database)
    edits = revisions(database, spec.name)
    if not edits:
        return spec
    stored, first = database.stored_spec(spec.name), edits[0].spec
    same = [name for name in SETTINGS if getattr(spec, name) == first.get(name)]
    return changed(spec, {name: stored[name] for name in same})


def with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored spec with the fields that are newer than it."""
    with contextlib.suppress(ValidationError, ConfigError):  # it differs, and is shown as it is
        return StudySpec.model_validate(stored).model_dump(mode="json")
    return stored


def stored_sources(database: Database, name: str) -> list[str]:
    """The studies that a study shall learn from, as it was started; without those that are gone."""
    found = database.about(name).get("sources") or ()
    return [source for source in found if database.spec(source) is not None]


def facts(
    spec: StudySpec,
    recipe: Recipe,
    data: Prepared | None = None,
    *,
    sources: Sequence[str] = (),
) -> dict[str, Any]:
    """What tables say about a study.

    data: its data set, once that is prepared; sources: other studies that its sampler learns from
    """
    images = data and {"train": data.train.num_rows, "val": data.val.num_rows}
    return {
        "scenario": recipe.scenario.name,
        "setting": recipe.setting,
        "method": ", ".join(spec.methods),
        "objective": ", ".join(spec.goals.objectives),
        "direction": spec.goals.directions[0],
        "select_on": recipe.eval.select_on,
        "steps": max(len(r.steps.steps) for r in recipes_of(spec)),
        "background": recipe.scenario.background,
        "recipe": recipe.flat(),  # with today's defaults
        "classes": data and data.classes,  # names by class id
        "images": images,
        "fingerprint": data and data.fingerprint,
        "sources": [*sources],
    }


def recipes_of(spec: StudySpec) -> list[Recipe]:
    """One recipe for each method of a study."""
    return [spec.trial_recipe({METHOD: method}) for method in spec.methods]


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The keys in which two specs differ, with both values; budget and parallelism may differ.

    A field that the stored spec has not, as an earlier version did not know it, had its default.
    """
    stored = {**json.loads(json.dumps(_defaults())), **stored}
    found = []
    for field in sorted(set(stored) | set(wanted)):
        old, new = stored.get(field), wanted.get(field)
        if field in MAY_CHANGE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            keys = sorted(k for k in set(old) | set(new) if old.get(k) != new.get(k))
            found += [f"{k} ({_show(old.get(k))} there, {_show(new.get(k))} here)" for k in keys]
        else:
            found.append(f"{field} ({_show(old)} there, {_show(new)} here)")
    return found


def _defaults() -> dict[str, Any]:
    fields = StudySpec.model_fields.items()
    return {name: field.default for name, field in fields if not field.is_required()}


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{k}: {v}" for k, v in value.items() if v not in (None, False, {}))
            + "}"
        )
    return "not given" if value is None else str(value)


def stored_spec(name: str, database: Database | None = None) -> StudySpec:
    """The spec of a study that was started before.  Raises StudyError."""
    return parsed((database or Database(places().database)).stored_spec(name))
