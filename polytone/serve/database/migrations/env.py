"""Alembic runs migrations on the connection that serve/database/session.py hands it."""

from alembic import context

from polytone.serve.database.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
with context.begin_transaction():
    context.run_migrations()
