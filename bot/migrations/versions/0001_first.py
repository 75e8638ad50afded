"""Messages, decisions and what the twin was doing in a scene."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the three tables."""
    op.create_table(
        "messages",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("scene", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger()),
        sa.Column("sender_id", sa.Text(), nullable=False),
        sa.Column("sender_name", sa.Text(), nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("reply_to", sa.Text()),
        sa.Column("mentions", sa.JSON(), nullable=False),
        sa.Column("recalled", sa.Boolean(), nullable=False),
        sa.Column("segments", sa.JSON(), nullable=False),
        sa.Column("scene_name", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.UniqueConstraint("scene", "message_id"),
    )
    op.create_index("messages_in_order", "messages", ["scene", "time_ms", "seq", "pk"])
    op.create_index("messages_by_sender", "messages", ["sender_id", "scene", "time_ms"])
    op.create_table(
        "decisions",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("scene", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.Column("persona", sa.Text(), nullable=False),
        sa.Column("version", sa.Text()),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("why", sa.JSON(), nullable=False),
    )
    op.create_index("decisions_in_order", "decisions", ["scene", "time_ms"])
    op.create_table(
        "scene_log",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("scene", sa.Text(), nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
    )
    op.create_index("scene_log_in_order", "scene_log", ["scene", "kind", "time_ms", "pk"])


def downgrade() -> None:
    """Drop the three tables."""
    for table in ("scene_log", "decisions", "messages"):
        op.drop_table(table)
