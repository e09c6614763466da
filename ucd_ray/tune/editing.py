"""Edits of a study and trials that a user queues: asked for from any process, carried out by one.

The driver of a study carries them out through the table of commands; without one it is done here, under
a claim that keeps drivers out meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from ucd_ray.errors import ConfigError, StudyError, UcdRayError
from ucd_ray.recipe import check_key, micro_batches
from ucd_ray.tune import commands
from ucd_ray.tune.database import Database
from ucd_ray.tune.edits import Edit, changes, check_open, revised
from ucd_ray.tune.events import tell
from ucd_ray.tune.explain import show_range, show_value
from ucd_ray.tune.limits import complete_results
from ucd_ray.tune.manage import WAIT_S, Asked, Outcome, claimed, driver_of
from ucd_ray.tune.one_trial import stored_trial
from ucd_ray.tune.progress import show_params
from ucd_ray.tune.results import stored_trials
from ucd_ray.tune.revisions import History, history, store
from ucd_ray.tune.seen import open_study
from ucd_ray.tune.spec import StudySpec, parsed

if TYPE_CHECKING:
    from ucd_ray.tune.bridge import TrialBook

QUEUED_BY = "command"  # user attribute of a queued trial: id of the command that asked for it


def edit(database: Database, study: str, wanted: Edit, *, wait_s: float = WAIT_S) -> Outcome:
    """Changes search space, budgets or parallelism of a study.  Raises ConfigError, StudyError."""

    def here(command: int | None) -> str:
        spec = parsed(database.stored_spec(study))
        return _edit(database, history(database, spec), wanted, command)[1]

    revised(parsed(database.stored_spec(study)), wanted)  # raises before anything is asked
    body = wanted.model_dump(mode="json", exclude_defaults=True)
    return _carried_out(database, study, commands.EDIT, {"edit": body}, here, wait_s)


def enqueue(
    database: Database, study: str, params: Mapping[str, Any], *, wait_s: float = WAIT_S
) -> Outcome:
    """Queues a trial with these params; the sampler adds the others.  Raises ConfigError, StudyError."""
    queued: list[int] = []

    def here(command: int | None) -> str:
        spec = parsed(database.stored_spec(study))
        open_study(spec, database)
        number, told = _enqueue(database, spec, params, command)
        queued.append(number)
        return told

    check_params(parsed(database.stored_spec(study)), params)
    body = {"params": dict(params)}
    outcome = _carried_out(database, study, commands.ENQUEUE, body, here, wait_s)
    if not queued and outcome.done and outcome.command is not None:
        optuna_study = open_study(parsed(database.stored_spec(study)), database)
        trial = _queued_by(optuna_study, outcome.command)
        queued += [] if trial is None else [trial.number]
    return replace(outcome, trial=queued[0] if queued else None)


def retry(database: Database, study: str, number: int, *, wait_s: float = WAIT_S) -> Outcome:
    """Queues a trial with the params of one that has ended.  Raises ConfigError, StudyError."""
    trial = stored_trial(database, study, number)
    if not trial.state.is_finished():
        raise StudyError(
            f"trial {number} of study '{study}' has not ended, so it cannot be tried again; cancel it "
            f"first: `ucd-ray study cancel {study} {number}`"
        )
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    return enqueue(database, study, params, wait_s=wait_s)


def _carried_out(
    database: Database,
    study: str,
    kind: str,
    body: Mapping[str, Any],
    here: Callable[[int | None], str],
    wait_s: float,
) -> Outcome:
    """Has the driver of a study do something, or does it here if there is none."""
    command = None
    if driver_of(database, study) is not None:
        asked = Asked(database, study, kind, wait_s, **body)
        if asked.answer is None and asked.driver is not None:
            return asked.unanswered()
        if asked.answer is not None:
            if asked.answer.startswith(commands.REFUSED):
                raise StudyError(asked.answer.removeprefix(commands.REFUSED))
            return Outcome(f"study '{study}': {asked.answer}", command=asked.id)
        command = asked.id  # it ended without an answer
    with claimed(database, study):
        told = here(command)
    if command is not None:
        commands.finish(database, command, told)
    return Outcome(f"study '{study}': {told}; nothing runs it: `ucd-ray study run {study}` does")


class Editor:
    """What a driver does with commands that edit its study.  on_edit: is called after an edit"""

    def __init__(self, book: TrialBook, on_edit: Callable[[str], None]) -> None:
        self.book, self.on_edit = book, on_edit

    def handlers(self) -> dict[str, Callable[[commands.Command], str]]:
        """By kind of command."""
        return {commands.EDIT: self._edit, commands.ENQUEUE: self._enqueue}

    def _edit(self, command: commands.Command) -> str:
        book = self.book
        try:
            wanted = Edit.model_validate(command.body["edit"])
            spec, told = _edit(book.database, book.fit.history, wanted, command.id)
        except UcdRayError as error:
            return f"{commands.REFUSED}{error}"
        if spec != book.spec:
            book.revise(spec)
            self.on_edit(told)
        return told

    def _enqueue(self, command: commands.Command) -> str:
        book = self.book
        try:
            return _enqueue(book.database, book.spec, command.body["params"], command.id)[1]
        except UcdRayError as error:
            return f"{commands.REFUSED}{error}"


def _edit(
    database: Database, before: History, wanted: Edit, command: int | None
) -> tuple[StudySpec, str]:
    """Edits a study that no one else may change now.  Returns its spec, and what was done."""
    spec = revised(before.spec, wanted)
    found = changes(before.spec, spec)
    if not found:
        return before.spec, "it has these values already"
    check_open(before, spec, stored_trials(database, spec.name))
    if spec.goals != before.spec.goals:
        complete_results(database, spec.name, spec.goals)
    told = f"revision {before.number + 1}: {'; '.join(found)}"
    store(database, before, spec, found, None if command is None else (command, told))
    return spec, told


def check_params(spec: StudySpec, params: Mapping[str, Any]) -> None:
    """Raises ConfigError unless a trial can have these params, also outside of their ranges."""
    recipe = spec.base_recipe()
    for key in params:
        if key not in spec.search:
            check_key(key, recipe.method)
            value = show_value(recipe.flat()[key])
            raise ConfigError(
                f"key '{key}' is not searched in study '{spec.name}': its trials have {value}"
            )
    spec.domain().check(params, "value", ranges=False)
    for step in range(2):
        micro_batches(spec.trial_recipe(params), spec.workers, step=step)


def _enqueue(
    database: Database, spec: StudySpec, params: Mapping[str, Any], command: int | None
) -> tuple[int, str]:
    """Queues a trial, once for each command.  Returns its number, and what was done."""
    import optuna

    check_params(spec, params)
    study = optuna.load_study(study_name=spec.name, storage=database.optuna_storage())
    trial = _queued_by(study, command)
    if trial is None:
        attributes = {} if command is None else {QUEUED_BY: command}
        study.enqueue_trial(dict(params), user_attrs=attributes)
        trial = study.get_trials(deepcopy=False)[-1]
        tell(
            database,
            spec.name,
            f"trial {trial.number} QUEUED: {show_params(dict(params))}",
            kind="queued",
            number=trial.number,
            data={"of": f"trial {trial.number}", "state": "QUEUED", "params": dict(params)},
        )
    told = f"trial {trial.number} is queued with {show_params(dict(params))}"
    for key in spec.domain().outside(params):
        told += (
            f"; {key} is outside of its range {show_range(spec.search[key])}, so that the sampler "
            "will not learn from this trial"
        )
    if len(study.get_trials(deepcopy=False)) > spec.trials:
        told += (
            f"; it is trained once the study has more than {spec.trials} trials "
            f"(`ucd-ray study edit {spec.name} --trials N`)"
        )
    return trial.number, told


def _queued_by(study: Any, command: int | None) -> FrozenTrial | None:
    trials = study.get_trials(deepcopy=False) if command is not None else []
    return next((t for t in trials if t.user_attrs.get(QUEUED_BY) == command), None)
