"""The results of a study: its trials and times, and the rows of a view that someone asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ucd_ray.errors import ConfigError, StudyError, did_you_mean
from ucd_ray.tune.chunks import state_and_reason
from ucd_ray.tune.database import Database
from ucd_ray.tune.paper import paper_view
from ucd_ray.tune.selection import first_batch, select
from ucd_ray.tune.views import classes_view, runs_view, steps_view, trials_view

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


VIEWS: dict[str, Callable[..., pa.RecordBatchReader]] = {
    "trials": trials_view,
    "runs": runs_view,
    "steps": steps_view,
    "classes": classes_view,
    "paper": paper_view,
}


def trials_table(database: Database, name: str) -> pa.Table:
    """One row per trial, see `trials_view`.  Raises StudyError."""
    return trials_view(database, name).read_all()


def read(
    database: Database,
    study: str,
    view: str = "trials",
    *,
    filters: Sequence[str] = (),
    order_by: Sequence[str] = (),
    columns: Sequence[str] = (),
    limit: int | None = None,
    **options: Any,
) -> pa.RecordBatchReader:
    """The wanted rows of a view: at least one, checked before the first is given out.

    filters, order_by, columns, limit: see `select`; options: of the view, such as `paper_view`'s
    Raises ConfigError for an unknown view or column, StudyError if there is no such study or row.
    """
    rows = select(
        open_view(database, study, view, **options),
        filters=filters,
        order_by=order_by,
        columns=columns,
        limit=limit,
    )
    found = first_batch(rows)
    if found is not None:
        return found
    if first_batch(trials_view(database, study)) is None:
        hint = f"`ucd-ray study show {study}` tells more"
        raise StudyError(f"study '{study}' has no trials yet; {hint}")
    if filters and first_batch(open_view(database, study, view, **options)) is not None:
        shown = " and ".join(f"'{text}'" for text in filters)
        raise StudyError(
            f"no row of view '{view}' of study '{study}' matches {shown}; without --filter there are some"
        )
    raise StudyError(f"study '{study}' has nothing for view '{view}' yet: no trial ended a step")


def open_view(database: Database, study: str, view: str, **options: Any) -> pa.RecordBatchReader:
    """The view called `view`.  Raises ConfigError if there is none, StudyError without the study."""
    if view not in VIEWS:
        raise ConfigError(f"unknown view '{view}'; {did_you_mean(view, VIEWS)}")
    return VIEWS[view](database, study, **options)


def stored_trials(database: Database, name: str) -> list[FrozenTrial]:
    """The trials of a study by number; none if its driver died before it asked for one."""
    import optuna

    try:
        study = optuna.load_study(study_name=name, storage=database.optuna_storage())
    except KeyError:
        return []
    return study.get_trials(deepcopy=False)


def state_of(trial: FrozenTrial, *, driven: bool) -> tuple[str, str | None, str | None]:
    """A trial's state in our words, its reason code and the reason; driven: its study has a driver."""
    return state_and_reason(trial.state.name, trial.user_attrs, driven=driven)
