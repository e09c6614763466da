"""What trained a step, and where the step cache holds it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Creates the table of environments, and the columns that lead to it and to the step cache."""
    op.create_table(
        "ucd_environment",
        sa.Column("study", sa.String(100), sa.ForeignKey("ucd_study.name"), primary_key=True),
        sa.Column("digest", sa.String(16), primary_key=True),
        sa.Column("content", sa.Text, nullable=False),
    )
    op.add_column("ucd_step", sa.Column("entry", sa.String(32)))
    op.add_column("ucd_step", sa.Column("environment", sa.String(16)))


def downgrade() -> None:
    """Removes them."""
    op.drop_column("ucd_step", "environment")
    op.drop_column("ucd_step", "entry")
    op.drop_table("ucd_environment")
