"""What can be tuned, read from the code: methods with their parameters, scenarios with their steps.

Needs neither torch nor Ray.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ucd_ray.config import SECTIONS, Config
from ucd_ray.errors import ConfigError
from ucd_ray.methods import METHOD_DEFAULTS, METHODS
from ucd_ray.recipe import check_method
from ucd_ray.scenarios import DATASET_CLASSES, KNOWN_SCENARIOS, Scenario, parse_scenario
from ucd_ray.tune.space import known_spaces, space_for
from ucd_ray.tune.spec import uses

EXAMPLE = "voc-15-5"  # whose space says what is usually searched
NOT_SHOWN = ("title", "description", "default", "acts_from")


@cache
def method_facts(name: str, scenario: str = EXAMPLE) -> dict[str, Any]:
    """A method: its terms, and every key of its recipes.

    A key has `default`, `meaning`, `first_step` (-1: it changes no number), `allowed` (JSON Schema) and
    `searched`: range or choices in the search space of `scenario`, null if it is fixed there.
    Raises ConfigError for no method, ScenarioError for no scenario.
    """
    check_method(name)
    searched = space_for(scenario).part(name).search
    terms = METHODS[name]
    brought = METHOD_DEFAULTS.get(name, {})
    keys: dict[str, Any] = {}
    for section, kind in SECTIONS.items():
        keys |= _keys(section, kind, kind(), first=lambda field, kind=kind: kind.acts_from(field))
    for term in terms:
        keys |= _keys(term.section, type(term), term, first=lambda _, term=term: term.first_step)
    return {
        "name": name,
        "terms": [
            {
                "section": term.section,
                "name": type(term).__name__,
                "meaning": _first_line(type(term)),
                "first_step": term.first_step,
            }
            for term in terms
        ],
        "parameters": {
            key: {
                **facts,
                "default": brought.get(key, facts["default"]),
                "searched": searched[key].model_dump(mode="json", exclude_defaults=True)
                if key in searched and uses(name, key)
                else None,
            }
            for key, facts in keys.items()
        },
    }


def _keys(section: str, kind: type[Config], values: Config, *, first: Any) -> dict[str, Any]:
    """The fields of a section as flat keys."""
    schema = kind.model_json_schema()["properties"]
    plain = values.model_dump(mode="json")
    return {
        f"{section}.{field}": {
            "default": plain[field],
            "meaning": schema[field].get("description", ""),
            "first_step": first(field),
            "allowed": {k: v for k, v in schema[field].items() if k not in NOT_SHOWN},
        }
        for field in kind.model_fields
    }


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


@cache
def scenario_facts(name: str) -> dict[str, Any]:
    """A scenario: the classes of every step.  Raises ScenarioError."""
    if name.endswith((".yaml", ".yml")):
        raise ConfigError(f"scenario '{name}' is a file; give a name such as voc-15-1")
    found: Scenario = parse_scenario(name)
    return {
        "name": name,
        "dataset": found.dataset,
        "background": found.background,
        "steps": [list(step) for step in found.steps],
        "search_space": name if name in known_spaces() else "default",
    }


@cache
def catalogue() -> dict[str, list[dict[str, Any]]]:
    """All published scenarios, methods and kinds of data set, in short."""
    return {
        "scenarios": [scenario_facts(name) for name in KNOWN_SCENARIOS],
        "methods": [
            {"name": name, "terms": [term.section for term in terms]}
            for name, terms in METHODS.items()
        ],
        "datasets": [
            {"name": name, "classes": facts.num_classes, "background": facts.background}
            for name, facts in DATASET_CLASSES.items()
        ],
    }
