"""Confusion matrices on val."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Creates their table."""
    op.create_table(
        "ucd_confusion",
        sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("replicate", sa.Integer, primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("counts", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Removes it."""
    op.drop_table("ucd_confusion")
