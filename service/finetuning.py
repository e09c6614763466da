"""Fine-tuning beside a study: the best trial's recipe without distillation, as a study of one trial."""

from __future__ import annotations

import hashlib
import json
from itertools import count
from typing import Any

import sqlalchemy as sa

from ucd_ray.errors import CheckpointError, StudyError
from ucd_ray.service import creation
from ucd_ray.service.answering import check_started
from ucd_ray.service.auth import Viewer
from ucd_ray.service.bodies import NewStudy
from ucd_ray.service.core import Core
from ucd_ray.service.once import Answer, Once, answered_once
from ucd_ray.service.problems import Problem
from ucd_ray.service.registered import FILES
from ucd_ray.service.specs import LONGEST_TITLE
from ucd_ray.service.states import PAUSED, PAUSING, QUEUED, RUNNING, SUCCEEDED
from ucd_ray.service.studies import StudyRow, row_of
from ucd_ray.service.tables import study_table
from ucd_ray.tune.best import MeasuredTrial, measured_trial
from ucd_ray.tune.finetuning import finetuning_study
from ucd_ray.tune.networks import has_network

SUFFIX = "-finetune"  # of its name
GOES_ON = (QUEUED, RUNNING, PAUSING, PAUSED)


def start(study: StudyRow, viewer: Viewer, core: Core, key: str | None) -> Answer:
    """Starts it: 201, or 200 with the one that the viewer has.

    Raises Problem (409) as long as no trial is complete, ConfigError.
    """

    def answer(once: Once | None) -> Answer:
        return creation.start(_asked(study, viewer, core), viewer, core, once)

    content = (f"POST /v1/studies/{study.id}:finetune",)
    return answered_once(core.database, viewer.owner, key, content, answer)


def _asked(study: StudyRow, viewer: Viewer, core: Core) -> NewStudy:
    """The request that starts it."""
    spec = _spec(study, _best(study, core))
    return NewStudy(
        spec=spec,
        external_id=_external_id(spec, viewer, core),
        priority=study.priority,
        labels=study.labels,
    )


def _best(study: StudyRow, core: Core) -> MeasuredTrial:
    check_started(core, study)
    core.database.optuna_storage()  # makes Optuna's tables, if they are not there yet
    try:
        return measured_trial(core.database, study.name)
    except StudyError as error:
        raise Problem(409, "NO_COMPLETE_TRIAL", str(error)) from None


def _spec(study: StudyRow, best: MeasuredTrial) -> dict[str, Any]:
    """Its spec as clients see it, with the registered names that the study has."""
    title = f"{study.title[: LONGEST_TITLE - len(SUFFIX)]}{SUFFIX}"
    spec = finetuning_study(best.spec, best.params, name=title).model_dump(mode="json")
    given = study.spec.get("recipe", {})
    names = {key: given[key] for key in FILES.keys() & given.keys()}
    return {**spec, "recipe": {**spec["recipe"], **names}}


def _external_id(spec: dict[str, Any], viewer: Viewer, core: Core) -> str:
    """Of the viewer's study with this spec that goes on, or whose network is there; else a fresh one.

    So those who ask at once get the same study, and who asks after it has failed, or after its network was
    removed from the step cache, gets another one.
    """
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
    for attempt in count():
        external_id = f"finetune-{digest}-{attempt}"
        row = _known(external_id, viewer, core)
        if row is None or _serves(row, core):
            return external_id
    raise AssertionError("count() ends")


def _known(external_id: str, viewer: Viewer, core: Core) -> StudyRow | None:
    of = (study_table.c.owner == viewer.owner) & (study_table.c.external_id == external_id)
    query = sa.select(study_table).where(of)
    found = core.database.read(lambda connection: connection.execute(query).first())
    return None if found is None else row_of(found)


def _serves(row: StudyRow, core: Core) -> bool:
    if row.state != SUCCEEDED:
        return row.state in GOES_ON and row.deleted is None
    try:
        return has_network(measured_trial(core.database, row.name))
    except (StudyError, CheckpointError):  # its trial was cancelled or has failed
        return False
