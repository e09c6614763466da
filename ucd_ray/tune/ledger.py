"""What a study's resources were spent on: CPU and GPU seconds by kind, kept in the database.

    useful   trials that ended with a value, and the base step
    pruned   trials that were stopped early
    failed   trials that failed or were cancelled
    running  trials that are open
    idle     gangs that held resources without a trial: starting, or waiting for one
    saved    training of steps that the step cache held

A gang's seconds count for all of its workers.  `wall` is the time that the study was driven.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa
from rich.table import Table

from ucd_ray.tune.database import Database
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.tables import ledger_table

STUDY = -1  # number of what belongs to no trial
KINDS = ("useful", "pruned", "failed", "running", "idle", "saved")
OPEN = "running"
WRITE_EVERY_S = 10.0


@dataclass(frozen=True)
class Spent:
    """CPU and GPU seconds."""

    cpu: float = 0.0
    gpu: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.cpu + other.cpu, self.gpu + other.gpu)


@dataclass
class Ledger:
    """Writes the ledger of one study."""

    database: Database
    study: str
    gang: Gang
    before: dict[int, Spent] = field(default_factory=dict)  # of open trials, by runs that are over
    runs: dict[int, dict[int, float]] = field(default_factory=dict)  # seconds by replicate

    def spend(self, number: int, kind: str, seconds: float, *, replicate: int = 0) -> None:
        """Sets what a run of a trial has held: `seconds` of its gang, besides what was before."""
        if number not in self.before:
            self.before[number] = self._stored(number, OPEN)
        runs = self.runs.setdefault(number, {})
        runs[replicate] = seconds
        self._set(number, kind, self.before[number] + self._of_gang(sum(runs.values())))

    def reopen(self, number: int, *, replicate: int = 0) -> None:
        """A run goes back to be taken again: what it held stays."""
        seconds = self.runs.get(number, {}).pop(replicate, None)
        if seconds is not None:
            self.before[number] += self._of_gang(seconds)

    def end(self, number: int, kind: str) -> None:
        """Moves what an open trial held to the kind that its end decides."""
        self.before.pop(number, None)
        self.runs.pop(number, None)

        def move(connection: sa.Connection) -> None:
            spent = self._read(connection, number, OPEN) + self._read(connection, number, kind)
            connection.execute(ledger_table.delete().where(_row(self.study, number, OPEN)))
            self._write(connection, number, kind, spent)

        self.database.write(move)

    def add(self, kind: str, seconds: float, *, number: int = STUDY) -> None:
        """Adds seconds of a gang."""
        self._set(number, kind, self._stored(number, kind) + self._of_gang(seconds))

    def add_wall(self, seconds: float) -> None:
        """Adds time that the study was driven."""
        self._set(STUDY, "wall", self._stored(STUDY, "wall") + Spent(seconds))

    def wall_seconds(self) -> float:
        """How long the study was driven, by all its drivers."""
        return self._stored(STUDY, "wall").cpu

    def _of_gang(self, seconds: float) -> Spent:
        gang = self.gang
        return Spent(seconds * gang.workers * gang.cpus, seconds * gang.workers * gang.gpus)

    def _stored(self, number: int, kind: str) -> Spent:
        return self.database.read(lambda connection: self._read(connection, number, kind))

    def _set(self, number: int, kind: str, spent: Spent) -> None:
        self.database.write(lambda connection: self._write(connection, number, kind, spent))

    def _read(self, connection: sa.Connection, number: int, kind: str) -> Spent:
        columns = (ledger_table.c.cpu_seconds, ledger_table.c.gpu_seconds)
        row = connection.execute(sa.select(*columns).where(_row(self.study, number, kind))).first()
        return Spent(*row) if row else Spent()

    def _write(self, connection: sa.Connection, number: int, kind: str, spent: Spent) -> None:
        values = {"cpu_seconds": spent.cpu, "gpu_seconds": spent.gpu}
        key = {"study": self.study, "number": number, "kind": kind}
        where = _row(self.study, number, kind)
        if connection.execute(ledger_table.update().where(where).values(**values)).rowcount == 0:
            connection.execute(ledger_table.insert(), {**key, **values})


def totals(database: Database, study: str) -> dict[str, Spent]:
    """What a study spent, by kind; kinds without anything are left out."""
    query = (
        sa.select(
            ledger_table.c.kind,
            sa.func.sum(ledger_table.c.cpu_seconds),
            sa.func.sum(ledger_table.c.gpu_seconds),
        )
        .where(ledger_table.c.study == study)
        .group_by(ledger_table.c.kind)
    )
    rows = database.read(lambda connection: connection.execute(query).all())
    return {kind: Spent(cpu, gpu) for kind, cpu, gpu in rows}


def held(spent: dict[str, Spent]) -> Spent:
    """All that was held, whatever for."""
    return sum((spent.get(kind, Spent()) for kind in KINDS if kind != "saved"), Spent())


def ledger_view(spent: dict[str, Spent]) -> Table:
    """What a study's workers were held for: seconds and shares by kind."""
    whole = held(spent)
    on_gpus = whole.gpu > 0
    table = Table(title="ledger", caption="seconds that its workers held, all of them together")
    for column in ("kind", "GPU s" if on_gpus else "CPU s", "share"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind in KINDS:
        value = spent.get(kind, Spent())
        seconds, total = (value.gpu, whole.gpu) if on_gpus else (value.cpu, whole.cpu)
        share = f"{100 * seconds / total:.0f} %" if total and kind != "saved" else ""
        table.add_row(kind, f"{seconds:.1f}", share)
    return table


def summary(spent: dict[str, Spent]) -> str:
    """The ledger in one line."""
    whole = held(spent)
    on_gpus = whole.gpu > 0
    seconds = {kind: value.gpu if on_gpus else value.cpu for kind, value in spent.items()}
    parts = [f"{kind} {seconds[kind]:.0f}" for kind in KINDS if seconds.get(kind, 0.0) >= 0.5]
    return f"{'GPU' if on_gpus else 'CPU'} seconds: {', '.join(parts) or 'none'}"


def _row(study: str, number: int, kind: str) -> sa.ColumnElement[bool]:
    columns = ledger_table.c
    return sa.and_(columns.study == study, columns.number == number, columns.kind == kind)
