"""What an event of a study says to programs."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Adds it."""
    op.add_column("ucd_event", sa.Column("data", sa.Text))


def downgrade() -> None:
    """Removes it."""
    op.drop_column("ucd_event", "data")
