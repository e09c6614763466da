"""A study whose trials were really trained, in this process instead of on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import TINY
from ucd_ray.environment import threads
from ucd_ray.store import Store
from ucd_ray.train import LocalContext, train_run
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.database import Database
from ucd_ray.tune.executors import trial_jobs
from ucd_ray.tune.places import places
from ucd_ray.tune.prepare import prepare_job
from ucd_ray.tune.registration import register
from ucd_ray.tune.retention import tidy
from ucd_ray.tune.spec import StudySpec

SHORT = {"optim.iterations_base": 6, "optim.iterations_new": 3, "optim.lr_base": 0.05}


def spec_of(data: Path, **values: Any) -> StudySpec:
    """Two trials of seconds: kd.weight 10, then one that the sampler proposes."""
    content = {
        "name": "tiny",
        "recipe": {**TINY, **SHORT, "method": "mib", "data.source": str(data)},
        "search": {"kd.weight": {"low": 1, "high": 200, "log": True}},
        "first": {"kd.weight": 10.0},
        "trials": 2,
        "pruner": "none",
    }
    return StudySpec.model_validate({**content, **values})


def finish_study(spec: StudySpec) -> None:
    """Runs all trials of a study, on one thread as a worker with one CPU does."""
    base = spec.base_recipe()
    job = prepare_job(base, places(), name=(spec.name, "base"), workers=1)
    database = Database(places().database)
    register(database, spec, base, job.prepared)
    book = TrialBook(spec, database)
    while (chosen := book.next_trial()) is not None:
        number, params = chosen
        trial = trial_jobs(job, number, spec.trial_recipe(params), 0)[0]
        with threads(1):
            reports = train_run(trial, LocalContext(lambda r, n=number: book.report(n, r)))
        book.report(number, {"kind": "done", "value": reports[-1]["value"]})
        book.close(number)
        tidy(book.study, Store(job.cache), book.goals, keep_best=spec.keep_best)
