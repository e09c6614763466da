"""Alembic environment.  Our version table has its own name: Optuna's is in the same database."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table="ucd_alembic_version")
with context.begin_transaction():
    context.run_migrations()
connection.commit()
