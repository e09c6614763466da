from __future__ import annotations

import math
import re
from typing import Any

import pytest

from tests.conftest import TINY, tiny_recipe
from ucd_ray.errors import ConfigError
from ucd_ray.methods import METHODS, CrossEntropy
from ucd_ray.methods.ucd import UCD
from ucd_ray.recipe import (
    Recipe,
    Schedule,
    check_key,
    method_keys,
    micro_batches,
    needs_split_lists,
    schedule,
)


def base(**flat: Any) -> dict[str, Any]:
    """What determines step 0."""
    return tiny_recipe(**flat).acting_until(0)


@pytest.mark.parametrize("method", METHODS)
def test_flat_values_give_the_same_recipe_again(method: str) -> None:
    recipe = tiny_recipe(method=method, seed=7, **{"model.weights_mean": (0.5, 0.4, 0.3)})
    flat = recipe.flat()
    assert Recipe.from_flat(flat) == recipe
    assert set(flat) == set(method_keys(method))
    assert flat["scenario"] == "shapes-8-2"


def test_explicit_steps_survive_the_round_trip() -> None:
    steps = {"dataset": "voc", "steps": [[8], [12, 10]], "name": "voc-15-5"}
    recipe = Recipe.from_flat({"scenario": steps})
    assert recipe.scenario.steps == ((8,), (12, 10))
    assert Recipe.from_flat(recipe.flat()) == recipe


def test_a_recipe_goes_through_json() -> None:
    recipe = tiny_recipe()
    assert Recipe.from_flat(recipe.flat()).flat() == recipe.flat()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("ucd.temprature", "unknown key 'ucd.temprature'; did you mean 'ucd.temperature'"),
        ("optim.lr", "did you mean"),
        ("temperature", "unknown key 'temperature'"),
        ("a.b.c", "unknown key 'a.b.c'; see `ucd-ray config"),
        ("terms", "unknown key 'terms'"),
        ("data", "unknown key 'data'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_recipe(**{key: 1})


def test_a_key_of_other_methods_names_them() -> None:
    with pytest.raises(ConfigError, match=r"not used by method 'mib'; .*mib\+ucd"):
        tiny_recipe(method="mib", **{"ucd.weight": 1})
    check_key("ucd.weight", "mib+ucd")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.lr_base", 0),
        ("optim.lr_base", "fast"),
        ("optim.epochs_new", 2.5),
        ("data.crop", 16),
        ("data.holdout", 1.0),
        ("model.output_stride", 32),
        ("ucd.temperature", -0.1),
        ("ucd.temperature", math.nan),
        ("ucd.max_anchors", 0),
        ("eval.mode", "whole"),
        ("setting", "overlap"),
        ("seed", -1),
        ("seed", 1.5),
        ("seed", True),
        ("scenario", 5),
    ],
)
def test_a_value_out_of_range_is_refused_with_key_and_value(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_recipe(**{key: value})
    assert key in str(caught.value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("method", ["mbi", "", None, 3])
def test_an_unknown_method_is_refused(method: Any) -> None:
    with pytest.raises(ConfigError, match=f"unknown method '{method}'"):
        tiny_recipe(method=method)


@pytest.mark.parametrize(
    ("method", "hint"),
    [
        ("ewc+ucd+xyz", r"only \+ucd can be added"),
        ("mib+plop", r"only \+ucd can be added"),
        ("ucd+ucd", r"only \+ucd can be added"),
        ("finetune+ucd", "is called 'ucd'"),
        ("joint+ucd", "joint has no old model"),
        ("plopp", "did you mean 'plop'"),
    ],
)
def test_a_combination_that_does_not_exist_names_those_that_do(method: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint) as caught:
        tiny_recipe(method=method)
    assert f"unknown method '{method}'" in str(caught.value)
    assert "finetune, joint, frozen, lwf" in str(caught.value)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("finetune", "joint")])
