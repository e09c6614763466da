"""The database of the studies with the tables of the service in it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from ucd_ray.errors import StudyError
from ucd_ray.tune.database import MIGRATION_LOCK, Database

VERSION_TABLE = "service_alembic_version"


def open_database(url: str, *, wait_s: float | None = None) -> Database:
    """The database, both kinds of tables at their current schema.  Raises StudyError.

    wait_s: how long a call waits while the database is away; None: as a study does
    """
    database = Database(url)
    config = AlembicConfig()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    head = ScriptDirectory.from_config(config).get_current_head()
    if database.read(_revision) != head:
        database.write(lambda connection: _migrate(database, config, connection))
    if wait_s is not None:
        database.patience.limit = wait_s
    return database


def _migrate(database: Database, config: AlembicConfig, connection: sa.Connection) -> None:
    if not database.is_sqlite:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StudyError(
            f"database '{database.shown}' is of another version of the service ({error}); "
            "use that version, or another database"
        ) from None


def _revision(connection: sa.Connection) -> str | None:
    options = {"version_table": VERSION_TABLE}
    return MigrationContext.configure(connection, opts=options).get_current_revision()
