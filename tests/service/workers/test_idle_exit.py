"""A slot that KEDA started for one unit: it works, waits a moment for more, and leaves."""

import time
from pathlib import Path

from tests.support.service import Jobs, processes


def test_it_ends_by_itself_when_there_is_no_work(database_url: str, jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.submit({"do": "nothing"})
    with processes(tmp_path, database_url, GLUE_IDLE_EXIT_SECONDS="2") as started:
        began = time.monotonic()
        slot = started.slot()
        assert slot.wait(60) == 0
        assert time.monotonic() - began > 2
        assert jobs.job(job_id).status == "succeeded"
        assert "no work for" in started.log("one")


def test_without_the_setting_it_stays(database_url: str, jobs: Jobs, tmp_path: Path) -> None:
    with processes(tmp_path, database_url) as started:
        slot = started.slot()
        time.sleep(4)
        assert slot.poll() is None