def test_a_method_with_an_old_model_needs_a_second_step(method: str) -> None:
    one = {"dataset": "shapes", "steps": [[1, 2]]}
    if all(term.first_step == 0 for term in METHODS[method]):
        assert tiny_recipe(method=method, scenario=one).method == method
        return
    with pytest.raises(ConfigError, match=f"method '{re.escape(method)}' .* step 0 only"):
        tiny_recipe(method=method, scenario=one)


def test_any_method_composes_with_ucd() -> None:
    for host in ("plop", "sdr", "ewc", "frozen", "ilt-freeze-output"):
        alone, both = tiny_recipe(method=host), tiny_recipe(method=f"{host}+ucd")
        assert both.terms == (*alone.terms, UCD())
        assert (both.model, both.pseudo) == (alone.model, alone.pseudo)


def test_an_override_changes_one_value_and_keeps_the_others() -> None:
    recipe = tiny_recipe()
    changed = recipe.with_overrides({"ucd.temperature": 0.5})
    assert changed.flat() == {**recipe.flat(), "ucd.temperature": 0.5}
    assert recipe.flat()["ucd.temperature"] == 0.07


def test_another_method_brings_its_own_terms_and_defaults() -> None:
    recipe = tiny_recipe(method="mib+ucd", seed=3)
    assert recipe.model.background_init is True
    other = recipe.with_overrides({"method": "lwf"})
    assert other == tiny_recipe(method="lwf", seed=3)
    assert other.model.background_init is False
    assert other.with_overrides({"method": "mib+ucd"}) == recipe


def test_a_users_value_wins_over_the_methods() -> None:
    assert (
        tiny_recipe(method="mib", **{"model.background_init": False}).model.background_init is False
    )


def test_published_defaults_of_the_terms() -> None:
    flat = tiny_recipe(method="mib+ucd").flat()
    assert {k: flat[k] for k in ("ucd.weight", "ucd.temperature", "kd.weight", "ce.weight")} == {
        "ucd.weight": 0.01,
        "ucd.temperature": 0.07,
        "kd.weight": 10.0,
        "ce.weight": 1.0,
    }


def test_step_0_has_one_term_plain_cross_entropy() -> None:
    for method in METHODS:
        assert [type(t) for t in tiny_recipe(method=method).terms_at(0)] == [CrossEntropy]
    assert [type(t) for t in tiny_recipe().terms_at(1)][-1] is UCD


def test_joint_runs_all_classes_in_one_step() -> None:
    recipe = tiny_recipe(method="joint")
    assert recipe.steps.steps == (tuple(range(1, 13)),)
    assert len(recipe.scenario.steps) == 3


# Which values share a base step.


@pytest.mark.parametrize("method", METHODS)
def test_methods_share_the_values_of_the_base_step(method: str) -> None:
    if method.startswith("ilt-"):  # ILT's own cross-entropy averages over valid pixels
        assert base(method=method) == base(method="ilt-output") != base(method="finetune")
    elif method.startswith("lwf-mc"):  # sigmoid heads
        assert base(method=method) == base(method="finetune", **{"model.head": "sigmoid"})
        assert base(method=method) != base(method="finetune")
    elif method.startswith(("pi", "rw")):  # they watch step 0
        own = method.split("+")[0]
        others = {base(method=name) == base(method=method) for name in METHODS if own not in name}
        assert others == {False}
        assert base(method=method) == base(method=own, **{f"{own}.weight": 7})
    else:
        assert base(method=method) == base(method="finetune")


@pytest.mark.parametrize(
    "later",
    [
        {"optim.lr_new": 0.5},
        {"optim.epochs_new": 9},
        {"optim.iterations_new": 9},
        {"ucd.temperature": 0.5},
        {"kd.weight": 3},
        {"model.background_init": False},
    ],
)
def test_values_of_later_steps_leave_the_base_step_alone(later: dict[str, Any]) -> None:
    assert base(**later) == base()
    assert tiny_recipe(**later).acting_until(1) != tiny_recipe().acting_until(1)


