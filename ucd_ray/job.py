"""A job: one recipe with the places of its data, step cache and checkpoint, and the keys of its steps.

Made by whoever starts a run and sent to the training workers unchanged.  Needs no torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ucd_ray.checkpoint import Store
from ucd_ray.data.prepare import Prepared, open_prepared
from ucd_ray.data.step import StepImages, plan_steps
from ucd_ray.errors import ConfigError
from ucd_ray.models.base import BaseNetwork
from ucd_ray.models.weights import Normalisation, file_digest, read_normalisation
from ucd_ray.recipe import Recipe, needs_split_lists


@dataclass(frozen=True)
class Job:
    """What a worker needs to train one trial."""

    recipe: Recipe
    data: str  # directory of the prepared data set
    cache: str  # URL of the step cache
    weights: str | None  # file of pretrained backbone weights
    store: str  # URL under which the trial keeps its checkpoint
    name: tuple[str, ...]  # of the trial below `store`, such as (study, number)
    workers: int = 1
    until: int | None = None  # last step to run; None: all
    objective: str = "miou_all"  # reported after every epoch: a mIoU, forgetting or drop
    base_network: BaseNetwork | None = None  # taken as step 0, which is then not trained
    threads: tuple[int, ...] | None = None  # of a worker at each step; None: torch's own

    def __getstate__(self) -> dict[str, Any]:
        """Only the fields travel: the memory-mapped tables are opened anew where the job arrives."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def prepared(self) -> Prepared:
        """The data set, memory-mapped."""
        return open_prepared(Path(self.data))

    @cached_property
    def plan(self) -> list[StepImages]:
        """The images of every step.  Raises DataError, ConfigError."""
        recipe = self.recipe
        if needs_split_lists(recipe) and self._split_lists is None:
            raise ConfigError(
                f"setting 'disjoint' of {recipe.scenario.dataset} is a published list of images, "
                "not a rule: give the lists with --split-lists DIR (files step0.txt, step1.txt ... "
                "with one image id a line), or use --setting overlapped"
            )
        return plan_steps(
            self.prepared.train,
            self.prepared.val,
            recipe.steps,
            recipe.setting,
            seed=recipe.seed,
            holdout=recipe.data.holdout if recipe.eval.select_on == "holdout" else None,
            split_lists=self._split_lists,
        )

    @cached_property
    def normalisation(self) -> Normalisation:
        """Mean and standard deviation of the network's input.  Raises WeightsError."""
        if self.base_network is not None:
            return self.base_network.normalisation
        model = self.recipe.model
        return read_normalisation(self.weights, model.weights_mean, model.weights_std)

    def step_key(self, step: int, *, precision: str) -> dict[str, Any]:
        """Everything that determines the result of `step`: the key of the step cache.

        precision: `float32` or `bfloat16`, as it is computed
        """
        recipe, scenario = self.recipe, self.recipe.steps
        base = self.base_network
        assert (base is None) == (recipe.model.base is None), "prepare_job checks it"
        later = sorted(c for classes in scenario.steps[step + 1 :] for c in classes)
        key: dict[str, Any] = {
            "data": self.prepared.fingerprint,
            "dataset": scenario.dataset,
            "steps": scenario.steps[: step + 1],
            "background": scenario.background,
            # Later classes decide which images are left out, except in the overlapped setting.
            "later": later if recipe.setting != "overlapped" else bool(later),
            "recipe": recipe.acting_until(step),
            "split_lists": self._lists_digest(),
            "weights": self._weights_digest,
            "normalisation": [list(self.normalisation.mean), list(self.normalisation.std)],
            "workers": self.workers,
            "precision": precision,
        }
        if base is not None:
            key["base"] = base.key()
            if step == 0:  # it is scored alike by any number of workers
                del key["workers"]
        return key

    def pass_key(self, step: int, *, precision: str) -> dict[str, Any]:
        """What determines a pass over images before `step`, beside what it is for."""
        key: dict[str, Any] = {"after": self.step_key(step - 1, precision=precision)}
        if self.base_network is not None and step == 1:
            # How training images are drawn is no part of a base network's own key.
            key["recipe"] = self.recipe.acting_until(0, in_pass=True)
            key["workers"] = self.workers
        return key

    def guessed_precision(self, *, gpus: bool) -> str:
        """The precision that workers will most likely choose, without asking a device."""
        wanted = self.recipe.compute.precision
        return "bfloat16" if wanted == "bfloat16" or (wanted == "auto" and gpus) else "float32"

    @cached_property
    def _weights_digest(self) -> str | None:
        return None if self.weights is None else file_digest(self.weights)

    def _lists_digest(self) -> str | None:
        if self._split_lists is None:
            return None
        digest = hashlib.sha256()
        for step in range(len(self.recipe.steps.steps)):
            digest.update((self._split_lists / f"step{step}.txt").read_bytes())
        return digest.hexdigest()

    @property
    def _split_lists(self) -> Path | None:
        """Lists of images per step; `joint` has one step, of every image that shows a class."""
        lists = self.recipe.data.split_lists
        return None if lists is None or self.recipe.method == "joint" else Path(lists)

    def inputs(self) -> dict[str, Any]:
        """Digests of what a run of this job reads."""
        base = self.base_network
        return {
            "data": self.prepared.fingerprint,
            "weights": self._weights_digest,
            "split_lists": self._lists_digest(),
            "base": None if base is None else base.key(),
        }

    def base(self) -> Job:
        """The job of step 0 alone, which all trials share."""
        return replace(self, until=0, name=(*self.name[:-1], "base"))

    def open_cache(self) -> Store:
        """The store of the step cache."""
        return Store(self.cache)
