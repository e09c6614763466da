"""What was measured belongs to a replicate of a trial; so far every trial had one, number 0."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = ("ucd_step", "ucd_metric", "ucd_class")


def _columns(table: str) -> tuple[sa.Column[Any], ...]:
    """What a table has beside study, number, replicate and step."""
    if table == "ucd_step":
        return (
            sa.Column("cached", sa.Boolean, nullable=False),
            sa.Column("seconds", sa.Float, nullable=False),
            sa.Column("images", sa.Integer, nullable=False),
            sa.Column("iterations", sa.Integer, nullable=False),
        )
    images = sa.Column("images", sa.String(10), primary_key=True)
    if table == "ucd_metric":
        metric = sa.Column("metric", sa.String(40), primary_key=True)
        return images, metric, sa.Column("value", sa.Float)
    class_id = sa.Column("class_id", sa.Integer, primary_key=True)
    return images, class_id, sa.Column("iou", sa.Float), sa.Column("forgetting", sa.Float)


def upgrade() -> None:
    """Adds the column `replicate` to the keys of what was measured."""
    for table in TABLES:
        _rebuild(table, ("study", "number", "replicate", "step"), {"replicate": "0"})


def downgrade() -> None:
    """Keeps the first replicate of every trial."""
    for table in TABLES:
        op.execute(f"DELETE FROM {table} WHERE replicate > 0")
        _rebuild(table, ("study", "number", "step"), {})


def _rebuild(table: str, key: tuple[str, ...], new: dict[str, str]) -> None:
    """Copies a table under another key, which SQLite cannot change in place; new: values by column."""
    columns = _columns(table)
    names = [*key, *(column.name for column in columns)]
    op.create_table(
        f"{table}_new",
        sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
        *(sa.Column(name, sa.Integer, primary_key=True) for name in key[1:]),
        *columns,
    )
    values = ", ".join(new.get(name, name) for name in names)
    op.execute(f"INSERT INTO {table}_new ({', '.join(names)}) SELECT {values} FROM {table}")
    op.drop_table(table)
    op.rename_table(f"{table}_new", table)
