"""The registry: adapters, versions, aliases, audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# a migration describes the schema of its day, so it imports nothing of the project
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the registry's tables."""
    op.create_table(
        "adapters",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("agent", sa.String(64), nullable=False),
        sa.Column("base", sa.String(255), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_adapters"),
    )
    op.create_index("ix_adapters_agent", "adapters", ["agent"])
    _create_versions()
    _create_aliases()
    revision_table = op.create_table(
        "registry_revision",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_registry_revision"),
    )
    op.bulk_insert(revision_table, [{"id": 1, "revision": 0}])
    op.create_table(
        "audit_log",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.String(12)),
        sa.Column("agent", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    op.create_index("ix_audit_log_name", "audit_log", ["name"])


def _create_versions() -> None:
    op.create_table(
        "adapter_versions",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("version", sa.String(12), nullable=False),
        sa.Column("engine_id", sa.BigInteger, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("target_modules", sa.JSON, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("recorded_base", sa.Text),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("retired_at", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_adapter_versions"),
        sa.ForeignKeyConstraint(["name"], ["adapters.name"], name="fk_adapter_versions_name_adapters"),
        sa.UniqueConstraint("name", "digest", name="uq_adapter_versions_name_digest"),
        sa.UniqueConstraint("name", "version", name="uq_adapter_versions_name_version"),
    )
    op.create_index("ix_adapter_versions_engine_id", "adapter_versions", ["engine_id"])
    op.create_index("ix_adapter_versions_state", "adapter_versions", ["state"])


def _create_aliases() -> None:
    op.create_table(
        "agent_aliases",
        sa.Column("agent", sa.String(64), nullable=False),
        sa.Column("alias", sa.String(16), nullable=False),
        sa.Column("version_id", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("agent", "alias", name="pk_agent_aliases"),
        sa.ForeignKeyConstraint(
            ["version_id"], ["adapter_versions.id"], name="fk_agent_aliases_version_id_adapter_versions"
        ),
    )
    op.create_table(
        "alias_events",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("agent", sa.String(64), nullable=False),
        sa.Column("alias", sa.String(16), nullable=False),
        sa.Column("version_id", sa.Integer),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("rollback_to", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alias_events"),
        sa.ForeignKeyConstraint(
            ["version_id"], ["adapter_versions.id"], name="fk_alias_events_version_id_adapter_versions"
        ),
    )
    op.create_index("ix_alias_events_agent", "alias_events", ["agent"])
