from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.conftest import TINY
from ucd_ray.errors import ConfigError
from ucd_ray.recipe import method_keys
from ucd_ray.tune.names import OBJECTIVES
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.space import (
    SearchSpace,
    build_spec,
    known_spaces,
    load_search_space,
    small_budget,
    space_for,
    space_of,
)
from ucd_ray.tune.spec import StudySpec

WEIGHT = {"low": 0.001, "high": 0.1, "log": True}


def spec_of(**values: Any) -> StudySpec:
    return StudySpec.model_validate({"name": "s", "recipe": dict(TINY), **values})


def space_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give low and high, or choices"),
        ({"low": 1}, "give low and high"),
        ({"low": 2, "high": 1}, r"low \(2.0\) must be below high \(1.0\)"),
        ({"low": 1, "high": 1}, "must be below"),
        ({"low": 0, "high": 1, "log": True}, "log needs low > 0"),
        ({"low": 1, "high": 2, "log": True, "step": 0.5}, "no step"),
        ({"low": 1, "high": 2, "step": 0}, "greater than 0"),
        ({"low": 0.5, "high": 3, "type": "int"}, "whole numbers"),
        ({"low": 1, "high": 3, "type": "int", "step": 0.5}, "whole numbers"),
        ({"choices": []}, "choices is empty"),
        ({"choices": [1], "low": 0}, "either low and high, or choices"),
        ({"lo": 1, "high": 2}, "Extra inputs"),
        ({"low": 1, "high": float("inf")}, "finite"),
    ],
)
def test_a_wrong_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Parameter.model_validate(values)


def test_a_parameter_holds_its_ends_or_choices_and_nothing_outside() -> None:
    span = Parameter(low=1, high=3)
    assert [span.holds(v) for v in (0.9, 1, 2.5, 3, 3.1, None, "2")] == [
        *(False, True, True, True, False, False, False)
    ]
    choices = Parameter(choices=(256, None))
    assert [choices.holds(v) for v in (256, None, 512)] == [True, True, False]


def test_a_study_may_search_nothing() -> None:
    assert spec_of().search == {}


def test_a_key_that_is_both_fixed_and_searched_is_refused() -> None:
    with pytest.raises(ValueError, match=r"key 'data.crop' is both fixed and searched"):
        spec_of(search={"data.crop": {"low": 64, "high": 96}})


@pytest.mark.parametrize(
    ("key", "parameter", "message"),
    [
        ("ucd.temperature", {"low": 0, "high": 1}, r"range of 'ucd.temperature': .*\(0.0\)"),
        ("data.flip", {"low": 0.5, "high": 2}, r"range of 'data.flip': .*\(2.0\)"),
        ("ucd.form", {"choices": ["standard", "other"]}, "range of 'ucd.form': .*'other'"),
        ("ucd.max_old", {"low": 100, "high": 200}, "range of 'ucd.max_old'"),
        ("ucd.temprature", {"low": 0.1, "high": 1}, "did you mean 'ucd.temperature'"),
        ("feature.weight", {"low": 0.1, "high": 1}, "not used by method"),
    ],
)
def test_a_range_that_a_recipe_would_refuse_is_refused_at_once(
    key: str, parameter: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(search={key: parameter})


def test_a_whole_number_may_be_searched_as_int() -> None:
    spec = spec_of(search={"ucd.max_old": {"low": 100, "high": 200, "type": "int"}})
    assert spec.search["ucd.max_old"].samples() == (100, 200)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"kd.weight": 3}, "'kd.weight', which is not searched"),
        ({"ucd.weight": 5}, r"first value of 'ucd.weight' \(5\) is outside"),
        ({"ucd.max_old": 7}, r"first value of 'ucd.max_old' \(7\) is outside"),
    ],
)
def test_a_first_value_must_be_one_that_the_search_may_propose(
    first: dict[str, Any], message: str
) -> None:
    search = {"ucd.weight": WEIGHT, "ucd.max_old": {"choices": [256, None]}}
    assert spec_of(search=search, first={"ucd.weight": 0.01, "ucd.max_old": None}).first
    with pytest.raises(ValueError, match=message):
        spec_of(search=search, first=first)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "miou"}, "unknown objective 'miou'; did you mean 'miou_"),
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"pruner": "mean"}, "unknown pruner 'mean'"),
        ({"pruner": "median:warm=3"}, "no option 'warm'; its options: startup=3, warmup=2"),
        ({"pruner": "forgetting:limit=much"}, r"limit \('much'\) must be a number"),
        ({"pruner": "threshold:lower=-1"}, "must not be negative"),
        (
            {"sampler": "grid", "search": {"ucd.weight": WEIGHT}},
            "tries every value, but .* has a range without a step",
        ),
        ({"trials": 0}, "greater than 0"),
        ({"workers": 0}, "greater than 0"),
        ({"max_concurrent": 0}, "greater than 0"),
        ({"name": "a/b"}, "a name has 1 to 81 letters"),
        ({"name": ""}, "a name has 1 to 81 letters"),
        ({"nam": "x"}, "Extra inputs"),
    ],
)
def test_a_wrong_field_of_a_spec_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(**values)


