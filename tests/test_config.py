from __future__ import annotations

import pytest
from pydantic import ValidationError

from ucd_ray.config import NEVER, SECTIONS, Config, DataConfig, ModelConfig, OptimConfig
from ucd_ray.methods import METHODS, Term
from ucd_ray.recipe import Recipe
from ucd_ray.scenarios import Scenario
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.space import SearchSpace, SpacePart
from ucd_ray.tune.spec import StudySpec

TERMS = sorted({type(t) for terms in METHODS.values() for t in terms}, key=lambda t: t.__name__)
CONFIGS: list[type[Config]] = [
    *(Recipe, Scenario, Parameter, SpacePart, SearchSpace, StudySpec),
    *SECTIONS.values(),
    *TERMS,
]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_has_a_sentence_under_it(config: type[Config]) -> None:
    described = {name: field.description or "" for name, field in config.model_fields.items()}
    assert [name for name, text in described.items() if not text.strip().endswith(".")] == []


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_is_frozen_and_refuses_unknown_keys(config: type[Config]) -> None:
    assert config.model_config["frozen"] is True
    assert config.model_config["extra"] == "forbid"


@pytest.mark.parametrize("section", list(SECTIONS))
def test_all_defaults_satisfy_their_own_constraints(section: str) -> None:
    kind = SECTIONS[section]
    assert kind.model_validate(kind().model_dump()) == kind()


def test_fields_that_only_later_steps_read_say_so() -> None:
    assert OptimConfig.acts_from("lr_base") == 0
    assert OptimConfig.acts_from("lr_new") == 1
    assert ModelConfig.acts_from("background_init") == 1


def test_where_files_lie_cannot_change_a_number() -> None:
    never = {name for name in DataConfig.model_fields if DataConfig.acts_from(name) == NEVER}
    assert never == {"source", "split_lists", "loader_workers"}


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        OptimConfig(lr_base=float("inf"))


def test_scales_in_the_wrong_order_are_refused_with_both_values() -> None:
    with pytest.raises(ValidationError, match=r"scale_min \(2.0\) is above scale_max \(1.0\)"):
        DataConfig(scale_min=2.0, scale_max=1.0)


def test_the_weight_of_a_term_may_be_zero_but_not_negative() -> None:
    assert Term(weight=0).weight == 0
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Term(weight=-0.1)
