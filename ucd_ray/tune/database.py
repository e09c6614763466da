"""The database of studies: Optuna's own tables, and ours beside them.

Optuna holds trials, params, intermediate values and states.  We hold the spec of each study, who drives
it, and what was measured after each step.  Only the driver of a study writes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from ucd_ray.errors import StudyError, did_you_mean
from ucd_ray.tune.tables import class_table, metric_table, step_table, study_table

LEASE_S = 30.0  # a driver on another host that was silent for longer is dead


class Database:
    """One database of studies, opened and brought to the current schema.  Raises StudyError."""

    def __init__(self, url: str) -> None:
        # Version 3 of the driver, which the extra `postgres` installs, whatever SQLAlchemy's default.
        self.url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
        try:
            self.engine = sa.create_engine(self.url, **self._options())
        except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
            raise StudyError(f"cannot use database '{self.shown}': {error}") from None
        with self.errors():
            self._prepare()

    def _options(self) -> dict[str, Any]:
        # SQLite waits this long for another process's transaction.
        return {"connect_args": {"timeout": 30}} if self.url.startswith("sqlite") else {}

    @property
    def shown(self) -> str:
        """The URL without its password."""
        try:
            return sa.make_url(self.url).render_as_string(hide_password=True)
        except (ArgumentError, ValueError):  # ValueError: a port that is no number
            return self.url.split("@")[-1]

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns a database failure into a StudyError that names the database."""
        try:
            yield
        except SQLAlchemyError as error:
            cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            hint = " (another process holds it)" if "locked" in cause else ""
            raise StudyError(f"database '{self.shown}' failed: {cause}{hint}") from None

    def _prepare(self) -> None:
        if self.engine.dialect.name == "sqlite" and self.engine.url.database:
            folder = Path(self.engine.url.database).parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StudyError(f"cannot create '{folder}': {error.strerror}") from None
        config = AlembicConfig()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def optuna_storage(self) -> Any:
        """Optuna's storage in the same database."""
        import optuna

        with self.errors():
            try:
                return optuna.storages.RDBStorage(self.url, engine_kwargs=self._options())
            except optuna.exceptions.StorageInternalError as error:
                raise StudyError(f"database '{self.shown}' failed: {error}") from None

    def spec(self, name: str) -> dict[str, Any] | None:
        """The stored spec of a study, None if there is none."""
        with self.errors(), self.engine.connect() as connection:
            row = connection.execute(
                sa.select(study_table.c.spec).where(study_table.c.name == name)
            ).first()
        return None if row is None else json.loads(row.spec)

    def stored_spec(self, name: str) -> dict[str, Any]:
        """The stored spec of a study.  Raises StudyError if there is none."""
        spec = self.spec(name)
        if spec is None:
            names = [row.name for row in self.studies()]
            hint = did_you_mean(name, names) if names else "no study has been started yet"
            raise StudyError(f"no study '{name}' in '{self.shown}'; {hint}")
        return spec

    def save_spec(self, name: str, spec: str, about: dict[str, Any]) -> None:
        """Creates or updates the row of a study."""
        values = {"spec": spec, "about": json.dumps(about)}
        with self.errors(), self.engine.begin() as connection:
            done = connection.execute(
                study_table.update().where(study_table.c.name == name).values(**values)
            )
            if done.rowcount == 0:
                connection.execute(
                    study_table.insert().values(name=name, created=time.time(), **values)
                )

    def about(self, name: str) -> dict[str, Any]:
        """Facts of a study that tables need: class names, steps."""
        with self.errors(), self.engine.connect() as connection:
            row = connection.execute(
                sa.select(study_table.c.about).where(study_table.c.name == name)
            ).first()
        return json.loads(row.about) if row else {}

    def studies(self) -> list[sa.Row[Any]]:
        """All studies, oldest first."""
        with self.errors(), self.engine.connect() as connection:
            return list(connection.execute(sa.select(study_table).order_by("created")))

    def claim(self, name: str) -> None:
        """Makes this process the driver of a study.  Raises StudyError if another one drives it."""
        me = json.dumps(_me())
        with self.errors(), self.engine.begin() as connection:
            row = connection.execute(
                sa.select(study_table.c.driver, study_table.c.heartbeat).where(
                    study_table.c.name == name
                )
            ).one()
            if row.driver and row.driver != me and is_driven(row.driver, row.heartbeat):
                other = json.loads(row.driver)
                raise StudyError(
                    f"study '{name}' is already running in process {other['pid']} on "
                    f"{other['host']}; wait for it, stop it, or choose another --name"
                )
            taken = connection.execute(
                study_table.update()
                .where(study_table.c.name == name)
                .where(study_table.c.driver.is_not_distinct_from(row.driver))
                .values(driver=me, heartbeat=time.time())
            )
            if taken.rowcount == 0:
                raise StudyError(f"study '{name}' was just taken by another process")

    def beat(self, name: str) -> bool:
        """Renews the claim.  Returns whether this process still holds it."""
        return self._set_driver(name, heartbeat=time.time())

    def release(self, name: str) -> None:
        """Gives the claim back."""
        self._set_driver(name, driver=None, heartbeat=None)

    def _set_driver(self, name: str, **values: Any) -> bool:
        mine = (study_table.c.name == name) & (study_table.c.driver == json.dumps(_me()))
        with self.errors(), self.engine.begin() as connection:
            done = connection.execute(study_table.update().where(mine).values(**values))
        return done.rowcount == 1

    def add_step(self, study: str, number: int, report: dict[str, Any]) -> None:
        """Stores what was measured after a step; a repeated report replaces the earlier one."""
        key = {"study": study, "number": number, "step": report["step"]}
        metrics, classes = [], []
        for images in ("select", "val"):
            measured = report[images]
            for metric, value in measured["means"].items():
                metrics.append({**key, "images": images, "metric": metric, "value": _number(value)})
            for class_id, iou in measured["iou"].items():
                drop = measured["forgetting"].get(class_id)
                row = {"class_id": int(class_id), "iou": _number(iou), "forgetting": _number(drop)}
                classes.append({**key, "images": images, **row})
        step = {k: report[k] for k in ("cached", "seconds", "images", "iterations")}
        with self.errors(), self.engine.begin() as connection:
            for table in (class_table, metric_table, step_table):
                connection.execute(table.delete().where(*(table.c[k] == v for k, v in key.items())))
            connection.execute(step_table.insert(), {**key, **step})
            connection.execute(metric_table.insert(), metrics)
            connection.execute(class_table.insert(), classes)


def is_driven(driver: str | None, heartbeat: float | None) -> bool:
    """Whether the process that claimed a study still lives."""
    if not driver:
        return False
    claim = json.loads(driver)
    if claim["host"] != socket.gethostname():
        return heartbeat is not None and time.time() - heartbeat < LEASE_S
    try:
        return abs(psutil.Process(claim["pid"]).create_time() - claim["started"]) < 2
    except psutil.NoSuchProcess:
        return False


def _me() -> dict[str, Any]:
    started = round(psutil.Process().create_time(), 1)
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started}


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else value