def test_an_objective_with_background_needs_a_scored_background() -> None:
    recipe = {**TINY, "scenario": "msrc-16-5"}
    with pytest.raises(ValueError, match="msrc does not score background"):
        spec_of(recipe=recipe, objective="miou_all_bg")
    assert spec_of(objective="miou_all_bg").objective in OBJECTIVES


def test_a_spec_survives_json() -> None:
    spec = build_spec(space_for("shapes-8-4"), overrides={"model.weights_mean": [0.1, 0.2, 0.3]})
    again = StudySpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert StudySpec.model_validate(json.loads(spec.model_dump_json())) == spec


def test_a_trials_recipe_is_the_fixed_one_with_its_params() -> None:
    spec = spec_of(search={"ucd.weight": WEIGHT})
    recipe = spec.trial_recipe({"ucd.weight": 0.05})
    assert recipe.flat() == {**spec.base_recipe().flat(), "ucd.weight": 0.05}


# Building a spec.


def test_an_override_is_no_longer_searched() -> None:
    spec = build_spec(space_for("shapes-8-4"), overrides={"ucd.weight": 0.02})
    assert spec.recipe["ucd.weight"] == 0.02
    assert "ucd.weight" not in spec.search
    assert "ucd.weight" not in spec.first
    assert "ucd.temperature" in spec.search


def test_epochs_of_a_user_set_aside_the_spaces_iterations() -> None:
    space = space_for("shapes-8-4")
    assert space.recipe["optim.iterations_base"] == 80
    recipe = build_spec(space, overrides={"optim.epochs_base": 1}).base_recipe()
    assert (recipe.optim.epochs_base, recipe.optim.iterations_base) == (1, None)
    assert recipe.optim.iterations_new == space.recipe["optim.iterations_new"]
    both = {"optim.epochs_base": 1, "optim.iterations_base": 7}
    assert build_spec(space, overrides=both).base_recipe().optim.iterations_base == 7


def test_epochs_beside_iterations_are_not_searched_in_vain() -> None:
    space = space_for("shapes-8-4")
    search = {**space.search, "optim.epochs_new": {"low": 1, "high": 4, "type": "int"}}
    both = space.model_validate({**space.model_dump(), "search": search})
    with pytest.raises(ConfigError, match=r"'optim.epochs_new' cannot be searched.*\(28\).*null"):
        build_spec(both)
    spec = build_spec(both, overrides={"optim.iterations_new": None})
    assert "optim.epochs_new" in spec.search


def test_an_empty_method_is_not_that_of_the_space() -> None:
    with pytest.raises(ConfigError, match="unknown method ''"):
        build_spec(space_for("shapes-8-4"), method="")
    with pytest.raises(ConfigError, match="unknown method ''"):
        build_spec(space_for("shapes-8-4"), overrides={"method": ""})


def test_the_default_name_says_scenario_setting_and_method() -> None:
    assert build_spec(space_for("shapes-8-4")).name == "shapes-8-4-overlapped-mib+ucd"
    spec = build_spec(space_for("shapes-8-2"), method="lwf", overrides={"setting": "disjoint"})
    assert spec.name == "shapes-8-2-disjoint-lwf"


def test_the_default_name_of_a_scenario_file_is_its_stem(tmp_path: Path) -> None:
    path = tmp_path / "my animals.yaml"
    path.write_text("dataset: shapes\nsteps: [[1, 2], [3]]\n")
    assert build_spec(space_for(str(path))).name == "my-animals-overlapped-mib+ucd"


@pytest.mark.parametrize("method", ["finetune", "joint", "lwf", "ilt", "mib", "mib+ucd"])
def test_every_method_searches_only_keys_of_its_own(method: str) -> None:
    spec = build_spec(space_for("shapes-8-4"), method=method)
    assert set(spec.search) <= set(method_keys(method))
    assert set(spec.first) <= set(spec.search)
    assert spec.recipe["method"] == method


