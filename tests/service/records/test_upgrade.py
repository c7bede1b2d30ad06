"""An upgrade while the release before still runs: the database that is ahead is good enough, one behind is not."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, pool, text

from glue.plans.model_glue import stages_at_submission
from glue.records import leases
from glue.records.database import Database, psycopg_url
from glue.records.jobs import create_job
from glue.records.leases import WorkerIdentity
from glue.records.schema import schema_is_current, upgrade
from tests.support.database import temporary_database
from tests.support.service import job_spec


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    with temporary_database(postgres_url) as address:
        yield address


def migrate(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glue.records.migrate", *options]
    return subprocess.run(command, env={"DATABASE_URL": url}, capture_output=True, text=True, check=False)


def current(database: Database) -> bool:
    with database.transaction() as session:
        return schema_is_current(session)


def test_the_command_migrates_and_the_waiting_one_sees_it(url: str) -> None:
    assert migrate(url, "--wait", "0").returncode == 1
    done = migrate(url)
    assert done.returncode == 0, done.stderr
    assert migrate(url, "--wait", "0").returncode == 0
    assert migrate(url).returncode == 0


def test_a_database_that_does_not_answer_is_told(url: str) -> None:
    nowhere = "postgresql://nobody:nothing@127.0.0.1:1/none"
    assert migrate(nowhere, "--wait", "0").returncode == 1
    assert migrate(nowhere, "--patience", "0").returncode == 1


def test_the_release_before_goes_on_while_the_next_one_has_migrated(url: str) -> None:
    upgrade(url)
    engine = create_engine(psycopg_url(url), poolclass=pool.NullPool)
    with engine.begin() as connection:
        # What a revision that only adds leaves behind: a column with a default, a table, a revision nobody here knows.
        connection.execute(text("ALTER TABLE unit ADD COLUMN next_release text NOT NULL DEFAULT 'x'"))
        connection.execute(text("ALTER TABLE job ADD COLUMN next_release jsonb"))
        connection.execute(text("CREATE TABLE next_release (id text PRIMARY KEY)"))
        connection.execute(text("UPDATE alembic_version SET version_num = 'next_release'"))
    database = Database(url)
    assert current(database)
    spec = job_spec()
    with database.transaction() as session:
        create_job(session, "anna", spec, stages_at_submission(spec), name=None, labels={}, priority=0, zoo_id=None)
    with database.transaction() as session:
        worker = WorkerIdentity("wrk_1", ("cpu", "gpu", "hub"), 10**12)
        claim = leases.claim(session, worker, timedelta(seconds=30))
    assert claim is not None
    with database.transaction() as session:
        leases.release(session, claim.unit.unit_id, claim.token)
    database.dispose()


def test_a_database_behind_is_not_current(url: str) -> None:
    database = Database(url)
    assert not current(database)
    database.dispose()
