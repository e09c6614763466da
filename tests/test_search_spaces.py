"""Guard: every search space of the package can be used and says where its values come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ucd_ray.methods import METHODS
from ucd_ray.scenarios import KNOWN_SCENARIOS
from ucd_ray.tune.space import (
    build_spec,
    known_spaces,
    load_search_space,
    small_budget,
)
from ucd_ray.tune.spec import StudySpec

FOLDER = Path(__file__).parent.parent / "search_spaces"
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SPACES = [name for name in FILES if name not in ("generated", "methods")]  # parts for any scenario
# Other methods with +ucd search what the method alone does: tests/tune/test_space.py.
TESTED = [name for name in METHODS if "+" not in name] + ["mib+ucd", "plop+ucd", "sdr+ucd"]
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "ucd.temperature": (0.07, 0.1, 1.0),
    "ucd.weight": (0.01,),
    "ucd.max_anchors": (None,),  # all positions
    "ucd.max_old": (None,),
    "ucd.max_per_class": (None,),
    "kd.weight": (100,),
    "kd.temperature": (1,),
    "feature.weight": (50, 100),
    "pod.weight": (0.01, 0.001),
    "pod.logit_weight": (0.0005, 0.00001),
    "matching.weight": (0.01, 0.001, 0.1),
    "attraction.weight": (0.001, 0.01),
    "repulsion.weight": (0.001, 0.01),
    "sparsity.weight": (0.001, 0.0001, 0.00001),
    "ewc.weight": (500, 100, 1000),
    "pi.weight": (500, 100, 1000),
    "rw.weight": (100, 1000),
}


def spec_of(space: str, method: str) -> StudySpec:
    return build_spec(load_search_space(space), method=method)


def test_the_installed_files_are_those_of_the_repository() -> None:
    assert known_spaces() == FILES


def test_every_known_scenario_has_a_file() -> None:
    assert set(SPACES) - {"default"} == set(KNOWN_SCENARIOS)


@pytest.mark.parametrize("name", [name for name in SPACES if name != "default"])
def test_a_file_is_named_after_its_scenario(name: str) -> None:
    assert load_search_space(name).scenario == name


@pytest.mark.parametrize("method", TESTED)
@pytest.mark.parametrize("name", SPACES)
def test_every_method_gets_a_valid_study_with_first_values_in_range(name: str, method: str) -> None:
    spec = spec_of(name, method)
    assert spec.first.keys() == spec.search.keys()
    outside = {key: value for key, value in spec.first.items() if not spec.search[key].holds(value)}
    assert not outside


@pytest.mark.parametrize("method", TESTED)
@pytest.mark.parametrize("name", SPACES)
def test_published_values_lie_inside_the_ranges(name: str, method: str) -> None:
    spec = spec_of(name, method)
    class_sum = spec.base_recipe().flat().get("kd.class_reduction") == "sum"
    published = {**PUBLISHED, "kd.weight": (1,)} if class_sum else PUBLISHED
    for key, parameter in spec.search.items():
        missing = [value for value in published.get(key, ()) if not parameter.holds(value)]
        assert not missing, f"{key} cannot be {missing}"


@pytest.mark.parametrize("name", SPACES)
def test_the_first_trial_of_mib_ucd_uses_the_published_loss_values(name: str) -> None:
    first = spec_of(name, "mib+ucd").first
    assert (first["ucd.temperature"], first["ucd.weight"]) == (0.07, 0.01)
    assert first["kd.weight"] == (100 if name == "voc-15-1" else 10)


@pytest.mark.parametrize("name", [name for name in SPACES if name[:3] in ("voc", "ade", "cit")])
def test_published_scenarios_have_the_published_training_recipe(name: str) -> None:
    spec = spec_of(name, "mib+ucd")
    recipe = spec.trial_recipe(spec.first)
    epochs = {"ade": (60, 60), "voc-10-1": (30, 10)}
    wanted = epochs.get(name) or epochs.get(name[:3]) or (30, 30)
    assert (recipe.model.backbone, recipe.data.crop, recipe.data.batch_size) == (
        "resnet101",
        512,
        24,
    )
    assert (recipe.optim.lr_base, recipe.optim.lr_new) == (0.01, 0.001)
    assert (recipe.optim.epochs_base, recipe.optim.epochs_new) == wanted
    assert (recipe.eval.mode, recipe.eval.size, recipe.eval.select_on) == ("crop", 512, "holdout")


@pytest.mark.parametrize("method", TESTED)
@pytest.mark.parametrize("name", SPACES)
def test_every_scenario_can_be_tried_on_generated_images(name: str, method: str) -> None:
    small = build_spec(small_budget(load_search_space(name)), method=method)
    assert small.search == spec_of(name, method).search
    assert small.base_recipe().model.backbone == "resnet18"


@pytest.mark.parametrize("name", SPACES)
def test_no_file_names_data_or_weights(name: str) -> None:
    fixed = spec_of(name, "mib+ucd").recipe
    assert not {"data.source", "data.split_lists", "model.weights"} & fixed.keys()


@pytest.mark.parametrize("name", SPACES)
def test_every_searched_key_says_where_its_range_comes_from(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    searched = [n for n, line in enumerate(lines) if re.search(r"\{(low|choices):", line)]
    assert searched
    for n in searched:
        comment = " ".join(comment_above(lines, n))
        assert re.search(r"arXiv \d{4}\.\d{5}|[Oo]urs", comment), lines[n]


def comment_above(lines: list[str], n: int) -> list[str]:
    """The comment lines directly above line `n`."""
    start = n
    while lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return lines[start:n]
