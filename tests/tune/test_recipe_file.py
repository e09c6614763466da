from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TINY, tiny_recipe
from ucd_ray.errors import ConfigError
from ucd_ray.tune.recipe_file import RecipeFile, Trained, read_recipe_file


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def trained(*steps: int, threads: int = 1) -> Trained:
    about = {"python": "3.11", "packages": {}, "hardware": {}, "precision": "float32"}
    return Trained.model_validate({"steps": steps, "threads": threads, **about})


def test_a_file_written_by_hand_needs_the_recipe_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "recipe: {scenario: shapes-8-4, method: mib, optim.lr_new: 0.002}\n")
    file, recipe = read_recipe_file(path)
    assert (recipe.method, recipe.optim.lr_new, file.workers) == ("mib", 0.002, 1)
    assert (file.source, file.threads(2), file.measured) == ("the file", None, ())


def test_a_written_file_gives_the_same_recipe_also_where_values_are_null(tmp_path: Path) -> None:
    recipe = tiny_recipe(**{"ucd.max_old": None, "seed": 7, "kd.weight": 1 / 3})
    file = RecipeFile(recipe=recipe.flat(), workers=2, study="s", trial=3)
    path = written(tmp_path, file.text())
    assert "ucd.max_old: null" in path.read_text()
    assert read_recipe_file(path) == (file, recipe)


def test_threads_are_known_if_every_step_tells_them() -> None:
    file = RecipeFile(recipe=TINY, trained=(trained(0, 2, threads=2), trained(1)))
    assert file.threads(3) == (2, 1, 2)
    assert file.threads(4) is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("recipe: [", ["is not YAML"]),
        ("- 1\n", ["must be a mapping with the key 'recipe'", "study best STUDY --export"]),
        ("kd.weight: 1\n", ["must be a mapping with the key 'recipe'"]),
        ("recipe: {scenario: shapes-8-4, kd.wieght: 1}\n", ["kd.wieght", "'kd.weight'"]),
        ("recipe: {}\n", ["scenario (None)"]),
        ("recipe: {scenario: shapes-8-4}\nworkers: 0\n", ["workers (0)", "greater than 0"]),
        ("recipe: {scenario: shapes-8-4}\nformat: 2\n", ["format (2)"]),
        ("recipe: {scenario: shapes-8-4}\nsteps: 2\n", ["steps (2)", "not permitted"]),
    ],
)
def test_a_wrong_file_is_one_message_with_its_name(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        read_recipe_file(path)
    assert [part for part in [str(path), *parts] if part not in str(error.value)] == []


def test_an_absent_file_and_one_that_is_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.yaml': No such file"):
        read_recipe_file(tmp_path / "absent.yaml")
    (tmp_path / "image.yaml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ConfigError, match=r"image.yaml' is not UTF-8 text"):
        read_recipe_file(tmp_path / "image.yaml")
