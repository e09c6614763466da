"""Indexes for the orders of lists: of all studies, of an owner's, of those that are shared."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TABLE = "service_study"
ORDERS = ("created", "updated", "priority", "title")


def upgrade() -> None:
    """Adds them in place of two of the first."""
    op.drop_index("service_study_of_owner", TABLE)
    op.drop_index("service_study_by_time", TABLE)
    for name in ORDERS:
        op.create_index(f"service_study_by_{name}", TABLE, [name, "id"])
        op.create_index(f"service_study_of_owner_by_{name}", TABLE, ["owner", name, "id"])
        op.create_index(
            f"service_study_shared_by_{name}",
            TABLE,
            [name, "id"],
            sqlite_where=sa.text("shared = 1"),
            postgresql_where=sa.text("shared"),
        )


def downgrade() -> None:
    """Removes them."""
    for name in ORDERS:
        for kind in ("by", "of_owner_by", "shared_by"):
            op.drop_index(f"service_study_{kind}_{name}", TABLE)
    op.create_index("service_study_of_owner", TABLE, ["owner", "created", "id"])
    op.create_index("service_study_by_time", TABLE, ["created", "id"])