@pytest.mark.parametrize(
    "never",
    [
        {"data.source": "/x"},
        {"model.weights": "/x"},
        {"data.loader_workers": 3},
        {"eval.max_images": 9},
    ],
)
def test_where_files_lie_and_how_often_is_looked_leaves_all_steps_alone(
    never: dict[str, Any],
) -> None:
    assert tiny_recipe(**never).acting_until(2) == tiny_recipe().acting_until(2)


@pytest.mark.parametrize(
    "early",
    [
        {"seed": 1},
        {"setting": "disjoint"},
        {"optim.lr_base": 0.5},
        {"ce.weight": 2},
        {"data.crop": 96},
        {"data.holdout": 0.3},
        {"data.micro_batch": 2},
        {"model.width": 32},
        {"eval.unseen": "ignore"},
        {"eval.select_on": "val"},
        {"compute.deterministic": False},
    ],
)
def test_values_of_the_base_step_change_it(early: dict[str, Any]) -> None:
    assert base(**early) != base()


def test_without_a_holdout_its_size_does_not_matter() -> None:
    on_val = {"eval.select_on": "val"}
    assert base(**on_val, **{"data.holdout": 0.3}) == base(**on_val, **{"data.holdout": 0.2})


def test_plain_and_unbiased_losses_differ_after_the_base_step() -> None:
    values = {"kd.weight": 10.0, "model.background_init": True}
    lwf, mib = (tiny_recipe(method=method, **values) for method in ("lwf", "mib"))
    assert lwf.acting_until(0) == mib.acting_until(0)
    assert lwf.acting_until(1) != mib.acting_until(1)


# Length of a step and size of a batch.


def test_epochs_count_full_batches() -> None:
    recipe = tiny_recipe(**{"data.batch_size": 4, "optim.epochs_base": 3, "optim.epochs_new": 2})
    assert schedule(recipe, 0, 23) == Schedule(iterations=15, per_epoch=5)
    assert schedule(recipe, 1, 23) == Schedule(iterations=10, per_epoch=5)
    assert schedule(recipe, 1, 3) == Schedule(iterations=2, per_epoch=1)


def test_given_iterations_win_and_may_end_inside_an_epoch() -> None:
    plan = schedule(tiny_recipe(**{"optim.iterations_base": 12}), 0, 23)
    assert (plan.iterations, plan.per_epoch, plan.epochs) == (12, 5, 3)


def test_a_batch_is_shared_by_workers_and_cut_into_micro_batches() -> None:
    assert micro_batches(tiny_recipe(**{"data.batch_size": 24}), 4) == (6, 1)
    recipe = tiny_recipe(**{"data.batch_size": 24, "data.micro_batch": 2})
    assert micro_batches(recipe, 4) == (2, 3)


@pytest.mark.parametrize(
    ("flat", "workers", "message"),
    [
        ({"data.batch_size": 9}, 2, r"data.batch_size \(9\) must be divisible by workers \(2\)"),
        ({"data.micro_batch": 3}, 1, r"data.micro_batch \(3\) must divide .* = 4"),
        ({"data.micro_batch": 4}, 2, r"data.micro_batch \(4\) must divide .* = 2"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(
    flat: dict[str, Any], workers: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        micro_batches(tiny_recipe(**flat), workers)


@pytest.mark.parametrize(
    ("scenario", "setting", "needed"),
    [
        ("ade-100-50", "disjoint", True),
        ("cityscapes-13-6", "disjoint", True),
        ("ade-100-50", "overlapped", False),
        ("ade-100-50", "sequential", False),
        ("voc-15-5", "disjoint", False),
    ],
)
def test_only_published_partitions_need_lists(scenario: str, setting: str, needed: bool) -> None:
    recipe = Recipe.from_flat({"scenario": scenario, "setting": setting})
    assert needs_split_lists(recipe) is needed


def test_the_tiny_recipe_keeps_what_it_was_given() -> None:
    assert {k: v for k, v in tiny_recipe().flat().items() if k in TINY} == TINY
