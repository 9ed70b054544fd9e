"""Datasets: what a content hash stands for, and which cases are held out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "datasets",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("agent", sa.String(255), nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("purged_at", TIME),
        sa.PrimaryKeyConstraint("name", name="pk_datasets"),
    )
    op.create_index("ix_datasets_agent", "datasets", ["agent"])
    op.create_table(
        "dataset_members",
        sa.Column("dataset", sa.String(32), nullable=False),
        sa.Column("case_id", sa.String(36), nullable=False),
        sa.Column("part", sa.String(16), nullable=False),
        sa.Column("given", sa.Text),
        sa.Column("reward", sa.Float),
        sa.Column("row_hash", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "case_id", name="pk_dataset_members"),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.name"], name="fk_dataset_members_dataset_datasets"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_dataset_members_case_id", "dataset_members", ["case_id"])
