"""Studies as clients see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ucd_ray.service.states import Condition

if TYPE_CHECKING:  # clients read views too, without the service
    from ucd_ray.service.studies import StudyRow


class Job(BaseModel):
    """The Ray job of a study."""

    submission_id: str
    dashboard: str | None
    """Its page in the Ray dashboard."""


class StudyView(BaseModel):
    """One study.  Times are seconds since 1970 (UTC)."""

    id: str
    name: str
    """As its owner named it."""
    study: str
    """Its name in the library: for `ucd-ray` commands on the cluster."""
    owner: str
    external_id: str | None
    state: str
    conditions: list[Condition]
    """Why nothing is happening."""
    priority: int
    parallelism: int | None
    """Trials at a time, at most."""
    share: int | None
    """Trials at a time that the cluster has for it now."""
    labels: dict[str, str]
    shared: bool
    attempt: int
    """Ray jobs so far."""
    job: Job | None
    create_time: float
    update_time: float
    start_time: float | None
    end_time: float | None
    delete_time: float | None
    purge_time: float | None
    etag: str
    spec: dict[str, Any] | None
    """As it was created; null in a list with view=BASIC."""


class StudyList(BaseModel):
    """One page of studies."""

    studies: list[StudyView]
    next_page_token: str | None
    """Null on the last page."""


class PlanView(BaseModel):
    """What a study would do and cost."""

    trials: int
    """Trials to be run."""
    replicates: int
    """Runs of a trial."""
    gang: dict[str, float]
    """Workers of one trial; CPUs and GPUs of one worker."""
    base_steps: int
    """Base steps that would be trained."""
    unit: str
    """What the hours are of: GPU or CPU."""
    hours: tuple[float, float]
    """Of that unit: at least and at most, if nothing is stopped early."""
    searched: list[str]
    """Keys that vary."""
    warm_start: list[str]
    """What becomes of the trials of each study to learn from, in words."""


def study_view(row: StudyRow, dashboard: str | None = None, *, full: bool = True) -> StudyView:
    """The view of a row.  dashboard: address of the cluster's dashboard for people"""
    page = f"{dashboard}/#/jobs/{row.job}" if dashboard and row.job else None
    return StudyView(
        id=row.id,
        name=row.title,
        study=row.name,
        owner=row.owner,
        external_id=row.external_id,
        state=row.state,
        conditions=[Condition(**condition) for condition in row.conditions],
        priority=row.priority,
        parallelism=row.parallelism,
        share=row.share,
        labels=row.labels,
        shared=row.shared,
        attempt=row.attempt,
        job=Job(submission_id=row.job, dashboard=page) if row.job else None,
        create_time=row.created,
        update_time=row.updated,
        start_time=row.started,
        end_time=row.ended,
        delete_time=row.deleted,
        purge_time=row.purge,
        etag=row.etag,
        spec=row.spec if full else None,
    )
