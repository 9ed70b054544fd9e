"""Alembic's entry: runs the migrations on the connection that `adapters_registry.database` holds the lock on."""

from __future__ import annotations

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, render_as_batch=True, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
