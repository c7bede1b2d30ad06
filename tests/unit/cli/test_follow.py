"""Following a job shows the stages of its own chain, whatever its kind."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from glue.cli.client import Client
from glue.cli.follow import follow


class Ended(Client):
    """A service with one job, which has ended."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__("http://127.0.0.1:9", "none")
        self._job = job

    def job(self, job_id: str) -> dict[str, Any]:
        return self._job


def shown(kind: str, names: list[str], **spec: Any) -> list[str]:
    run = {"status": "succeeded", "started_at": "2026-01-01T00:00:00Z", "units": {"finished": 1, "total": 1}}
    stages = [{"name": name, **run} for name in names]
    job = {"kind": kind, "spec": spec, "chain": names, "status": "succeeded", "status_message": None, "stages": stages}
    out = StringIO()
    with Ended(job) as client:
        assert follow(client, "job_1", Console(file=out, width=80)) == job
    return [line.split()[0] for line in out.getvalue().splitlines() if line.strip()]


CHAIN = ["resolve", "similarity", "baselines", "search", "merge", "mixture", "report"]


@pytest.mark.parametrize(
    ("kind", "names", "spec"),
    [
        ("model_glue", CHAIN, {"publish": None}),
        ("model_glue", [*CHAIN, "publish"], {"publish": {"repo": "org/name"}}),
        ("publish", ["publish"], {"publish": {"repo": "org/name"}}),
    ],
)
def test_every_stage_of_the_jobs_chain_has_a_bar_and_no_other(
    kind: str, names: list[str], spec: dict[str, Any]
) -> None:
    assert shown(kind, names, **spec) == names
