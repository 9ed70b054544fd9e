"""The project's one Alembic history; run by `adapters_registry.database`."""
