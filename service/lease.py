"""A lease in the database: of all replicas, one reconciles."""

from __future__ import annotations

import os
import secrets
import socket
import time

import sqlalchemy as sa

from ucd_ray.service.rows import insert_new
from ucd_ray.service.tables import lease_table
from ucd_ray.tune.database import Database

NAME = "reconciler"


class Lease:
    """The lease as one process sees it."""

    def __init__(self, database: Database, seconds: float) -> None:
        self.database, self.seconds = database, seconds
        self.holder = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(3)}"
        self._until = 0.0  # on this process's own clock

    def take(self) -> bool:
        """Takes or renews it.  Returns whether this process has it now."""
        asked = time.monotonic()
        if self.database.write(self._take):
            self._until = asked + self.seconds
            return True
        return False

    def _take(self, connection: sa.Connection) -> bool:
        now = time.time()
        mine = {"holder": self.holder, "until": now + self.seconds}
        if insert_new(connection, lease_table, {"name": NAME, **mine}):
            return True
        free = (lease_table.c.holder == self.holder) | (lease_table.c.until < now)
        update = lease_table.update().where(lease_table.c.name == NAME, free).values(**mine)
        return connection.execute(update).rowcount == 1

    @property
    def is_held(self) -> bool:
        """Whether it still holds: asked before whatever another one could do as well."""
        return time.monotonic() < self._until

    def release(self) -> None:
        """Gives it back, so that another one need not wait."""
        self._until = 0.0
        mine = (lease_table.c.name == NAME) & (lease_table.c.holder == self.holder)
        self.database.write(lambda connection: connection.execute(lease_table.delete().where(mine)))
