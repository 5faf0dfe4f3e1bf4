"""Incidents remember that their device was mended before the job's own stop was over."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go on to this schema."""
    with op.batch_alter_table("incidents") as table:
        table.add_column(sa.Column("mended", sa.JSON(), nullable=True))
