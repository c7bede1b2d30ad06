"""Jobs as their owner creates, finds and lists them."""

import pytest
from sqlalchemy.exc import InvalidRequestError

from glue.records.database import Database
from glue.records.errors import NotFoundError
from glue.records.events import list_events
from glue.records.jobs import create_job, get_job, get_unit, list_jobs, list_stages, list_units
from glue.records.zoos import put_zoo
from glue.specs.digests import digest_of
from tests.support.chains import OWNER, at_submission, finish_all, job_spec, submit


def test_a_created_job_is_stored_whole(watched: Database) -> None:
    spec = job_spec(seed=11)
    with watched.transaction() as session:
        zoo, _ = put_zoo(session, OWNER, spec.zoo)
        options = {"name": "nightly", "labels": {"env": "dev"}, "priority": 3, "zoo_id": zoo.id}
        created = create_job(session, OWNER, spec, at_submission(), **options)

    with watched.transaction() as session:
        job = get_job(session, OWNER, created.id)
        stages = list_stages(session, job.id)
        units = list_units(session, job.id)
        [event] = list_events(session, job.id, 0, 10)
    assert (job.name, job.labels, job.priority, job.zoo_id) == ("nightly", {"env": "dev"}, 3, zoo.id)
    assert (job.kind, job.seed, job.status, job.spec_version) == ("model_glue", 11, "queued", 1)
    assert (job.spec, job.spec_digest) == (spec.as_json(), digest_of(spec.as_json()))
    assert (job.id[:4], job.created_at.utcoffset() is not None, job.started_at) == ("job_", True, None)
    assert [(stage.name, stage.state) for stage in stages] == [("resolve", "pending"), ("join", "pending")]
    assert [(unit.kind, unit.position, unit.state) for unit in units] == [
        ("resolve.inspect", 0, "ready"),
        ("resolve.inspect", 1, "ready"),
    ]
    assert (event.type, event.seq, event.data) == ("job.created", 1, {"kind": "model_glue"})


def test_an_error_leaves_no_trace_of_a_job(watched: Database) -> None:
    def create_and_break() -> None:
        with watched.transaction() as session:
            create_job(session, OWNER, job_spec(), at_submission())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        create_and_break()
    with watched.transaction() as session:
        assert list_jobs(session, OWNER) == []


def test_jobs_are_listed_newest_first_page_by_page(watched: Database) -> None:
    ids = [submit(watched) for _ in range(5)]

    with watched.transaction() as session:
        first = list_jobs(session, OWNER, limit=2)
        second = list_jobs(session, OWNER, after=first[-1].id, limit=2)
        third = list_jobs(session, OWNER, after=second[-1].id, limit=2)

    assert [job.id for page in (first, second, third) for job in page] == ids[::-1]


def test_jobs_are_found_by_status_and_labels(watched: Database) -> None:
    done = submit(watched, labels={"env": "dev", "team": "red"})
    finish_all(watched)
    waiting = submit(watched, labels={"env": "dev"})

    def found(**filters: object) -> list[str]:
        with watched.transaction() as session:
            return [job.id for job in list_jobs(session, OWNER, **filters)]  # type: ignore[arg-type]

    assert found(statuses=["queued"]) == [waiting]
    assert found(statuses=["queued", "succeeded"]) == [waiting, done]
    assert found(labels={"env": "dev"}) == [waiting, done]
    assert found(labels={"env": "dev", "team": "red"}) == [done]
    assert found(labels={"team": "blue"}) == []


def test_a_job_belongs_to_its_owner(watched: Database) -> None:
    job_id = submit(watched)

    with watched.transaction() as session:
        assert list_jobs(session, "eve") == []
        with pytest.raises(NotFoundError) as refusal:
            get_job(session, "eve", job_id)
        with pytest.raises(NotFoundError):
            get_unit(session, job_id, "unit_unknown")
    assert refusal.value.code == "not_found"


def test_results_of_stages_are_loaded_on_request_only(watched: Database) -> None:
    job_id = submit(watched)
    finish_all(watched)

    with watched.transaction() as session:
        light = list_stages(session, job_id)
        with pytest.raises(InvalidRequestError):
            _ = light[0].result
    with watched.transaction() as session:
        full = list_stages(session, job_id, results=True)
    assert full[0].result == {"of": "resolve", "units": 2}
