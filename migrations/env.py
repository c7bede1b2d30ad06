"""Runs the revisions on the connection of the caller, in the caller's transaction. Reads no URL and no file."""

from alembic import context

from glue.records.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
