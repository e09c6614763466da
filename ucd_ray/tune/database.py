"""The database of studies: Optuna's own tables, and ours beside them.

Optuna holds trials, params, intermediate values and states.  We hold the spec of each study, who drives
it, and what was measured after each step.  Only the driver of a study writes.

A URL names the database: `sqlite:////path/studies.db`, or `postgresql://user@host/name` with whatever
else libpq knows (PGHOST, PGPASSWORD, ~/.pgpass, `?service=name`, `?sslmode=verify-full`).  The password
is best given there, or in a file that UCD_RAY_DATABASE_PASSWORD_FILE names; one in the URL has its `@`,
`/` and `%` percent-encoded.  It is kept in memory only: no message, log, file or pickle of ours has it.

SQLite writes ahead (WAL): readers and one writer go on side by side, and what was committed survives the
end of a process; the last moments before a power cut may be lost, never the file.  Where the file lies
on a network file system, or WAL cannot be had, it keeps SQLite's own journal: slower, and as safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import psutil
import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from ucd_ray.confusion import decoded
from ucd_ray.errors import StudyError, did_you_mean
from ucd_ray.tune.outage import Patience
from ucd_ray.tune.tables import (
    class_table,
    confusion_table,
    environment_table,
    metric_table,
    step_table,
    study_table,
)

LEASE_S = 30.0  # a driver on another host that was silent for longer is dead
BUSY_S = 5.0  # one try for the lock of a SQLite file
VERSION_TABLE = "ucd_alembic_version"
MIGRATION_LOCK = 7_262_510  # PostgreSQL's advisory lock while tables are made

# Given unless the URL or the environment says otherwise.  A server that vanished without a word is noticed
# within a minute.
LIBPQ: dict[str, Any] = {
    "client_encoding": "utf8",  # also of a database that has none: its text would be bytes
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# Several hosts do not see one another's shared memory, which WAL needs.
NETWORK = ("nfs", "cifs", "smb", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "9p")

T = TypeVar("T")


class Database:
    """One database of studies, opened and brought to the current schema.  Raises StudyError.

    `note` says what is not as it should be, and is None otherwise.
    """

    def __init__(self, url: str) -> None:
        # Version 3 of the driver, which the extra `postgres` installs, whatever SQLAlchemy's default.
        text = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
        self.shown = without_password(text)
        self.note: str | None = None
        self.patience = Patience(self.shown)
        try:
            self.url = with_password(sa.make_url(text))
            self.engine = self._new_engine()
            self._arguments = self.engine.dialect.create_connect_args(self.url)
        except ImportError as error:
            raise StudyError(
                f"cannot use database '{self.shown}': {error}; "
                "PostgreSQL needs `pip install 'ucd-ray[postgres]'`"
            ) from None
        except (ArgumentError, NoSuchModuleError) as error:
            raise StudyError(f"cannot use database '{self.shown}': {error}") from None
        except ValueError:  # its text quotes what stands in the port's place: part of a password?
            raise StudyError(
                f"cannot use database '{self.shown}': its port is no number; "
                "a password with '/', '@' or '%' must be percent-encoded"
            ) from None
        self._prepare()

    @property
    def on_wait(self) -> Callable[[str], None]:
        """Is told once why we wait for the database, and once that it is back."""
        return self.patience.on_wait

    @on_wait.setter
    def on_wait(self, hook: Callable[[str], None]) -> None:
        self.patience.on_wait = hook

    def stop_waiting(self) -> None:
        """From now on an outage is an error at once, in every thread: the study is being stopped."""
        self.patience.stop()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Database stays in its process: open its URL again")

    # Connections.

    @property
    def is_sqlite(self) -> bool:
        """Whether this is a file of SQLite."""
        return self.engine.dialect.name == "sqlite"

    def _new_engine(self) -> sa.Engine:
        kind = self.url.get_backend_name()
        if kind not in ("sqlite", "postgresql"):
            raise ArgumentError("studies are stored in SQLite or PostgreSQL")
        if kind == "sqlite" and self.url.database in (None, "", ":memory:"):
            raise ArgumentError("it has no file: sqlite:////path/studies.db has one")
        # A stale connection to a server is renewed before it is used.
        return sa.create_engine(self.url, creator=self.connect, pool_pre_ping=kind == "postgresql")

    def connect(self) -> Any:
        """A new connection of the driver."""
        return self.patience.keep_trying(self._connect)

    def _connect(self) -> Any:
        arguments, named = self._arguments
        if not self.is_sqlite:
            given = {*named, *(["connect_timeout"] if "PGCONNECT_TIMEOUT" in os.environ else [])}
            defaults = {k: v for k, v in LIBPQ.items() if k not in given}
            return self.engine.dialect.connect(*arguments, **{**defaults, **named})
        # A transaction that writes takes its lock at once: one taken later may not be had at all.
        named = {"timeout": BUSY_S, "isolation_level": "IMMEDIATE", **named}
        connection = self.engine.dialect.connect(*arguments, **named)
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        if mode == "wal":  # FULL would survive a power cut too, and costs a disk flush each time
            connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns a database failure into a StudyError that names the database."""
        try:
            yield
        except SQLAlchemyError as error:
            raise self.patience.failure(error) from None

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """What `work` reads; it is repeated while the database is away."""
        return self.patience.keep_trying(lambda: self._transact(work))

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """What `work` returns, from one transaction.  It may run again though it was committed."""
        return self.patience.keep_trying(lambda: self._transact(work, alone=self.is_sqlite))

    def _transact(self, work: Callable[[sa.Connection], T], *, alone: bool = False) -> T:
        with self.engine.connect() as connection:
            if alone:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            result = work(connection)
            connection.commit()
        return result

    # Opening.

    def _prepare(self) -> None:
        if self.is_sqlite and self.url.database and not self.url.database.startswith("file:"):
            folder = Path(self.url.database).parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StudyError(f"cannot create '{folder}': {error.strerror}") from None
        config = AlembicConfig()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        head = ScriptDirectory.from_config(config).get_current_head()
        if self.is_sqlite:
            self.patience.keep_trying(self._choose_journal)
        if self.read(_revision) != head:
            self.write(lambda connection: self._migrate(config, connection))
        self.patience.opened()

    def _migrate(self, config: AlembicConfig, connection: sa.Connection) -> None:
        if not self.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StudyError(
                f"database '{self.shown}' is of another version of ucd-ray ({error}); "
                "use that version, or another database"
            ) from None

    def _choose_journal(self) -> None:
        network = network_file_system(Path(self.url.database or "."))
        wanted = "delete" if network else "wal"
        with self.engine.connect() as connection:
            mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
            if mode not in (wanted, "memory"):
                mode = connection.exec_driver_sql(f"PRAGMA journal_mode = {wanted}").scalar()
        self.engine.dispose()  # connections of the earlier mode
        if mode == "delete":
            why = f"it lies on {network}" if network else "write-ahead logging cannot be had there"
            self.note = (
                f"database '{self.shown}' is slow: {why}; "
                "for many trials set UCD_RAY_DATABASE to a local file or to PostgreSQL"
            )

    def optuna_storage(self) -> Any:
        """Optuna's storage in the same database."""
        return self._storage

    @cached_property
    def _storage(self) -> Any:
        from ucd_ray.tune.storage import StudyStorage  # Optuna takes long to load

        return StudyStorage(self)

    def spec(self, name: str) -> dict[str, Any] | None:
        """The stored spec of a study, None if there is none."""
        query = sa.select(study_table.c.spec).where(study_table.c.name == name)
        spec = self.read(lambda connection: connection.execute(query).scalar())
        return None if spec is None else json.loads(spec)

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
        update = study_table.update().where(study_table.c.name == name).values(**values)
        insert = study_table.insert().values(name=name, created=time.time(), **values)

        def work(connection: sa.Connection) -> None:
            if connection.execute(update).rowcount == 0:
                connection.execute(insert)

        self.write(work)

    def about(self, name: str) -> dict[str, Any]:
        """Facts of a study that tables need: class names, steps."""
        query = sa.select(study_table.c.about).where(study_table.c.name == name)
        about = self.read(lambda connection: connection.execute(query).scalar())
        return json.loads(about) if about else {}

    def studies(self) -> list[sa.Row[Any]]:
        """All studies, oldest first."""
        query = sa.select(study_table).order_by("created")
        return self.read(lambda connection: list(connection.execute(query)))

    def claim(self, name: str) -> None:
        """Makes this process the driver of a study.  Raises StudyError if another one drives it."""
        self.write(lambda connection: _claim(connection, name))

    def beat(self, name: str) -> bool:
        """Renews the claim.  Returns whether this process still holds it."""
        return self._set_driver(name, heartbeat=time.time())

    def release(self, name: str) -> None:
        """Gives the claim back."""
        self._set_driver(name, driver=None, heartbeat=None)

    def _set_driver(self, name: str, **values: Any) -> bool:
        mine = (study_table.c.name == name) & (study_table.c.driver == json.dumps(_me()))
        update = study_table.update().where(mine).values(**values)
        return self.write(lambda connection: connection.execute(update).rowcount) == 1

    def add_step(
        self, study: str, number: int, report: dict[str, Any], *, replicate: int = 0
    ) -> None:
        """Stores what was measured after a step; a repeated report replaces the earlier one."""
        key = {"study": study, "number": number, "replicate": replicate, "step": report["step"]}
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
        step["entry"] = next(iter(report["entries"]), None)
        confusion = report.get("confusion")

        def work(connection: sa.Connection) -> None:
            for table in (class_table, confusion_table, metric_table, step_table):
                connection.execute(table.delete().where(*(table.c[k] == v for k, v in key.items())))
            found = _environment(connection, study, report.get("environment"))
            connection.execute(step_table.insert(), {**key, **step, "environment": found})
            connection.execute(metric_table.insert(), metrics)
            connection.execute(class_table.insert(), classes)
            if confusion is not None:
                connection.execute(confusion_table.insert(), {**key, "counts": decoded(confusion)})

        self.write(work)


