"""Alembic environment.  The version table has its own name: the library's is in the same database."""

from alembic import context

from ucd_ray.service.database import VERSION_TABLE

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
connection.commit()
