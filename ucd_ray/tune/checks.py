"""What a study's spec can have wrong.  All of it is refused before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.methods import METHODS
from ucd_ray.recipe import check_key, check_method, check_searched, method_keys, micro_batches
from ucd_ray.tune.goals import check_metric, is_metric, sign_of
from ucd_ray.tune.names import (
    EPOCHLY,
    EXHAUSTIVE,
    METHOD,
    OBJECTIVES,
    ONE_OBJECTIVE,
    check_sampler,
    pruner_options,
)

if TYPE_CHECKING:
    from ucd_ray.tune.domain import Domain
    from ucd_ray.tune.spec import StudySpec

QUESTION = ("scenario", "setting")  # what a study asks about, so that it cannot be searched


def check_spec(spec: StudySpec) -> None:
    """Raises ConfigError for the first thing that is wrong."""
    both = sorted(set(spec.recipe) & set(spec.search))
    if both:
        raise ConfigError(f"key '{both[0]}' is both fixed and searched; remove it from one")
    check_sampler(spec.sampler)
    pruner_options(spec.pruner)
    _check_objectives(spec)
    _check_pruning(spec)
    _check_countable(spec)
    _check_methods(spec)
    _check_keys(spec)
    domain = spec.domain()
    assert len(domain.order) == len(spec.search)  # raises for conditions that cannot be
    _check_constraints(spec)
    _check_ranges(spec, domain)
    if spec.sampler in EXHAUSTIVE:
        assert domain.points  # raises if there are none, or too many
    else:
        domain.check_possible()
    for first in spec.firsts:
        domain.check(first, "first value")
    for method in spec.methods:
        spec.goals.check(spec.trial_recipe({METHOD: method}))


def check_start(spec: StudySpec) -> None:
    """Raises ConfigError for what a start refuses beside that, without a look at the data."""
    recipe = spec.base_recipe()
    if not spec.search and spec.trials > 1:
        raise ConfigError(
            f"nothing is searched: method '{recipe.method}' has no searched key left, so that all "
            f"{spec.trials} trials would be the same; free a key that is fixed, or start 1 trial"
        )
    for key in {"data.batch_size", "data.micro_batch"} & set(spec.search):
        for value in spec.search[key].samples():
            micro_batches(recipe.with_overrides({key: value}), spec.workers)


def _check_objectives(spec: StudySpec) -> None:
    for name in (spec.objective, *spec.objectives):
        check_metric(name, "objective")
    twice = [name for name in spec.objectives if spec.objectives.count(name) > 1]
    if twice:
        raise ConfigError(f"objective '{twice[0]}' is there twice")
    usual = type(spec).model_fields["objective"].default
    if spec.objectives and spec.objective not in (usual, *spec.objectives):
        raise ConfigError(
            f"objective '{spec.objective}' is not among objectives ({', '.join(spec.objectives)}); give "
            "one or the other"
        )
    if not spec.goals.several:
        return
    if spec.sampler in ONE_OBJECTIVE:
        raise ConfigError(
            f"sampler '{spec.sampler}' knows one objective, there are {len(spec.objectives)}; use tpe, "
            "nsga2, nsga3, gp, qmc, random, grid or brute-force"
        )
    if spec.terminator:
        raise ConfigError("the terminator judges one objective; leave it out, or use patience")


def _check_pruning(spec: StudySpec) -> None:
    if spec.prune_on is not None and spec.prune_on not in EPOCHLY:
        check_metric(spec.prune_on, "prune_on")
        raise ConfigError(
            f"prune_on '{spec.prune_on}' is not measured after every epoch; choose from: "
            + ", ".join(EPOCHLY)
        )
    goals, (pruner, _) = spec.goals, pruner_options(spec.pruner)
    if pruner in ("none", "forgetting"):  # compare nothing, or drops
        return
    if spec.prune_on is None and not goals.plain:
        raise ConfigError(
            f"pruner '{pruner}' compares one number after every epoch, and "
            f"{', '.join(goals.objectives)} give none; declare it with prune_on, such as miou_all, or use "
            "pruner none"
        )
    if pruner == "threshold" and sign_of(goals.scalar) < 0:
        raise ConfigError(
            f"pruner 'threshold' stops what is low, but less {goals.scalar} is better; use pruner "
            "forgetting:limit=10, or another"
        )


def _check_countable(spec: StudySpec) -> None:
    for key, parameter in spec.search.items():
        if spec.sampler in EXHAUSTIVE and parameter.count is None:
            raise ConfigError(
                f"sampler '{spec.sampler}' tries every value, but '{key}' has a range without a "
                "step; give it choices, or low, high and step"
            )


def _check_methods(spec: StudySpec) -> None:
    if METHOD not in spec.search:
        return check_method(spec.methods[0])
    for method in spec.search[METHOD].choices or ("a range",):
        try:
            check_method(method)
        except ConfigError as error:
            raise ConfigError(f"search range of 'method': {error}") from None


def _check_keys(spec: StudySpec) -> None:
    """All keys are some method's, and can be fixed or searched in this study."""
    for key in QUESTION:
        if key in spec.search:
            raise ConfigError(
                f"'{key}' cannot be searched: a study is about one; start one for each"
            )
    for key in (*spec.search, *spec.recipe):
        if key != METHOD and not spec.methods_with(key):
            check_key(key, spec.methods[0])
            raise ConfigError(f"'{key}' acts after step 0, which method 'joint' has not")


def _check_constraints(spec: StudySpec) -> None:
    known = {key for method in METHODS for key in method_keys(method)}
    for constraint in spec.domain().constraints:
        metrics = [name for name in constraint.names if is_metric(name)]
        if metrics:
            raise ConfigError(
                f"constraint '{constraint.text}' mixes params with '{metrics[0]}', which is known only "
                "after training"
            )
        for name in constraint.names:
            if name not in known:
                kind, names = ("key", known) if "." in name else ("metric", OBJECTIVES)
                raise ConfigError(
                    f"constraint '{constraint.text}': unknown {kind} '{name}'; {did_you_mean(name, names)}"
                )
        if not set(constraint.names) & set(spec.search):
            raise ConfigError(
                f"constraint '{constraint.text}' has no key that is searched, so it can change nothing"
            )


def _check_ranges(spec: StudySpec, domain: Domain) -> None:
    base = spec.base_recipe()
    for key, parameter in spec.search.items():
        check_searched(base, key)
        for method in spec.methods_with(key) if key != METHOD else spec.methods:
            for value in parameter.samples() if key != METHOD else (method,):
                try:
                    spec.trial_recipe({**domain.beside(key, method), key: value})
                except ConfigError as error:
                    raise ConfigError(f"search range of '{key}': {error}") from None
