"""Networks of studies and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.networks import random_network
from ucd_ray.checkpoint import StepCache, Store
from ucd_ray.data.prepare import Prepared
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.tune.best import measured_trial
from ucd_ray.tune.database import Database
from ucd_ray.tune.networks import (
    has_network,
    open_network,
    run_network,
    save_network,
    study_network,
)
from ucd_ray.tune.places import places
from ucd_ray.tune.run import run_job, run_prepared


def test_a_study_gives_the_network_of_its_best_trial(finished: Database) -> None:
    best = measured_trial(finished, "tiny")
    network = open_network("tiny")
    job = run_job(best.recipe)
    entry = StepCache(Store(places().steps)).get(job.step_key(2, precision="float32"))
    assert entry is not None
    assert {name: value.sum() for name, value in network.weights.items()} == {
        name: value.sum() for name, value in entry.weights.items()
    }
    assert (network.info.step, network.info.class_names[-1]) == (2, "drop")
    assert network.info.origin["study"] == "tiny"
    assert network.info.origin["trial"] == best.number


def test_a_network_after_an_earlier_step_knows_fewer_classes(finished: Database) -> None:
    info = open_network("tiny", step=1).info
    assert info.class_ids == tuple(range(11))
    assert open_network("tiny", step=0).segmenter().num_classes == 9
    with pytest.raises(StudyError, match="has no step 3; its steps: 0 to 2"):
        open_network("tiny", step=3)


def test_a_network_that_is_no_longer_kept_says_how_to_make_it_again(finished: Database) -> None:
    other = 1 - measured_trial(finished, "tiny").number
    with pytest.raises(StudyError) as error:
        open_network("tiny", trial=other)
    text = str(error.value)
    assert f"the network of trial {other} of study 'tiny' after step 2 is no longer kept" in text
    assert "--keep-best" in text
    assert [has_network(measured_trial(finished, "tiny", n)) for n in (1 - other, other)] == [
        *(True, False),
    ]
    assert f"`ucd-ray study best tiny --trial {other} --export recipe.yaml`" in text
    assert "`ucd-ray train --recipe recipe.yaml --save network.safetensors`" in text


def test_a_study_without_class_names_says_so(finished: Database) -> None:
    with pytest.raises(StudyError, match="'tiny' does not tell its class names"):
        study_network(measured_trial(finished, "tiny"), {})


def test_a_file_is_opened_by_its_path_and_takes_neither_trial_nor_step(tmp_path: Path) -> None:
    network, path = random_network(), tmp_path / "one.safetensors"
    save_network(network, path)
    assert open_network(str(path)).info == network.info
    with pytest.raises(ConfigError, match="--trial goes with a study"):
        open_network(str(path), trial=0)
    with pytest.raises(ConfigError, match="--step goes with a study"):
        open_network(str(path), step=0)


def test_an_unknown_study_is_named() -> None:
    with pytest.raises(StudyError, match="no study 'nothing'"):
        open_network("nothing")


def test_a_run_gives_its_last_network(shapes: Prepared) -> None:
    from rich.console import Console

    from tests.conftest import tiny_recipe

    short = {"optim.iterations_base": 1, "optim.iterations_new": 1}
    recipe = tiny_recipe(**{"data.source": str(shapes.path), "method": "finetune", **short})
    job = run_job(recipe)
    result = run_prepared(job, address=None, console=Console(quiet=True))
    network = run_network(result, job.prepared.classes)
    assert network.info.class_names == shapes.classes
    assert torch.isfinite(network.segmenter()(torch.zeros(1, 3, 32, 32)).logits).all()
