"""Where a study stands: who runs it, what is open, what of its budgets is used, what it cost."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ucd_ray.errors import CheckpointError, StudyError
from ucd_ray.step_eviction import stored_steps
from ucd_ray.store import Store
from ucd_ray.tune import commands
from ucd_ray.tune.chunks import count_ended
from ucd_ray.tune.database import Database
from ucd_ray.tune.events import STUDY_KIND, last_lines
from ucd_ray.tune.goals import goals_of
from ucd_ray.tune.ledger import Spent, held, totals
from ucd_ray.tune.manage import Driver, driver_of
from ucd_ray.tune.objectives import Best, best_of
from ucd_ray.tune.places import Places
from ucd_ray.tune.results import state_of, stored_trials
from ucd_ray.tune.retention import entries_of
from ucd_ray.tune.revisions import revisions
from ucd_ray.tune.seen import wanted
from ucd_ray.tune.spec import parsed
from ucd_ray.tune.taken import taken

PROGRESS_KINDS = ("epoch", "pass", "step", "start", "lost", "smaller")  # lines that tell how far


@dataclass(frozen=True)
class OpenTrial:
    """A trial that has not ended."""

    number: int
    state: str  # QUEUED, WAITING or RUNNING
    reason: str | None  # of WAITING
    last_step: int | None  # that it has finished
    said: str | None  # its last line of progress
    params: dict[str, Any]
    lost: int  # how often it lost its workers


@dataclass(frozen=True)
class Budget:
    """One budget: what of it is used.  limit None: there is none."""

    name: str
    used: float
    limit: float | None

    @property
    def is_used(self) -> bool:
        """Whether nothing of it is left."""
        return self.limit is not None and self.used >= self.limit


@dataclass(frozen=True)
class Overview:
    """See the module."""

    name: str
    state: str  # running, paused, stopping, complete, not running
    driver: Driver | None
    created: float
    about: dict[str, Any]
    goals: str  # in words
    states: dict[str, int]  # trials by our words
    best: Best | None
    open: list[OpenTrial]
    revisions: list[dict[str, Any]]  # number, created and changes; none: it was never edited
    taken: dict[str, int]  # trials taken over, by study
    base: str | None  # last line of the base step, if it is what runs
    said: str | None  # the last line about the study as a whole
    budgets: list[Budget]
    ledger: dict[str, Spent]
    checkpoint_bytes: int | None  # None: the storage cannot be read
    step_bytes: int | None  # of its trials' entries in the step cache

    def content(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def overview(database: Database, name: str, where: Places) -> Overview:
    """Where a study stands now.  Raises StudyError if there is none."""
    stored = database.stored_spec(name)
    driver = driver_of(database, name)
    trials = stored_trials(database, name)
    lines = last_lines(database, name, *PROGRESS_KINDS)
    notes = last_lines(database, name, STUDY_KIND)
    row = next(row for row in database.studies() if row.name == name)
    ledger = totals(database, name)
    goals = goals_of(stored)
    best = best_of(goals, trials)
    driven = driver is not None
    opened = [
        _open_trial(t, lines.get(t.number), driven) for t in trials if not t.state.is_finished()
    ]
    wanted = wanted_trials(database, stored)
    budgets = _budgets(stored, finished(trials), _since(trials, best), wanted, ledger)
    checkpoints, steps = _disk(where, name, trials)
    return Overview(
        name=name,
        state=_state(database, name, driver, budgets),
        driver=driver,
        created=row.created,
        about=database.about(name),
        goals=goals.words,
        states=dict(Counter(state_of(trial, driven=driven)[0] for trial in trials)),
        best=best,
        open=opened,
        revisions=[
            {"number": r.number, "created": r.created, "changes": r.changes}
            for r in revisions(database, name)
        ],
        taken=dict(Counter(trial.source for trial in taken(database, name))),
        base=_base_line(lines.get(None), trials, driven),
        said=notes[None].text if None in notes else None,
        budgets=budgets,
        ledger=ledger,
        checkpoint_bytes=checkpoints,
        step_bytes=steps,
    )


def finished(trials: list[FrozenTrial]) -> int:
    """Trials that count against the study's budget of trials."""
    return sum(trial.state.is_finished() for trial in trials)


def wanted_trials(database: Database, stored: dict[str, Any]) -> int:
    """Trials of a whole study: what its spec asks for, or all points of an exhaustive sampler."""
    with contextlib.suppress(StudyError):  # of another version
        return wanted(database, parsed(stored))
    return int(stored["trials"])


def budgets_of(database: Database, name: str) -> list[Budget]:
    """What of a study's budgets is used; that of trials first.  Raises StudyError if there is none."""
    stored, since = database.stored_spec(name), 0
    ended = count_ended(database, name)
    if stored.get("patience") is not None:  # else no trial need be read
        trials = stored_trials(database, name)
        since = _since(trials, best_of(goals_of(stored), trials))
    wanted = wanted_trials(database, stored)
    return _budgets(stored, ended, since, wanted, totals(database, name))


def _state(database: Database, name: str, driver: Driver | None, budgets: list[Budget]) -> str:
    trials = budgets[0]
    if driver is None and trials.is_used:
        return "complete"
    if driver is not None and (
        any(budget.is_used for budget in budgets)
        or commands.is_stopping(database, name, driver.started)
    ):
        return "stopping"
    if commands.is_paused(database, name):
        return "paused"
    return "not running" if driver is None else "running"


def _open_trial(trial: FrozenTrial, line: Any, driven: bool) -> OpenTrial:
    state, _, reason = state_of(trial, driven=driven)
    attributes = trial.user_attrs
    said = None if line is None else line.text.removeprefix(f"trial {trial.number} ")
    return OpenTrial(
        number=trial.number,
        state=state,
        reason=reason,
        last_step=attributes.get("last_step"),
        said=said,
        params=dict(trial.params) or dict(trial.system_attrs.get("fixed_params", {})),
        lost=len(attributes.get("lost", ())),
    )


def _base_line(line: Any, trials: list[FrozenTrial], driven: bool) -> str | None:
    """The base step is trained before any trial is taken."""
    started = any(trial.state != TrialState.WAITING for trial in trials)
    return line.text if line is not None and driven and not started else None


def _since(trials: list[FrozenTrial], best: Best | None) -> int:
    """Trials that have ended since the best one was taken."""
    if best is None:
        return 0
    return sum(t.state.is_finished() and t.number > best.newest for t in trials)


def _budgets(
    stored: dict[str, Any], ended: int, since: int, wanted: int, ledger: dict[str, Spent]
) -> list[Budget]:
    wall = ledger.get("wall", Spent()).cpu / 3600
    return [
        Budget("trials", ended, wanted),
        Budget("h of wall time", wall, stored.get("max_hours")),
        Budget("GPU h", held(ledger).gpu / 3600, stored.get("max_gpu_hours")),
        Budget("trials since the best", since, stored.get("patience")),
    ]


def _disk(where: Places, name: str, trials: list[FrozenTrial]) -> tuple[int | None, int | None]:
    """Bytes of a study's checkpoints, and of its trials' entries in the step cache."""
    digests = {digest for trial in trials for digest in entries_of(trial)}
    try:
        checkpoints = sum(file.size for file in Store(where.runs).files(name))
        steps = stored_steps(Store(where.steps)) if digests else []
    except CheckpointError:
        return None, None
    return checkpoints, sum(step.size for step in steps if step.digest in digests)
