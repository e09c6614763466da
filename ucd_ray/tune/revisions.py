"""Revisions of a study: what was edited when, and what every trial was made under.

A trial has a value under every key that was ever searched: its param, or what the recipe of its revision
had.  So trials of all revisions can be held against the present search space.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ucd_ray.tune.database import Database
from ucd_ray.tune.names import METHOD
from ucd_ray.tune.spec import StudySpec
from ucd_ray.tune.tables import command_table, revision_table, study_table

REVISION = "revision"  # user attribute of a trial; without it the study as it was created
OUTSIDE = "outside"  # user attribute: a user queued it with values outside of the search space


@dataclass(frozen=True)
class Revision:
    """One state of a study's spec.  changes: what was edited, a sentence for each."""

    number: int  # 0: as it was created
    created: float  # seconds since 1970
    changes: tuple[str, ...]
    spec: dict[str, Any]


def revisions(database: Database, study: str) -> list[Revision]:
    """All revisions of a study, the oldest first; none if it was never edited."""
    query = (
        sa.select(revision_table)
        .where(revision_table.c.study == study)
        .order_by(revision_table.c.number)
    )
    rows = database.read(lambda connection: connection.execute(query).all())
    return [
        Revision(row.number, row.created, tuple(json.loads(row.changes)), json.loads(row.spec))
        for row in rows
    ]


class History:
    """The present spec of a study with what it was before."""

    def __init__(self, spec: StudySpec, revisions: Sequence[Revision] = ()) -> None:
        self.spec, self.revisions = spec, list(revisions)
        self.number = revisions[-1].number if revisions else 0
        specs = {r.number: StudySpec.model_validate(r.spec) for r in revisions} or {0: spec}
        self.specs = specs  # by revision
        spaces = {n: (s.search, s.recipe, s.domain().constraints) for n, s in specs.items()}
        # The revision of the present search space.
        self.since = max((n for n in spaces if n and spaces[n] != spaces[n - 1]), default=0)
        self.keys = {key for one in specs.values() for key in one.search}
        edited = self.since > 0
        self._defaults = {n: s.defaults(self.keys) if edited else {} for n, s in specs.items()}

    def then(self, spec: StudySpec, changes: Sequence[str] = ()) -> History:
        """The history with one more revision."""
        first = Revision(0, 0.0, (), self.spec.model_dump(mode="json"))
        content = spec.model_dump(mode="json")
        new = Revision(self.number + 1, time.time(), tuple(changes), content)
        return History(spec, [*(self.revisions or [first]), new])

    def values(self, revision: int, params: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial of a revision had under every key that was ever searched."""
        return {**self._of_method(revision, params), **params}

    def defaults(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial has now, beside params, under the keys that are no longer searched."""
        return self._of_method(self.number, params)

    def _of_method(self, revision: int, params: Mapping[str, Any]) -> dict[str, Any]:
        found = self._defaults[revision]
        return found.get(params.get(METHOD), found.get(None, {}))


def history(database: Database, spec: StudySpec) -> History:
    """The history of a stored study whose present spec is `spec`."""
    return History(spec, revisions(database, spec.name))


def store(
    database: Database,
    before: History,
    spec: StudySpec,
    changes: Sequence[str],
    command: tuple[int, str] | None = None,
) -> int:
    """Makes `spec` the present one, in one transaction with all that belongs to it.

    command: that asked for it, and its outcome.  Returns the number of the revision.
    """
    name, number = spec.name, before.number + 1
    row = {"study": name, "number": number, "created": time.time()}
    row |= {"changes": json.dumps(list(changes)), "spec": spec.model_dump_json()}

    def work(connection: sa.Connection) -> None:
        of_study = revision_table.c.study == name
        known = set(
            connection.execute(sa.select(revision_table.c.number).where(of_study)).scalars()
        )
        if number in known:  # by the first run of this call: nobody else may edit the study now
            return
        if not known:
            created = sa.select(study_table.c.created).where(study_table.c.name == name)
            first = {"number": 0, "created": connection.execute(created).scalar_one()}
            first |= {"changes": "[]", "spec": before.spec.model_dump_json()}
            connection.execute(revision_table.insert(), {**row, **first})
        connection.execute(revision_table.insert(), row)
        stored = study_table.update().where(study_table.c.name == name)
        connection.execute(stored.values(spec=row["spec"]))
        if command is not None:
            asked = command_table.update().where(command_table.c.id == command[0])
            connection.execute(asked.values(done=time.time(), outcome=command[1]))

    database.write(work)
    return number
