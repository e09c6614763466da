"""A look at a database of studies that writes nothing and makes no table."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from alembic.config import Config as AlembicConfig
from alembic.script import ScriptDirectory
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from ucd_ray.errors import DatabaseError, StudyError
from ucd_ray.tune.database import VERSION_TABLE, with_password, without_password

CONNECT_S = 5
MIGRATIONS = Path(__file__).parent / "migrations"
Schema = Literal["current", "older", "newer", "none"]


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    shown: str  # the URL without its password
    is_there: bool  # False: a file that the first study makes
    schemas: dict[str, Schema]  # by version table
    ahead_s: float | None  # of the server's clock before ours; None: it has none of its own


def inspect(url: str, migrations: Mapping[str, Path] | None = None) -> Inspection:
    """Looks at the database.  Raises DatabaseError, StudyError.

    migrations: folders of migrations beside the library's, by their version table
    """
    shown = without_password(url)
    try:
        parsed = with_password(
            sa.make_url(re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url))
        )
        if parsed.get_backend_name() == "sqlite":
            file = Path(parsed.database or "")
            if not file.is_file():
                return Inspection(shown, False, {}, None)
            engine = sa.create_engine(f"sqlite:///file:{file}?mode=ro&uri=true")
        else:
            engine = sa.create_engine(parsed, connect_args={"connect_timeout": CONNECT_S})
        with engine.connect() as connection:
            wanted = {VERSION_TABLE: MIGRATIONS, **(migrations or {})}
            schemas = {table: _schema(connection, table, at) for table, at in wanted.items()}
            return Inspection(shown, True, schemas, _ahead(connection))
    except ImportError:
        raise StudyError(
            f"the driver of '{shown}' is not installed; `pip install 'ucd-ray[postgres]'`"
        ) from None
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise StudyError(
            f"'{shown}' is no URL of a database; use sqlite:////path/studies.db or postgresql://user@host/name"
        ) from None
    except SQLAlchemyError as error:
        cause = " ".join(str(getattr(error, "orig", None) or error).split())
        raise DatabaseError(
            f"{shown} does not answer: {without_password(cause) if '://' in cause else cause}; "
            "start its server, or correct UCD_RAY_DATABASE and UCD_RAY_DATABASE_PASSWORD_FILE"
        ) from None


def _schema(connection: sa.Connection, table: str, migrations: Path) -> Schema:
    """How the tables stand to the code.  A version that the code does not know is a newer one."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(migrations))
    scripts = ScriptDirectory.from_config(config)
    if not sa.inspect(connection).has_table(table):
        return "none"
    column = sa.column("version_num", sa.String)
    version = connection.scalar(sa.select(column).select_from(sa.table(table)))
    if version == scripts.get_current_head():
        return "current"
    known = {script.revision for script in scripts.walk_revisions()}
    return "older" if version is None or version in known else "newer"


def _ahead(connection: sa.Connection) -> float | None:
    if connection.dialect.name == "sqlite":
        return None
    before = time.time()
    there = connection.execute(sa.text("select extract(epoch from clock_timestamp())")).scalar_one()
    return float(there) - (before + time.time()) / 2