def _environment(
    connection: sa.Connection, study: str, content: dict[str, Any] | None
) -> str | None:
    """The digest under which an environment is stored, once for all trials of a study."""
    if content is None:
        return None
    text = json.dumps(content, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    mine = (environment_table.c.study == study) & (environment_table.c.digest == digest)
    if connection.execute(sa.select(environment_table.c.digest).where(mine)).first() is None:
        row = {"study": study, "digest": digest, "content": text}
        connection.execute(environment_table.insert(), row)
    return digest


def _claim(connection: sa.Connection, name: str) -> None:
    me = json.dumps(_me())
    of_study = study_table.c.name == name
    row = connection.execute(
        sa.select(study_table.c.driver, study_table.c.heartbeat).where(of_study)
    ).one()
    if row.driver and row.driver != me and is_driven(row.driver, row.heartbeat):
        other = json.loads(row.driver)
        raise StudyError(
            f"study '{name}' is already running in process {other['pid']} on "
            f"{other['host']}; wait for it, stop it, or choose another --name"
        )
    taken = connection.execute(
        study_table.update()
        .where(of_study, study_table.c.driver.is_not_distinct_from(row.driver))
        .values(driver=me, heartbeat=time.time())
    )
    if taken.rowcount == 0:
        raise StudyError(f"study '{name}' was just taken by another process")


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


def _revision(connection: sa.Connection) -> str | None:
    """The migration that the tables are at."""
    options = {"version_table": VERSION_TABLE}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


def without_password(url: str) -> str:
    """A URL as messages show it."""
    try:
        parsed = sa.make_url(url)
        secret = [key for key in parsed.query if "password" in key]
        return parsed.difference_update_query(secret).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        return url.split("@")[-1].split("?")[0]


def with_password(url: sa.URL) -> sa.URL:
    """The URL with the password of UCD_RAY_DATABASE_PASSWORD_FILE, if it names a server and has none."""
    path = os.environ.get("UCD_RAY_DATABASE_PASSWORD_FILE")
    if not path or url.password or url.get_backend_name() == "sqlite":
        return url
    try:
        return url.set(password=Path(path).read_text().rstrip("\r\n"))
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "is no text"
        raise StudyError(f"UCD_RAY_DATABASE_PASSWORD_FILE: '{path}': {cause}") from None


def network_file_system(path: Path) -> str | None:
    """The kind of network file system that holds a path, None if it is a local one."""
    path = path.absolute()
    mounts = [m for m in psutil.disk_partitions(all=True) if path.is_relative_to(m.mountpoint)]
    kind = max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else ""
    return kind if kind.removeprefix("fuse.").startswith((*NETWORK, "sshfs")) else None
