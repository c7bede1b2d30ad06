"""Jobs may be paused."""

from collections.abc import Sequence

from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_BEFORE = "status IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')"
_AFTER = "status IN ('queued', 'running', 'paused', 'cancelling', 'succeeded', 'failed', 'cancelled')"


def upgrade() -> None:
    """Apply the revision; give up rather than queue behind a long transaction and block everybody else."""
    _replace(_AFTER)


def downgrade() -> None:
    """Revert the revision; paused jobs go on."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(
        "UPDATE job SET status = CASE WHEN started_at IS NULL THEN 'queued' ELSE 'running' END WHERE status = 'paused'"
    )
    _replace(_BEFORE)


def _replace(condition: str) -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_constraint(op.f("ck_job_status"), "job", type_="check")
    op.create_check_constraint(op.f("ck_job_status"), "job", condition)
