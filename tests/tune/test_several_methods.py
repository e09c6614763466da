"""One study over several methods, and keys that exist only under others: from YAML to recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.tune.test_space import WEIGHT, space_file, spec_of
from ucd_ray.errors import ConfigError
from ucd_ray.methods import METHODS
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.several_methods import widest
from ucd_ray.tune.space import SearchSpace, build_spec, load_search_space, space_for

SPACE = """
scenario: shapes-8-2
search:
  method: {choices: [mib, plop, joint, lwf-mc]}
  kd.weight: {low: 1, high: 200, log: true}
  pod.weight: {low: 0.0001, high: 0.05, log: true}
  optim.lr_new: {low: 0.0001, high: 0.01, log: true}
  optim.weight_decay: {choices: [0, 0.0001]}
  pseudo.threshold: {low: 0.0, high: 0.5, when: {pseudo.mode: entropy}}
constraints:
  - optim.lr_new <= optim.lr_base
  - pod.weight < 0.001 * kd.weight
first:
  kd.weight: 10
  pod.weight: 0.01
  optim.lr_new: 0.001
"""


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    return load_search_space(space_file(tmp_path, SPACE))


def test_every_key_exists_under_the_methods_that_have_it(space: SearchSpace) -> None:
    domain = build_spec(space).domain()
    assert domain.conditions["pod.weight"] == {"method": ("plop",)}
    assert domain.conditions["kd.weight"] == {"method": ("mib", "lwf-mc")}
    assert domain.conditions["optim.lr_new"] == {"method": ("mib", "plop", "lwf-mc")}
    assert domain.conditions["optim.weight_decay"] == {}
    assert domain.conditions["pseudo.threshold"] == {"method": ("plop",)}, "mode entropy is plop's"


def test_each_method_begins_with_its_published_values(space: SearchSpace) -> None:
    firsts = build_spec(space).firsts
    assert firsts[0] == {"method": "mib", "kd.weight": 10, "optim.lr_new": 0.001}
    assert {"method": "joint"} in firsts
    lwf_mc = next(first for first in firsts if first["method"] == "lwf-mc")
    assert lwf_mc["kd.weight"] == 10


def test_the_recipe_of_a_trial_is_its_methods(space: SearchSpace) -> None:
    spec = build_spec(space, overrides={"kd.temperature": 2})
    mib = spec.trial_recipe({"method": "mib", "kd.weight": 7})
    plop = spec.trial_recipe({"method": "plop", "pod.weight": 0.02})
    assert (mib.flat()["kd.weight"], mib.flat()["kd.temperature"]) == (7, 2)
    assert plop.pseudo.mode == "entropy"
    assert plop.flat()["pod.weight"] == 0.02
    assert spec.base_recipe().method == "mib"
    assert spec.name == "shapes-8-2-overlapped-methods"


def test_one_method_leaves_what_concerns_others_and_decides_what_is_fixed(
    space: SearchSpace,
) -> None:
    mib = build_spec(space, method="mib")
    assert set(mib.search) == {"kd.weight", "optim.lr_new", "optim.weight_decay"}
    assert mib.constraints == ("optim.lr_new <= optim.lr_base",)
    plop = build_spec(space, method="plop", overrides={"pseudo.mode": "argmax"})
    assert {"pod.weight", "optim.lr_new"} < set(plop.search)
    assert "pseudo.threshold" not in plop.search
    entropy = build_spec(space, method="mib", overrides={"pseudo.mode": "entropy"})
    assert entropy.search["pseudo.threshold"].when == {}


def test_values_fixed_by_hand_must_fit_the_constraints(space: SearchSpace) -> None:
    fixed = {"optim.lr_new": 0.5, "optim.lr_base": 0.1}
    with pytest.raises(ConfigError, match="fixed values break the constraint 'optim"):
        build_spec(space, method="mib", overrides=fixed)
    fine = build_spec(space, method="mib", overrides={"optim.lr_new": 0.05, "optim.lr_base": 0.1})
    assert fine.constraints == ()


def test_methods_may_be_listed_on_the_command_line() -> None:
    spec = build_spec(space_for("shapes-8-4"), method="lwf,mib+ucd")
    assert spec.methods == ("lwf", "mib+ucd")
    assert spec.search["kd.weight"] == Parameter(low=1, high=300, log=True), "the widest of both"
    assert [first["kd.weight"] for first in spec.firsts] == [100, 10]
    with pytest.raises(ConfigError, match="unknown method 'lfw'; did you mean 'lwf'"):
        build_spec(space_for("shapes-8-4"), method="mib,lfw")


def test_all_methods_can_be_searched_together() -> None:
    spec = build_spec(space_for("shapes-8-4"), method=",".join(METHODS))
    assert spec.methods == tuple(METHODS)
    assert len(spec.firsts) == len(METHODS)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"recipe": {"optim.lr_base": 0.2}},
            r"'optim.lr_base' is fixed at its default for method ",
        ),
        ({"search": {"kd.weight": {"choices": [1]}}}, "'kd.weight' is searched in different ways"),
    ],
)
def test_parts_of_methods_that_cannot_be_joined_are_refused(
    part: dict[str, Any], message: str
) -> None:
    search = {"kd.weight": {"low": 1, "high": 2}}
    content = {"scenario": "shapes-8-4", "search": search, "by_method": {"lwf": part}}
    with pytest.raises(ConfigError, match=message):
        build_spec(SearchSpace.model_validate(content), method="mib,lwf")


def test_a_key_that_one_method_does_not_search_exists_only_under_the_others() -> None:
    content = {"scenario": "shapes-8-4", "by_method": {"lwf": {"search": {"kd.weight": WEIGHT}}}}
    spec = build_spec(SearchSpace.model_validate(content), method="mib,lwf")
    assert spec.domain().conditions["kd.weight"] == {"method": ("lwf",)}


def test_the_widest_of_two_lists_of_choices_has_all_of_them() -> None:
    assert widest("k", Parameter(choices=(1, None)), Parameter(choices=(2, 1))).choices == (
        *(1, None, 2),
    )


def spec_with(**values: Any) -> Any:
    """A spec that searches the method."""
    recipe = {key: value for key, value in TINY.items() if key != "method"}
    search = {"method": {"choices": ["mib", "plop"]}, **values.pop("search", {})}
    return spec_of(recipe=recipe, search=search, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"search": {"method": {"choices": ["mib", "plopp"]}}}, "unknown method 'plopp'; did you"),
        ({"search": {"method": {"low": 1, "high": 2}}}, "unknown method 'a range'"),
        ({"search": {"ewc.weight": WEIGHT}}, "'ewc.weight' is not used by method 'mib'"),
        ({"search": {"setting": {"choices": ["disjoint"]}}}, "'setting' cannot be searched"),
        ({"search": {"pod.weight": {**WEIGHT, "when": {"method": "mib"}}}}, "used only where"),
        ({"constraints": ["kd.wait < 1"]}, "unknown key 'kd.wait'; did you mean 'kd.weight'"),
        ({"constraints": ["kd.weight < 1"]}, "has no key that is searched"),
        ({"constraints": ["kd.weight = 1"]}, "must compare"),
        (
            {"first": [{"method": "mib", "pod.weight": 0.01}], "search": {"pod.weight": WEIGHT}},
            "not",
        ),
        ({"search": {"method": {"choices": ["joint", "mib"]}}, "objective": "miou_old"}, "second"),
        (
            {
                "search": {"kd.weight": WEIGHT},
                "constraints": ["kd.weight > 5", "kd.weight < 0.001"],
            },
            "constraints 'kd.weight > 5', 'kd.weight < 0.001' leave nothing to try with method 'mib'",
        ),
    ],
)
def test_a_study_of_several_methods_that_cannot_be_is_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        spec_with(**values)


def test_a_spec_with_conditions_survives_json(space: SearchSpace) -> None:
    spec = build_spec(space)
    again = type(spec).model_validate(json.loads(spec.model_dump_json()))
    assert again == spec
    assert again.domain().conditions == spec.domain().conditions


def test_a_space_may_be_json(tmp_path: Path, space: SearchSpace) -> None:
    path = tmp_path / "space.json"
    path.write_text(space.model_dump_json())
    assert load_search_space(str(path)) == space
