"""The tables of the service, in the database of the studies."""

from __future__ import annotations

import sqlalchemy as sa

tables = sa.MetaData()

study_table = sa.Table(
    "service_study",
    tables,
    sa.Column("id", sa.String(20), primary_key=True),
    sa.Column("owner", sa.String(60), nullable=False),
    sa.Column("name", sa.String(100), nullable=False, unique=True),  # in the library's tables
    sa.Column("title", sa.String(100), nullable=False),  # the name that its owner gave
    sa.Column("external_id", sa.String(200)),
    sa.Column("spec", sa.Text, nullable=False),  # JSON: as it was created, canonical
    sa.Column("workers", sa.Integer, nullable=False),  # of one trial
    sa.Column("cpus", sa.Float, nullable=False),  # of one worker
    sa.Column("gpus", sa.Float),  # of one worker; null: one if the cluster has them
    sa.Column("parallelism", sa.Integer),  # trials at a time that the owner wants; null: no limit
    sa.Column("share", sa.Integer),  # trials at a time that it may have now
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("labels", sa.Text, nullable=False),  # JSON: text by text
    sa.Column("shared", sa.Boolean, nullable=False),  # others may read it
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("before", sa.String(20)),  # the state that it was deleted in
    sa.Column("conditions", sa.Text, nullable=False),  # JSON
    sa.Column("stop", sa.String(20)),  # how it shall be stopped
    sa.Column("command", sa.Integer),  # the last one that was given to its driver
    sa.Column("attempt", sa.Integer, nullable=False),  # Ray jobs so far
    sa.Column("job", sa.String(60)),  # submission id of the last Ray job
    sa.Column("submitted", sa.Float),  # when it was seen on the cluster; null: it may not be there
    sa.Column("failures", sa.Integer, nullable=False),  # attempts that failed, one after the other
    sa.Column("not_before", sa.Float),  # of the next attempt
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
    sa.Column("deleted", sa.Float),
    sa.Column("purge", sa.Float),  # when its results go
    sa.Column("revision", sa.Integer, nullable=False),  # grows with every change
    sa.UniqueConstraint("owner", "external_id"),
    sa.Index("service_study_by_state", "state"),
)
for name in ("created", "updated", "priority", "title"):  # the orders of lists
    order = (study_table.c[name], study_table.c.id)
    sa.Index(f"service_study_by_{name}", *order)
    sa.Index(f"service_study_of_owner_by_{name}", study_table.c.owner, *order)
    sa.Index(
        f"service_study_shared_by_{name}",
        *order,
        sqlite_where=sa.text("shared = 1"),
        postgresql_where=sa.text("shared"),
    )

token_table = sa.Table(
    "service_token",
    tables,
    sa.Column("id", sa.String(20), primary_key=True),
    sa.Column("owner", sa.String(60), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),  # SHA-256 of the secret
    sa.Column("scopes", sa.String(60), nullable=False),  # words
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float),
    sa.Column("revoked", sa.Float),
)

request_table = sa.Table(
    "service_request",
    tables,
    sa.Column("owner", sa.String(60), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),  # Idempotency-Key
    sa.Column("fingerprint", sa.String(64), nullable=False),  # SHA-256 of the request
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("status", sa.Integer),  # null: in flight
    sa.Column("body", sa.Text),
)

lease_table = sa.Table(
    "service_lease",
    tables,
    sa.Column("name", sa.String(20), primary_key=True),
    sa.Column("holder", sa.String(60), nullable=False),
    sa.Column("until", sa.Float, nullable=False),
)

usage_table = sa.Table(
    "service_usage",
    tables,
    sa.Column("owner", sa.String(60), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True),  # UTC
    sa.Column("gpu_seconds", sa.Float, nullable=False),
)

meter_table = sa.Table(
    "service_meter",
    tables,
    sa.Column("study", sa.String(20), primary_key=True),  # id
    sa.Column("gpu_seconds", sa.Float, nullable=False),  # of its ledger that `usage` has counted
)
