"""What trials get as params: every sampler, with keys that depend on others and with constraints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.tune.test_bridge import open_book, trial_of
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.names import EXHAUSTIVE, SAMPLERS
from ucd_ray.tune.spec import StudySpec

RANGES: dict[str, Any] = {
    "method": {"choices": ["mib", "plop", "mib+ucd"]},
    "kd.weight": {"low": 1, "high": 200, "log": True},
    "pod.weight": {"low": 0.0001, "high": 0.05, "log": True},
    "ucd.weight": {"low": 0.001, "high": 0.1, "log": True},
    "ucd.max_old": {"choices": [256, None], "when": {"ucd.max_anchors": [512]}},
    "ucd.max_anchors": {"choices": [512, None]},
    "optim.lr_new": {"low": 0.0001, "high": 0.1, "log": True},
    "optim.lr_base": {"low": 0.0001, "high": 0.1, "log": True},
}
COUNTED: dict[str, Any] = {
    **{key: RANGES[key] for key in ("method", "ucd.max_old", "ucd.max_anchors")},
    "kd.weight": {"choices": [1, 10]},
    "optim.lr_new": {"low": 0.001, "high": 0.003, "step": 0.001},
    "optim.lr_base": {"choices": [0.001, 0.01]},
}
CONSTRAINTS = ("optim.lr_new <= optim.lr_base", "ucd.weight < 0.01 * kd.weight")


def spec_of(sampler: str, **values: Any) -> StudySpec:
    counted = sampler in EXHAUSTIVE
    content = {
        "name": "study",
        "recipe": {key: value for key, value in TINY.items() if key != "method"},
        "search": COUNTED if counted else RANGES,
        "constraints": CONSTRAINTS[:1] if counted else CONSTRAINTS,
        "sampler": sampler,
        "trials": 100,
    }
    return StudySpec.model_validate({**content, **values})


def run(book: TrialBook, trials: int) -> list[dict[str, Any]]:
    """Params of trials whose value follows from them; one of three is pruned, as far as possible."""
    found = []
    for _ in range(trials):
        chosen = book.next_trial()
        assert chosen is not None
        number, params = chosen
        value = 50.0 + len(params) - 100 * params["optim.lr_new"]
        if number % 3 == 1:
            book.reasons[number] = ("PRUNER", "weak")
        else:
            book.report(number, {"kind": "done", "value": value})
        book.close(number)
        found.append(params)
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trials_have_the_keys_that_exist_and_no_constraint_is_broken(
    tmp_path: Path, sampler: str
) -> None:
    spec = spec_of(sampler)
    domain = spec.domain()
    found = run(open_book(tmp_path, spec), 15)
    for params in found:
        assert params == {key: params[key] for key in domain.order if domain.exists(key, params)}
        assert all(spec.search[key].holds(value) for key, value in params.items())
        assert domain.broken(params) is None
        spec.trial_recipe(params)  # raises for keys that the method has not
    assert len({str(params) for params in found}) == 15
    assert len({params["method"] for params in found}) > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_that_goes_on_proposes_what_it_would_have(tmp_path: Path, sampler: str) -> None:
    spec = spec_of(sampler)
    whole = run(open_book(tmp_path / "one", spec), 9)
    parts = run(open_book(tmp_path / "other", spec), 4)
    open_book(tmp_path / "other", spec).next_trial()  # its driver dies
    parts += run(open_book(tmp_path / "other", spec), 5)
    assert parts == whole


def test_an_exhaustive_sampler_tries_the_points_that_are_left_and_ends(tmp_path: Path) -> None:
    spec = spec_of("grid")
    book = open_book(tmp_path, spec)
    # lr: 4 pairs fit.  mib: 2 weights, plop: 1, mib+ucd: 2 weights, anchors 512 with 2 or all.
    assert book.wanted == 4 * (2 + 1 + 2 * 3) == 36
    found = run(book, 36)
    assert book.next_trial() is None
    assert all(point in found for point in spec.domain().points)


def test_an_exhaustive_sampler_completes_what_is_given_and_tries_it_once(tmp_path: Path) -> None:
    first = [{"method": "mib+ucd", "ucd.max_anchors": 512}, {"method": "plop"}]
    spec = spec_of("grid", first=first)
    found = run(open_book(tmp_path, spec), 36)
    assert found[0].items() >= first[0].items()
    assert found[1].items() >= first[1].items()
    assert len({str(sorted(params.items())) for params in found}) == 36


def test_first_trials_wait_in_their_order_also_after_a_kill(tmp_path: Path) -> None:
    first = [{"method": method, "kd.weight": 5} for method in ("mib", "mib+ucd")]
    spec = spec_of("random", first=[*first, {"method": "plop"}])
    one = spec.model_copy(update={"first": spec.firsts[:1]})
    open_book(tmp_path, one)  # killed after it had queued the first
    book = open_book(tmp_path, spec)
    methods = [chosen[1]["method"] for _ in range(3) if (chosen := book.next_trial())]
    assert methods == ["mib", "mib+ucd", "plop"]
    assert len(book.study.get_trials()) == 3


def test_where_the_sampler_finds_nothing_that_fits_params_are_drawn(tmp_path: Path) -> None:
    narrow = "0.0010 * kd.weight < ucd.weight < 0.0011 * kd.weight"
    search = {k: v for k, v in RANGES.items() if k != "pod.weight"}
    search["method"] = {"choices": ["mib+ucd"]}
    spec = spec_of("random", constraints=[narrow], search=search)
    found = run(open_book(tmp_path, spec), 3)
    assert all(spec.domain().broken(params) is None for params in found)
    assert len({params["ucd.weight"] for params in found}) == 3


def test_a_proposal_that_is_not_taken_leaves_no_trace(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of("tpe", constraints=["kd.weight > 150"]))
    run(book, 8)
    trials = book.study.get_trials()
    assert [trial.number for trial in trials] == list(range(8))
    again = open_book(tmp_path, book.spec)
    for number in range(8):
        assert trial_of(again, number).params == trials[number].params
