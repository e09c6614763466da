"""A recipe in a file, with what it needs to give the same numbers again and the numbers it gave.

`ucd-ray study best STUDY --export FILE` writes one, `ucd-ray train --recipe FILE` reads it.  Only
`recipe` is needed: a file written by hand may leave the rest out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from ucd_ray.config import Config
from ucd_ray.errors import ConfigError
from ucd_ray.recipe import Recipe, describe

HEAD = """\
# {what}
# `ucd-ray train --recipe FILE` trains it again: the same numbers on the same machine.
"""


class Inputs(Config):
    """Digests of what a run read."""

    data: str
    """Fingerprint of the prepared data set."""
    weights: str | None = None
    """sha256 of the file of pretrained weights."""
    split_lists: str | None = None
    """sha256 of the published lists of images."""
    base: dict[str, Any] | None = None
    """sha256 and channels of the network that was taken as step 0."""


class Trained(Config):
    """What some steps were trained with."""

    steps: tuple[int, ...]
    """Which steps."""
    python: str
    """Version."""
    packages: dict[str, str]
    """Versions by name."""
    commit: str | None = None
    """Git commit of ucd-ray, if it ran from a checkout; `+changes` if files differed from it."""
    hardware: dict[str, str]
    """Processor, its instructions, and the device that trained."""
    threads: Annotated[int, Field(gt=0)]
    """Threads of one worker: sums are split by them."""
    precision: Literal["float32", "bfloat16"]
    """As it was computed."""


class OfReplicate(Config):
    """Under what one of several runs of a trial was measured."""

    number: int
    """Which of them: 0, 1, ..."""
    seed: int
    """Its seed."""
    order: int
    """Its order of classes; 0: the published one."""


class Measured(Config):
    """What was measured after a step, in percent; null where no class has truth pixels."""

    step: int
    """After which step."""
    select: dict[str, float | None]
    """On the images that search looks at."""
    val: dict[str, float | None]
    """On the validation images."""


class RecipeFile(Config):
    """A recipe and, where it was trained before, everything about that."""

    format: Literal[1] = 1
    """Version of this format."""
    recipe: dict[str, Any]
    """Values under their flat keys; defaults fill the rest."""
    workers: Annotated[int, Field(gt=0)] = 1
    """DDP training workers."""
    study: str | None = None
    """The study that it comes from."""
    trial: int | None = None
    """Its number there."""
    objective: str | None = None
    """What the study was after."""
    value: float | None = None
    """The objective of this trial, of several the first."""
    values: dict[str, float] = {}
    """Several objectives, each with its value."""
    replicate: OfReplicate | None = None
    """The one of the trial's replicates that this is; null: it has one."""
    mean: float | None = None
    """The objective over all replicates."""
    inputs: Inputs | None = None
    """What it read."""
    trained: tuple[Trained, ...] = ()
    """What its steps were trained with."""
    measured: tuple[Measured, ...] = ()
    """The numbers of its steps."""

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        if self.study is None:
            return "the file"
        one = "" if self.replicate is None else f"replicate {self.replicate.number} of "
        return f"{one}trial {self.trial} of study '{self.study}'"

    def threads(self, steps: int) -> tuple[int, ...] | None:
        """Threads of a worker at each of so many steps; None if the file does not say."""
        found = {step: part.threads for part in self.trained for step in part.steps}
        wanted = [found.get(step) for step in range(steps)]
        return None if None in wanted else tuple(number for number in wanted if number)

    def text(self) -> str:
        """The file as YAML."""
        what = f"{self.source}, exported by ucd-ray" if self.study else "A recipe of ucd-ray"
        content = self.model_dump(mode="json", exclude_none=True)
        body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        return HEAD.format(what=what[0].upper() + what[1:]) + body


def read_recipe_file(path: Path) -> tuple[RecipeFile, Recipe]:
    """The file at `path` and its checked recipe.  Raises ConfigError naming the file and the key."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read recipe '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"recipe '{path}' is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe '{path}' is not YAML: {error}") from None
    if not isinstance(content, dict) or "recipe" not in content:
        raise ConfigError(
            f"recipe '{path}' must be a mapping with the key 'recipe', as "
            "`ucd-ray study best STUDY --export FILE` writes it"
        )
    try:
        file = RecipeFile.model_validate(content)
        return file, Recipe.from_flat(file.recipe)
    except ValidationError as error:
        raise ConfigError(f"recipe '{path}': {describe(error)}") from None
    except ConfigError as error:
        raise ConfigError(f"recipe '{path}': {error}") from None
