"""Prefixed ids that sort by the time of their making. Knows nothing of what they name."""

from ulid import ULID


def new_id(prefix: str) -> str:
    """A fresh id such as `job_01J9Z...`; ids made by one process sort in the order of their making."""
    return f"{prefix}_{ULID()}"
