"""Alembic runs migrations on the connection that serve/database.py hands it."""

from alembic import context

from polytone.serve.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
with context.begin_transaction():
    context.run_migrations()
