"""Plans say whether their cause is a drill."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go on to this schema."""
    with op.batch_alter_table("plans", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.add_column(sa.Column("is_drill", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute(
        "UPDATE plans SET is_drill = (SELECT is_drill FROM incidents WHERE incidents.id = plans.incident) "
        "WHERE incident IS NOT NULL"
    )
