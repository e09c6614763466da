"""Revisions of studies, and trials taken over from other studies."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Creates both tables."""
    op.create_table(
        "ucd_revision",
        _study(),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("changes", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
    )
    op.create_table(
        "ucd_taken",
        _study(),
        sa.Column("source", sa.String(100), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("trial", sa.Text, nullable=False),
    )


def _study() -> sa.Column[object]:
    return sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True)


def downgrade() -> None:
    """Removes them."""
    for table in ("ucd_taken", "ucd_revision"):
        op.drop_table(table)
