"""Alembic's entry point: run migrations on the connection that `session.migrate` passes."""

from alembic import context

from polytone.serve.database.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
with context.begin_transaction():
    context.run_migrations()
