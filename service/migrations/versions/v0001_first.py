"""Studies, tokens, requests, the reconciler's lease, use by owner and day."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates the first tables."""
    op.create_table(
        "service_study",
        sa.Column("id", sa.String(20), primary_key=True),
        sa.Column("owner", sa.String(60), nullable=False),
        sa.Column("name", sa.String(100), nullable=False, unique=True),
        sa.Column("title", sa.String(100), nullable=False),
        sa.Column("external_id", sa.String(200)),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("workers", sa.Integer, nullable=False),
        sa.Column("cpus", sa.Float, nullable=False),
        sa.Column("gpus", sa.Float),
        sa.Column("parallelism", sa.Integer),
        sa.Column("share", sa.Integer),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("shared", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("before", sa.String(20)),
        sa.Column("conditions", sa.Text, nullable=False),
        sa.Column("stop", sa.String(20)),
        sa.Column("command", sa.Integer),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("job", sa.String(60)),
        sa.Column("submitted", sa.Float),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("not_before", sa.Float),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("updated", sa.Float, nullable=False),
        sa.Column("started", sa.Float),
        sa.Column("ended", sa.Float),
        sa.Column("deleted", sa.Float),
        sa.Column("purge", sa.Float),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.UniqueConstraint("owner", "external_id"),
    )
    op.create_index("service_study_of_owner", "service_study", ["owner", "created", "id"])
    op.create_index("service_study_by_time", "service_study", ["created", "id"])
    op.create_index("service_study_by_state", "service_study", ["state"])
    op.create_table(
        "service_token",
        sa.Column("id", sa.String(20), primary_key=True),
        sa.Column("owner", sa.String(60), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("scopes", sa.String(60), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float),
        sa.Column("revoked", sa.Float),
    )
    op.create_table(
        "service_request",
        sa.Column("owner", sa.String(60), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("body", sa.Text),
    )
    op.create_table(
        "service_lease",
        sa.Column("name", sa.String(20), primary_key=True),
        sa.Column("holder", sa.String(60), nullable=False),
        sa.Column("until", sa.Float, nullable=False),
    )
    op.create_table(
        "service_usage",
        sa.Column("owner", sa.String(60), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("gpu_seconds", sa.Float, nullable=False),
    )
    op.create_table(
        "service_meter",
        sa.Column("study", sa.String(20), primary_key=True),
        sa.Column("gpu_seconds", sa.Float, nullable=False),
    )


def downgrade() -> None:
    """Removes all tables."""
    for table in (
        "service_meter",
        "service_usage",
        "service_lease",
        "service_request",
        "service_token",
        "service_study",
    ):
        op.drop_table(table)
