"""What the router learns: counted outcomes, evidence, fitted versions, and which of them serves whom."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables, and the index by which newly rewarded cases are found."""
    op.create_index("ix_cases_rewarded_at", "cases", ["rewarded_at"])
    _create_evidence()
    _create_versions()
    state = op.create_table(
        "router_state",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("learning", sa.String(16), nullable=False),
        sa.Column("counted_until", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_router_state"),
    )
    op.bulk_insert(state, [{"id": 1, "revision": 0, "learning": "", "counted_until": None}])


def _create_evidence() -> None:
    op.create_table(
        "router_outcomes",
        sa.Column("id", sa.String(255), nullable=False),
        sa.Column("case_id", sa.String(36), nullable=False),
        sa.Column("gate", sa.String(64)),
        sa.Column("scope", sa.String(64), nullable=False),
        sa.Column("agent", sa.String(255), nullable=False),
        sa.Column("candidate", sa.String(255), nullable=False),
        sa.Column("base", sa.String(255), nullable=False),
        sa.Column("band", sa.Integer, nullable=False),
        sa.Column("reward", sa.Float, nullable=False),
        sa.Column("expected", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_router_outcomes"),
    )
    op.create_index("ix_router_outcomes_case_id", "router_outcomes", ["case_id"])
    op.create_index("ix_router_outcomes_gate", "router_outcomes", ["gate"])
    op.create_index("ix_router_outcomes_scope_id", "router_outcomes", ["scope", "id"])
    op.create_table(
        "router_evidence",
        sa.Column("scope", sa.String(64), nullable=False),
        sa.Column("agent", sa.String(255), nullable=False),
        sa.Column("candidate", sa.String(255), nullable=False),
        sa.Column("band", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("cases", sa.Integer, nullable=False),
        sa.Column("reward", sa.Float, nullable=False),
        sa.Column("expected", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("scope", "agent", "candidate", "band", name="pk_router_evidence"),
    )
    op.create_table(
        "router_scopes",
        sa.Column("scope", sa.String(64), nullable=False),
        sa.Column("basis", sa.String(64), nullable=False),
        sa.Column("fitted_at", TIME),
        sa.Column("fitted_cases", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("scope", name="pk_router_scopes"),
    )


def _create_versions() -> None:
    op.create_table(
        "router_versions",
        sa.Column("scope", sa.String(64), nullable=False),
        sa.Column("version", sa.String(12), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("scope", "version", name="pk_router_versions"),
    )
    op.create_table(
        "router_moves",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("scope", sa.String(64), nullable=False),
        sa.Column("version", sa.String(12)),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_router_moves"),
    )
    op.create_index("ix_router_moves_scope", "router_moves", ["scope"])
