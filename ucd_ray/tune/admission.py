"""Who may hold which part of a cluster: a gang starts only when all of its workers fit.

Studies that share a database share the `ucd_hold` table: a study takes a hold for each of its gangs before
the gang starts, and gives it back when the gang has ended.  Holds of studies whose driver has died do not
count.  What other users of the cluster occupy is seen in what Ray says is free.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ucd_ray.tune.database import Database, is_driven
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.nodes import Node, count, fits, free_text
from ucd_ray.tune.reasons import NEEDS_CPUS, NEEDS_GPUS, NEEDS_NODE, TURN, Reason
from ucd_ray.tune.tables import hold_table, study_table

WAITS = "waits"  # the slot of a study that waits: it holds nothing, and stands in line


@dataclass
class Admission:
    """The holds of one study on one cluster."""

    database: Database
    study: str
    cluster: str
    gang: Gang
    slots: set[str] = field(default_factory=set)
    waits: bool = False

    def acquire(self, slot: str, nodes: Sequence[Node]) -> str | None:
        """Takes a hold for a gang.  Returns None, or why it cannot be had now."""
        reason = self.database.write(lambda connection: self._acquire(connection, slot, nodes))
        if reason is None:
            self.slots.add(slot)
        self.waits = reason is not None
        return reason

    def _acquire(self, connection: sa.Connection, slot: str, nodes: Sequence[Node]) -> str | None:
        self._stand_in_line(connection)
        reason = self._refusal(self._live_rows(connection), nodes)
        if reason is None:
            self._leave_line(connection)
            key, gang = self._key(slot), self.gang
            values = {"workers": gang.workers, "cpus": gang.cpus, "gpus": gang.gpus}
            connection.execute(hold_table.delete().where(_matches(key)))
            row = {**key, **values, "since": time.time(), "placed": False}
            connection.execute(hold_table.insert(), row)
        return reason

    def _key(self, slot: str) -> dict[str, str]:
        return {"cluster": self.cluster, "study": self.study, "slot": slot}

    def placed(self, slot: str) -> None:
        """The workers of a gang are up: what they hold is no longer among what Ray calls free."""
        up = hold_table.update().where(_matches(self._key(slot))).values(placed=True)
        self.database.write(lambda connection: connection.execute(up))

    def release(self, slot: str) -> None:
        """Gives a hold back."""
        self.slots.discard(slot)
        gone = hold_table.delete().where(_matches(self._key(slot)))
        self.database.write(lambda connection: connection.execute(gone))

    def release_all(self) -> None:
        """Gives everything back, on whatever cluster: a study has one driver."""
        self.slots.clear()
        self.waits = False
        gone = hold_table.delete().where(hold_table.c.study == self.study)
        self.database.write(lambda connection: connection.execute(gone))

    def stop_waiting(self) -> None:
        """Leaves the line."""
        if self.waits:
            self.waits = False
            self.database.write(self._leave_line)

    def others_wait(self) -> bool:
        """Whether a live study without any gang waits for this cluster."""
        rows = self.database.read(self._live_rows)
        holding = {row.study for row in rows if row.slot != WAITS}
        return any(row.slot == WAITS and row.study not in holding for row in rows)

    def _stand_in_line(self, connection: sa.Connection) -> None:
        """Writes first, so that no other driver decides at the same time."""
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("LOCK TABLE ucd_hold IN EXCLUSIVE MODE"))
        key = self._key(WAITS)
        done = connection.execute(hold_table.update().where(_matches(key)).values(workers=0))
        if done.rowcount == 0:
            nothing = {"workers": 0, "cpus": 0.0, "gpus": 0.0, "placed": True}
            connection.execute(hold_table.insert(), {**key, **nothing, "since": time.time()})

    def _leave_line(self, connection: sa.Connection) -> None:
        connection.execute(hold_table.delete().where(_matches(self._key(WAITS))))

    def _live_rows(self, connection: sa.Connection) -> list[sa.Row[Any]]:
        query = (
            sa.select(hold_table, study_table.c.driver, study_table.c.heartbeat)
            .join(study_table, study_table.c.name == hold_table.c.study)
            .where(hold_table.c.cluster == self.cluster)
            .order_by(hold_table.c.since)
        )
        rows = connection.execute(query).all()
        return [row for row in rows if is_driven(row.driver, row.heartbeat)]

    def _refusal(self, rows: Sequence[sa.Row[Any]], nodes: Sequence[Node]) -> Reason | None:
        gang = self.gang
        first = next((row.study for row in rows if row.slot == WAITS), self.study)
        held = {row.study: 0.0 for row in rows if row.slot != WAITS}
        for kind, each in (("GPU", gang.gpus), ("CPU", gang.cpus)):
            need = gang.workers * each
            if not need:
                continue
            for study in held:
                held[study] = sum(_held(row, kind) for row in rows if row.study == study)
            total = sum(node.total.get(kind, 0.0) for node in nodes)
            free = min(
                total - sum(held.values()),
                sum(node.free.get(kind, 0.0) for node in nodes) - _unplaced(rows, kind),
            )
            if need > free:
                code = NEEDS_GPUS if kind == "GPU" else NEEDS_CPUS
                text = f"needs {count(need, kind)}, {max(0.0, free):g} free{_holders(held)}"
                return Reason(code, text)
        bundles = [
            (row.cpus, row.gpus) for row in rows if not row.placed for _ in range(row.workers)
        ]
        if not fits([*bundles, *[(gang.cpus, gang.gpus)] * gang.workers], nodes):
            return Reason(
                NEEDS_NODE,
                f"needs {count(gang.cpus, 'CPU')} and {count(gang.gpus, 'GPU')} on one node for each of "
                f"{gang.workers} worker(s); free: {free_text(nodes)}{_holders(held)}",
            )
        if first != self.study and first not in held:
            return Reason(TURN, f"study '{first}' has waited longer and goes first{_holders(held)}")
        return None


def _matches(key: dict[str, Any]) -> sa.ColumnElement[bool]:
    return sa.and_(*(hold_table.c[name] == value for name, value in key.items()))


def _held(row: sa.Row[Any], kind: str) -> float:
    return float(row.workers * (row.gpus if kind == "GPU" else row.cpus))


def _unplaced(rows: Sequence[sa.Row[Any]], kind: str) -> float:
    return sum(_held(row, kind) for row in rows if not row.placed)


def _holders(held: dict[str, float]) -> str:
    parts = [f"study '{study}' holds {value:g}" for study, value in sorted(held.items()) if value]
    return "; " + ", ".join(parts) if parts else ""
