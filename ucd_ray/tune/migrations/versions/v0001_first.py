"""Studies, steps, metrics and per-class results."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates the first tables."""
    op.create_table(
        "ucd_study",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("driver", sa.Text),
        sa.Column("heartbeat", sa.Float),
        sa.Column("about", sa.Text, nullable=False, server_default="{}"),
    )
    op.create_table(
        "ucd_step",
        *_key(),
        sa.Column("cached", sa.Boolean, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("iterations", sa.Integer, nullable=False),
    )
    op.create_table(
        "ucd_metric",
        *_key(),
        sa.Column("images", sa.String(10), primary_key=True),
        sa.Column("metric", sa.String(40), primary_key=True),
        sa.Column("value", sa.Float),
    )
    op.create_table(
        "ucd_class",
        *_key(),
        sa.Column("images", sa.String(10), primary_key=True),
        sa.Column("class_id", sa.Integer, primary_key=True),
        sa.Column("iou", sa.Float),
        sa.Column("forgetting", sa.Float),
    )


def _key() -> tuple[sa.Column[object], ...]:
    return (
        sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
    )


def downgrade() -> None:
    """Removes all tables."""
    for table in ("ucd_class", "ucd_metric", "ucd_step", "ucd_study"):
        op.drop_table(table)
