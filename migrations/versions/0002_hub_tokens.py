"""Owners' tokens for the Hub, sealed."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    """Apply the revision; give up rather than queue behind a long transaction and block everybody else."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "hub_token",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_hub_token"),
    )


def downgrade() -> None:
    """Revert the revision; the tokens are lost."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("hub_token")
