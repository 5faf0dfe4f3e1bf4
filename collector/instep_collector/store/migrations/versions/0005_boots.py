"""Nodes remember when their boot began, so that a server that starts again knows how long a frame waited."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go on to this schema."""
    with op.batch_alter_table("nodes") as table:
        table.add_column(sa.Column("booted_at", sa.Double(), nullable=True))
