"""The exported schemas accept what we accept, and refuse what has no place in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.test_search_spaces import FILES, FOLDER
from tests.tune.test_several_methods import SPACE
from ucd_ray.methods import METHODS
from ucd_ray.tune.schema import SCHEMAS, schema_of
from ucd_ray.tune.space import SearchSpace, build_spec, space_for

STUDY = Draft202012Validator(schema_of("study"))


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(schema_of(name))


@pytest.mark.parametrize("scenario", ["voc-15-1", "ade-100-50", "msrc-16-5"])
@pytest.mark.parametrize("method", ["mib+ucd", "finetune", "mib,plop,joint", ",".join(METHODS)])
def test_specs_of_studies_are_valid(scenario: str, method: str) -> None:
    spec = build_spec(space_for(scenario), method=method, overrides={"seed": 5}, trials=3)
    STUDY.validate(json.loads(spec.model_dump_json()))


@pytest.mark.parametrize("name", FILES)
def test_files_of_search_spaces_are_valid(name: str) -> None:
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    Draft202012Validator(schema_of("space")).validate(content)


def test_a_file_with_conditions_and_constraints_is_valid_and_so_is_its_spec() -> None:
    content = yaml.safe_load(SPACE)
    Draft202012Validator(schema_of("space")).validate(content)
    spec = build_spec(SearchSpace.model_validate(content))
    STUDY.validate(json.loads(spec.model_dump_json()))
    written = {"search": content["search"], "name": "x", "recipe": {"scenario": "shapes-8-2"}}
    STUDY.validate(written)  # as a user writes it


@pytest.mark.parametrize(
    "values",
    [
        {"name": "a/b"},
        {"trials": 0},
        {"serch": {}},
        {"search": {"kd.weight": {"lo": 1}}},
        {"search": {"kd.weight": {"low": "one"}}},
        {"constraints": "kd.weight < 1"},
        {"first": 3},
    ],
)
def test_a_spec_that_is_none_is_not_valid(values: dict[str, Any]) -> None:
    content: dict[str, Any] = {"name": "study", "recipe": {"scenario": "shapes-8-2"}}
    assert STUDY.is_valid(content)
    assert not STUDY.is_valid({**content, **values})


def test_every_field_is_described() -> None:
    fields = schema_of("study")["properties"]
    assert [name for name, field in fields.items() if not field.get("description")] == []
