"""An index by which canaries read a version's rewards of the last hours."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the index."""
    op.create_index("ix_cases_adapter_created_at", "cases", ["adapter", "created_at"])
