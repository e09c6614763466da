"""Commands, events, holds of resources and the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Creates the tables of the study engine."""
    op.create_table(
        "ucd_command",
        sa.Column("id", sa.Integer, primary_key=True),
        _study(),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("done", sa.Float),
        sa.Column("outcome", sa.Text),
    )
    op.create_table(
        "ucd_event",
        sa.Column("id", sa.Integer, primary_key=True),
        _study(),
        sa.Column("number", sa.Integer),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_index("ucd_event_of_study", "ucd_event", ["study", "id"])
    op.create_table(
        "ucd_hold",
        sa.Column("cluster", sa.String(100), primary_key=True),
        _study(primary_key=True),
        sa.Column("slot", sa.String(40), primary_key=True),
        sa.Column("workers", sa.Integer, nullable=False),
        sa.Column("cpus", sa.Float, nullable=False),
        sa.Column("gpus", sa.Float, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("placed", sa.Boolean, nullable=False),
    )
    op.create_table(
        "ucd_ledger",
        _study(primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(20), primary_key=True),
        sa.Column("cpu_seconds", sa.Float, nullable=False),
        sa.Column("gpu_seconds", sa.Float, nullable=False),
    )


def _study(*, primary_key: bool = False) -> sa.Column[object]:
    key = sa.ForeignKey("ucd_study.name")
    return sa.Column("study", sa.String(100), key, primary_key=primary_key, nullable=False)


def downgrade() -> None:
    """Removes these tables."""
    for table in ("ucd_ledger", "ucd_hold", "ucd_event", "ucd_command"):
        op.drop_table(table)
