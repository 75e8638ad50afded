"""What was imported, and which messages of a source stand in the archive as another source's."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the two tables."""
    pk = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "imports",
        sa.Column("pk", pk, primary_key=True, autoincrement=True),
        sa.Column("digest", sa.Text(), nullable=False, unique=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.Column("summary", sa.JSON(), nullable=False),
    )
    op.create_table(
        "same_messages",
        sa.Column("pk", pk, primary_key=True, autoincrement=True),
        sa.Column("scene", sa.Text(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("stored_as", sa.Text(), nullable=False),
        sa.Column("time_ms", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.UniqueConstraint("scene", "message_id"),
    )
    op.create_index("same_messages_in_order", "same_messages", ["scene", "time_ms"])


def downgrade() -> None:
    """Drop the two tables."""
    for table in ("same_messages", "imports"):
        op.drop_table(table)
