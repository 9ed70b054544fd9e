"""The CaseBank: cases, the bands of their signatures, the inbox of served requests, imports."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# a migration describes the schema of its day, so it imports nothing of the project
TIME = sa.DateTime(timezone=True)
INDEXED = ("created_at", "response_id", "body_id", "session", "user", "adapter", "cluster", "repeat_of")


def upgrade() -> None:
    """Create the tables."""
    op.create_table("cases", *_case_columns(), sa.PrimaryKeyConstraint("id", name="pk_cases"))
    for column in INDEXED:
        op.create_index(f"ix_cases_{column}", "cases", [column])
    for column in ("id", "content_hash", "episode"):
        op.create_index(f"ix_cases_agent_{column}", "cases", ["agent", column])
    op.create_table(
        "case_bands",
        sa.Column("key", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("case_id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("key", "case_id", name="pk_case_bands"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "case_inbox",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("names", sa.Text, nullable=False),
        sa.Column("outcomes", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_case_inbox"),
    )
    op.create_table(
        "case_imports",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("agent", sa.String(255), nullable=False),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("format", sa.String(32), nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("added", sa.Integer, nullable=False),
        sa.Column("duplicates", sa.Integer, nullable=False),
        sa.Column("bad", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_case_imports"),
    )


def _case_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(64)),
        *(sa.Column(name, sa.String(255)) for name in ("response_id", "body_id", "episode", "session", "user")),
        *(sa.Column(name, sa.String(255)) for name in ("agent", "task_type")),
        sa.Column("messages", sa.JSON, nullable=False),
        sa.Column("tools", sa.JSON),
        *(sa.Column(name, sa.String(255)) for name in ("adapter", "base")),
        sa.Column("sampling", sa.JSON, nullable=False),
        sa.Column("response", sa.JSON),
        sa.Column("correction", sa.Text),
        sa.Column("label", sa.Text),
        sa.Column("corrected", sa.Boolean, nullable=False),
        sa.Column("reward", sa.Float),
        sa.Column("reward_source", sa.String(255)),
        sa.Column("rewarded_at", TIME),
        sa.Column("reason", sa.String(64)),
        sa.Column("difficulty", sa.Float),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("completion_tokens", sa.Integer),
        sa.Column("latency_s", sa.Float),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("cluster", sa.String(36), nullable=False),
        sa.Column("split", sa.String(8), nullable=False),
        sa.Column("import_id", sa.String(36)),
        sa.Column("repeat_of", sa.String(36)),
        sa.Column("signature", sa.LargeBinary, nullable=False),
    ]
