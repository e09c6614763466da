from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from ucd_ray.errors import ScenarioError
from ucd_ray.scenarios import (
    DATASET_CLASSES,
    KNOWN_SCENARIOS,
    Scenario,
    parse_scenario,
    read_scenario,
)


def singles(first: int, last: int) -> list[list[int]]:
    return [[c] for c in range(first, last + 1)]


def span(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


# Class lists as the publications give them, written out by hand where they are short.
STEPS: dict[str, list[list[int]]] = {
    "voc-19-1": [span(1, 19), [20]],
    "voc-15-5": [span(1, 15), [16, 17, 18, 19, 20]],
    "voc-15-1": [span(1, 15), [16], [17], [18], [19], [20]],
    "voc-10-10": [span(1, 10), span(11, 20)],
    "voc-10-1": [span(1, 10), *singles(11, 20)],
    "voc-5-3": [
        [1, 2, 3, 4, 5],
        [6, 7, 8],
        [9, 10, 11],
        [12, 13, 14],
        [15, 16, 17],
        [18, 19, 20],
    ],
    "ade-100-50": [span(1, 100), span(101, 150)],
    "ade-100-10": [
        span(1, 100),
        span(101, 110),
        span(111, 120),
        span(121, 130),
        span(131, 140),
        span(141, 150),
    ],
    "ade-50-50": [span(1, 50), span(51, 100), span(101, 150)],
    "ade-100-5": [span(1, 100), *(span(c, c + 4) for c in range(101, 150, 5))],
    "cityscapes-13-6": [span(1, 13), [14, 15, 16, 17, 18, 19]],
    "cityscapes-13-1": [span(1, 13), [14], [15], [16], [17], [18], [19]],
    "cityscapes-17-2": [span(1, 17), [18, 19]],
    "msrc-16-5": [span(1, 16), [17, 18, 19, 20, 21]],
    "msrc-16-1": [span(1, 16), [17], [18], [19], [20], [21]],
    "msrc-11-5": [span(1, 11), [12, 13, 14, 15, 16], [17, 18, 19, 20, 21]],
    "shapes-8-4": [span(1, 8), [9, 10, 11, 12]],
    "shapes-8-2": [span(1, 8), [9, 10], [11, 12]],
}


def test_the_class_lists_below_are_those_of_all_known_scenarios() -> None:
    assert set(STEPS) == set(KNOWN_SCENARIOS)


@pytest.mark.parametrize("name", KNOWN_SCENARIOS)
def test_a_known_scenario_learns_exactly_its_classes_in_order(name: str) -> None:
    scenario = parse_scenario(name)
    assert [list(step) for step in scenario.steps] == STEPS[name]
    assert scenario.name == name
    assert scenario.dataset == name.split("-")[0]


@pytest.mark.parametrize("name", KNOWN_SCENARIOS)
def test_a_known_scenario_learns_every_class_of_its_data_set_once(name: str) -> None:
    scenario = parse_scenario(name)
    learned = list(chain.from_iterable(scenario.steps))
    assert learned == span(1, DATASET_CLASSES[scenario.dataset].num_classes or 0)
    assert sum(scenario.classes_per_step()) == len(learned) + 1


@pytest.mark.parametrize(
    ("name", "scored"), [("voc-15-5", True), ("cityscapes-13-6", True), ("ade-100-50", False)]
)
def test_background_is_scored_where_it_is_a_class(name: str, scored: bool) -> None:
    assert parse_scenario(name).background is scored


def test_any_split_that_fits_parses() -> None:
    steps = parse_scenario("voc-12-4").steps
    assert [len(step) for step in steps] == [12, 4, 4]
    assert parse_scenario("voc-20-1").steps == (tuple(span(1, 20)),)


def test_channels_are_background_then_classes_in_learning_order() -> None:
    scenario = Scenario(dataset="voc", steps=((8, 12), (3,), (20, 1)), background=True)
    assert scenario.classes_until(0) == (0, 8, 12)
    assert scenario.classes_until(2) == (0, 8, 12, 3, 20, 1)
    assert scenario.classes_per_step() == (3, 1, 2)


def test_joined_learns_the_same_channels_in_one_step() -> None:
    scenario = parse_scenario("shapes-8-2")
    joined = scenario.joined()
    assert len(joined.steps) == 1
    assert joined.classes_until(0) == scenario.classes_until(2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("voc-15-11", "5 must be a multiple of 11"),
        ("voc-15-0", "must be a multiple of 0"),
        ("voc-0-5", "voc has 20 classes"),
        ("voc-21-1", "voc has 20 classes"),
        ("voc15-5", "did you mean 'voc-15-5'"),
        ("vocc-15-5", "did you mean 'voc-15-5'"),
        ("coco-40-40", "unknown scenario"),
        ("", "voc-15-1"),
        ("folder-3-1", "needs --data DIR"),
    ],
)
def test_a_name_that_does_not_fit_is_refused_with_a_hint(name: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as caught:
        parse_scenario(name)
    assert f"'{name}'" in str(caught.value)


def test_a_folder_scenario_needs_the_number_of_classes() -> None:
    assert parse_scenario("folder-3-1", num_classes=4).steps == ((1, 2, 3), (4,))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_gives_steps_and_takes_its_name_from_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "animals.yaml", "dataset: voc\nsteps: [[8, 10], [12]]\n")
    scenario = parse_scenario(str(path))
    assert scenario == Scenario(
        dataset="voc", steps=((8, 10), (12,)), background=True, name="animals"
    )


def test_a_file_may_give_an_order_and_sizes_instead(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml", "dataset: ade\norder: [5, 3, 9, 1]\nsizes: [2, 1, 1]\n")
    scenario = read_scenario(path)
    assert scenario.steps == ((5, 3), (9,), (1,))
    assert scenario.background is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: [", "is not YAML"),
        ("- 1\n", "must be a mapping"),
        ("steps: [[1], [2]]", "dataset: Field required"),
        ("dataset: vok\nsteps: [[1]]", "did you mean 'voc'"),
        ("dataset: voc\n", "steps: Field required"),
        ("dataset: voc\nsteps: [[1], [1]]", "more than once"),
        ("dataset: voc\nsteps: [[1], [21]]", r"\[21\] are outside 1..20"),
        ("dataset: voc\nsteps: [[0, 1]]", r"\[0\] are outside"),
        ("dataset: voc\nsteps: [[1], []]", "at least one class"),
        ("dataset: voc\nsteps: []", "at least one class"),
        ("dataset: voc\nsteps: [[1, dog]]", "steps.0.1"),
        ("dataset: voc\nstep: [[1]]", "unknown key 'step'; did you mean 'steps'"),
        ("dataset: voc\nsteps: [[1]]\norder: [1]\nsizes: [1]", "not both"),
        ("dataset: voc\norder: [1, 2]\nsizes: [1]", "summing to the length"),
        ("dataset: voc\norder: [1, 2]\n", "must both be given"),
        ("dataset: voc\norder: [1, 2]\nsizes: [one, one]", "must both be given"),
        ("dataset: voc\norder: [1, 2]\nsizes: [3, -1]", "must both be given"),
        ("dataset: voc\nsteps: [[1]]\n7: x", "unknown key '7'"),
    ],
)
def test_a_wrong_file_is_refused_naming_file_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path / "mine.yaml", text)
    with pytest.raises(ScenarioError, match=message) as caught:
        read_scenario(path)
    assert str(path) in str(caught.value)


def test_an_absent_or_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"absent\.yaml"):
        parse_scenario(str(tmp_path / "absent.yaml"))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ScenarioError, match=r"binary\.yaml"):
        parse_scenario(str(binary))