def test_a_part_for_one_method_replaces_values_for_it_alone() -> None:
    space = SearchSpace.model_validate(
        {
            "scenario": "shapes-8-4",
            "recipe": {"optim.lr_base": 0.1},
            "search": {"kd.weight": {"low": 1, "high": 2}, "ucd.weight": WEIGHT},
            "first": {"kd.weight": 1.5},
            "by_method": {
                "lwf": {
                    "recipe": {"optim.lr_base": 0.2},
                    "search": {"kd.weight": {"low": 10, "high": 20}},
                    "first": {"kd.weight": 15},
                }
            },
        }
    )
    lwf, mib = space.part("lwf"), space.part("mib")
    assert (lwf.recipe, lwf.first) == ({"optim.lr_base": 0.2}, {"kd.weight": 15})
    assert (mib.recipe, mib.first) == ({"optim.lr_base": 0.1}, {"kd.weight": 1.5})
    assert lwf.search["kd.weight"].low == 10
    assert set(mib.search) == {"kd.weight"}
    assert set(space.part("mib+ucd").search) == {"kd.weight", "ucd.weight"}


@pytest.mark.parametrize(
    "about", [{"method": "plop"}, {"search": {"method": {"choices": ["plop"]}}}]
)
def test_a_file_about_a_method_counts_more_than_what_is_usual_for_it(about: dict[str, Any]) -> None:
    search = {"pod.weight": WEIGHT, **about.get("search", {})}
    space = SearchSpace.model_validate({"scenario": "shapes-8-4", **about, "search": search})
    assert space.part("plop").search["pod.weight"] == Parameter.model_validate(WEIGHT)
    assert "pod.logit_weight" in space.part("plop").search


def test_a_key_that_no_method_has_is_a_mistake() -> None:
    space = SearchSpace.model_validate({"scenario": "shapes-8-4", "search": {"ucd.wieght": WEIGHT}})
    with pytest.raises(ConfigError, match=r"did you mean 'ucd\.weight'"):
        space.part("finetune")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "mibb"}, "unknown method 'mibb'; did you mean 'mib'"),
        ({"overrides": {"ucd.temprature": 1}}, "^unknown key 'ucd.temprature'"),
        ({"overrides": {"optim.lr_new": -1}}, r"^optim.lr_new \(-1\): .* greater than 0"),
        ({"trials": 0}, r"^trials \(0\): .* greater than 0"),
        ({"name": "no/slash"}, "^name .*a name has 1 to 81 letters"),
    ],
)
def test_building_reports_one_sentence_that_begins_with_the_matter(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_spec(space_for("shapes-8-4"), **arguments)


# Files.


def test_a_scenario_without_a_file_takes_the_default_space() -> None:
    space = space_for("shapes-6-3")
    assert space.scenario == "shapes-6-3"
    assert space.search == load_search_space("default").search


def test_generated_images_get_a_small_budget_and_the_same_search() -> None:
    full, small = (space_of("voc-15-5", None, generated=g) for g in (False, True))
    assert small.search == full.search
    assert small.recipe != full.recipe
    assert small == small_budget(full)
    assert space_of("shapes-8-4", None, generated=True) == space_for("shapes-8-4")


def test_an_unknown_space_is_refused_with_the_nearest_name() -> None:
    assert "default" in known_spaces()
    with pytest.raises(ConfigError, match="no search space 'shapes-84'; did you mean 'shapes-8-4'"):
        load_search_space("shapes-84")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: [", "is not YAML"),
        ("- 1", "must be a mapping"),
        ("search: {}", r"scenario: Field required"),
        ("scenario: voc-15-5\nserch: {}", "serch"),
        ("scenario: voc-15-5\nsearch: {kd.weight: {low: 2, high: 1}}", "search.kd.weight"),
        (
            "scenario: voc-15-5\nrecipe: {kd.weight: 1}\nsearch: {kd.weight: {low: 1, high: 2}}",
            "'kd.weight' is both fixed and searched",
        ),
        ("scenario: voc-15-5\nsearch: 3", "search"),
        ("scenario: voc-15-5\nrecipe: [1]\nsearch: {}", "recipe"),
    ],
)
def test_a_wrong_file_is_refused_naming_file_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    path = space_file(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_search_space(path)
    assert "mine.yaml" in str(caught.value)


def test_an_absent_or_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_search_space(str(tmp_path / "absent.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load_search_space(str(tmp_path / "binary.yaml"))


def test_a_scenario_file_is_stored_by_content(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: shapes\nsteps: [[1, 2], [3]]\n")
    spec = build_spec(space_for("shapes-8-4"), overrides={"scenario": str(path)})
    path.write_text("dataset: shapes\nsteps: [[3], [1, 2]]\n")
    again = StudySpec.model_validate_json(spec.model_dump_json())
    assert again.base_recipe().scenario.steps == ((1, 2), (3,))
    assert spec.name.startswith("mine-")


def test_an_objective_over_later_classes_needs_a_second_step() -> None:
    with pytest.raises(ConfigError, match="needs a second step"):
        build_spec(space_for("shapes-8-4"), method="joint", objective="miou_old")
