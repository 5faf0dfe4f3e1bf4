"""Decisions on plans, the journal of their steps, cordoned nodes, the breaker, answers that are given again."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Go on to this schema."""
    with op.batch_alter_table("incidents") as table:
        table.add_column(sa.Column("acknowledged_at", sa.Double(), nullable=True))
        table.add_column(sa.Column("acknowledged_by", sa.String(length=200), nullable=False, server_default=""))
        table.add_column(sa.Column("acknowledgement", sa.Text(), nullable=False, server_default=""))
        table.add_column(sa.Column("version", sa.Integer(), nullable=False, server_default="1"))
    with op.batch_alter_table("plans", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.alter_column("incident", existing_type=sa.String(length=40), nullable=True)
        table.add_column(sa.Column("decided_at", sa.Double(), nullable=True))
        table.add_column(sa.Column("decided_by", sa.String(length=200), nullable=False, server_default=""))
        table.add_column(sa.Column("decision", sa.Text(), nullable=False, server_default=""))
        table.add_column(sa.Column("is_automatic", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("version", sa.Integer(), nullable=False, server_default="1"))
    op.create_table(
        "steps",
        sa.Column("plan", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("node", sa.String(length=200), nullable=False),
        sa.Column("mark", sa.String(length=300), nullable=False),
        sa.Column("arguments", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["plan", "position"], ["actions.plan", "actions.position"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("plan", "position", "step"),
    )
    op.create_table(
        "cordons",
        sa.Column("node", sa.String(length=200), nullable=False),
        sa.Column("plan", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("node"),
    )
    op.create_table(
        "breakers",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("reset_at", sa.Double(), nullable=True),
        sa.Column("reset_by", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "answers",
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("token_sha256", "key"),
    )
    op.create_index(op.f("ix_answers_at"), "answers", ["at"])
