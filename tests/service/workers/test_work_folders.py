"""Partial work goes when its unit has ended, and stays while anybody may still need it."""

import os
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from glue.records import leases
from glue.records.ids import new_id
from glue.records.jobs import request_cancel, request_pause
from glue.records.leases import WorkerIdentity
from glue.records.tables import Artifact
from glue.specs.plan import WorkerClass
from tests.support.service import FAST, OWNER, Jobs
from workers.executor import Executor
from workers.settings import Settings
from workers.work_folders import sweep, sweep_copies

IDENTITY = WorkerIdentity("wrk_test", tuple(WorkerClass), 2**40)


@pytest.fixture
def settings(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in FAST.items():
        monkeypatch.setenv(name, value)
    return Settings.model_validate({"database_url": database_url, "GLUE_HOME": tmp_path, "GLUE_SWEEP_SECONDS": 0.3})


@pytest.fixture
def executor(settings: Settings) -> Iterator[Executor]:
    executor = Executor(settings, list(WorkerClass))
    executor.start()
    yield executor
    executor.drain()
    executor.join()


def partial_work(settings: Settings, unit_id: str) -> Path:
    """What a unit leaves that did not come to its end."""
    folder = settings.work / unit_id
    (folder / "digest" / "model").mkdir(parents=True)
    (folder / "digest" / "model" / "shard.tmp.7").write_bytes(bytes(1000))
    return folder


def test_what_a_failed_unit_left_goes_at_once(executor: Executor, settings: Settings, jobs: Jobs) -> None:
    job_id = jobs.submit({"do": "write_and_fail"})
    jobs.wait_for_status(job_id, "failed")
    jobs.wait_for(lambda: not list(settings.work.iterdir()), 5)


def test_what_a_cancelled_unit_left_goes_at_once(executor: Executor, settings: Settings, jobs: Jobs) -> None:
    job_id = jobs.submit({"do": "write_and_wait"})
    jobs.wait_for(lambda: settings.work.is_dir() and bool(list(settings.work.rglob("shard"))))
    with jobs.database.transaction() as session:
        request_cancel(session, OWNER, job_id)
    jobs.wait_for_status(job_id, "cancelled")
    jobs.wait_for(lambda: not list(settings.work.iterdir()), 5)


def test_what_others_left_goes_at_a_later_sweep(executor: Executor, settings: Settings, jobs: Jobs) -> None:
    """A worker died of the unit for good, or the job was cancelled while nobody worked at it."""
    waiting = jobs.submit({"do": "nothing"}, worker_class=WorkerClass.CPU, priority=-1)
    jobs.wait_for_status(waiting, "succeeded")
    folder = partial_work(settings, jobs.units(waiting)[0].id)
    jobs.wait_for(lambda: not folder.exists(), 5)


def test_work_stays_while_a_unit_is_leased_or_waits(settings: Settings, jobs: Jobs) -> None:
    leased, ready, paused, cancelled = (jobs.submit({}, priority=10 - number) for number in range(4))
    folders = {
        job_id: partial_work(settings, jobs.units(job_id)[0].id) for job_id in (leased, ready, paused, cancelled)
    }
    with jobs.database.transaction() as session:
        claim = leases.claim(session, IDENTITY, timedelta(seconds=60))
        request_pause(session, OWNER, paused)
        request_cancel(session, OWNER, cancelled)
    assert claim is not None
    assert claim.unit.job_id == leased
    assert sweep(settings.work, jobs.database) == 1
    assert {job_id for job_id, folder in folders.items() if folder.exists()} == {leased, ready, paused}
    with jobs.database.transaction() as session:
        request_cancel(session, OWNER, leased)
    assert sweep(settings.work, jobs.database) == 0, "its worker still holds it"
    with jobs.database.transaction() as session:
        leases.release(session, claim.unit.unit_id, claim.token)
    assert sweep(settings.work, jobs.database) == 1
    assert not folders[leased].exists()


def test_work_of_units_that_nobody_knows_stays_for_a_day(settings: Settings, jobs: Jobs) -> None:
    fresh, old = partial_work(settings, "unit_fresh"), partial_work(settings, "unit_old")
    grow_old(old)
    assert sweep(settings.work, jobs.database) == 1
    assert fresh.exists()
    assert not old.exists()


def test_sweeping_is_safe_beside_others_and_without_a_folder(settings: Settings, jobs: Jobs) -> None:
    assert sweep(settings.work, jobs.database) == 0
    job_ids = [jobs.submit({}) for _ in range(5)]
    folders = [partial_work(settings, jobs.units(job_id)[0].id) for job_id in job_ids]
    with jobs.database.transaction() as session:
        for job_id in job_ids:
            request_cancel(session, OWNER, job_id)
    shutil.rmtree(folders[2])
    assert sweep(settings.work, jobs.database) == 4
    assert sweep(settings.work, jobs.database) == 0


def test_copies_of_what_lies_on_object_storage_go_a_day_after_their_last_use(settings: Settings, jobs: Jobs) -> None:
    """But not while a job lives that made them."""
    living, ended = (made(jobs, settings, digest * 64) for digest in "ab")
    unknown, fresh = (copy(settings, digest * 64) for digest in "cd")
    with jobs.database.transaction() as session:
        request_cancel(session, OWNER, ended[0])
    for folder in (living[1], ended[1], unknown):
        grow_old(folder)
    assert sweep_copies(settings.artifacts, jobs.database) == 2
    assert {folder for folder in (living[1], ended[1], unknown, fresh) if folder.exists()} == {living[1], fresh}


def made(jobs: Jobs, settings: Settings, digest: str) -> tuple[str, Path]:
    """A job, and the folder that it made."""
    job_id, folder = jobs.submit({}), copy(settings, digest)
    location = f"{digest[:2]}/{digest}"
    with jobs.database.transaction() as session:
        values = {"kind": "model", "digest": digest, "location": location, "manifest": {}, "token": 1}
        unit_id = jobs.units(job_id)[0].id
        session.add(Artifact(id=new_id("art"), owner=OWNER, job_id=job_id, unit_id=unit_id, **values))
    return job_id, folder


def copy(settings: Settings, digest: str) -> Path:
    folder = settings.artifacts / digest[:2] / digest
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


def grow_old(folder: Path) -> None:
    long_ago = time.time() - 25 * 3600
    os.utime(folder, (long_ago, long_ago))
