"""The chain from the first unit to the end of the job."""

import pytest
from sqlalchemy import func, select, text

from glue.records.database import Database
from glue.records.events import list_events
from glue.records.jobs import get_job, get_unit, list_stages, list_units, progress_of
from glue.records.leases import complete
from glue.records.tables import Outbox, Unit
from glue.specs.plan import ADVANCE, StagePlan, UnitOutcome
from tests.support.chains import OWNER, at_submission, finish, finish_all, job_spec, must_take, submit, take


def test_a_job_runs_through_its_chain(watched: Database) -> None:
    job_id = submit(watched)

    done = finish_all(watched)

    with watched.transaction() as session:
        job = get_job(session, OWNER, job_id)
        stages = list_stages(session, job_id, results=True)
    assert job.status == "succeeded"
    assert job.result == {"of": "join", "units": 1}
    assert [(stage.name, stage.family, stage.state) for stage in stages] == [
        ("resolve", "", "succeeded"),
        ("search", "a", "succeeded"),
        ("search", "b", "succeeded"),
        ("join", "", "succeeded"),
    ]
    assert [unit.stage for unit in done[:3]] == ["resolve"] * 3
    assert [unit.stage for unit in done[-2:]] == ["join"] * 2
    assert len(done) == 3 + 2 * (1 + 2 + 1) + 2


def test_events_tell_the_story_in_order(watched: Database) -> None:
    job_id = submit(watched)
    finish_all(watched)

    with watched.transaction() as session:
        events = list_events(session, job_id, 0, 100)
        later = list_events(session, job_id, events[4].seq, 2)

    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    types = [event.type for event in events]
    assert types[:5] == ["job.created", "job.started", "stage.started", "unit.succeeded", "unit.succeeded"]
    assert types[-4:] == ["stage.started", "unit.succeeded", "stage.succeeded", "job.succeeded"]
    assert types.count("stage.succeeded") == 4
    scored = next(event for event in events if event.stage == "search" and event.type == "unit.succeeded")
    place = {"kind": "score.candidate", "position": 0, "generation": 1}
    assert (scored.family, scored.data) == ("a", place | {"summary": {"mean": 0.5}})
    assert [event.seq for event in later] == [6, 7]


def test_a_stage_that_opens_without_units_begins_with_an_advance(watched: Database) -> None:
    submit(watched, [StagePlan("alone", 0, ready=True)])

    first = must_take(watched)
    assert (first.unit.kind, first.unit.generation, first.unit.position) == (ADVANCE, 0, -1)
    finish(watched, first)

    second, third = must_take(watched), must_take(watched)
    assert [(claim.unit.generation, claim.unit.position) for claim in (second, third)] == [(1, 0), (1, 1)]
    finish(watched, third)
    assert take(watched) is None
    finish(watched, second)
    last = must_take(watched)
    assert (last.unit.kind, last.unit.generation) == (ADVANCE, 1)


def test_a_stage_that_was_opened_before_is_not_opened_again(watched: Database) -> None:
    job_id = submit(watched)
    for _ in range(3):
        finish(watched, must_take(watched))
    with watched.transaction() as session:
        later = (
            "UPDATE unit SET not_before = now() + interval '1 h' FROM stage WHERE stage_id = stage.id AND family = 'b'"
        )
        session.execute(text(later))
    finish_all(watched)
    with watched.transaction() as session:
        states = {(stage.name, stage.family): stage.state for stage in list_stages(session, job_id)}
        session.execute(text("UPDATE unit SET not_before = now()"))
    assert (states["search", "a"], states["search", "b"]) == ("succeeded", "pending")

    finish_all(watched)

    with watched.transaction() as session:
        assert get_job(session, OWNER, job_id).status == "succeeded"


def test_an_advance_sees_its_stage_and_the_finished_stages(watched: Database) -> None:
    submit(watched)
    requests = finish_all(watched)

    advance = [unit for unit in requests if unit.stage == "search" and unit.family == "b" and unit.kind == ADVANCE][-1]
    assert [(outcome.name, outcome.family) for outcome in advance.outcomes] == [("resolve", ""), ("search", "a")]
    assert advance.outcomes[0].result == {"of": "resolve", "units": 2}
    assert [(unit.generation, unit.position, unit.payload) for unit in advance.units] == [
        (1, 0, {"name": "left"}),
        (1, 1, {"name": "right"}),
    ]
    assert advance.units[0].result == {"mean": 0.5, "values": [0.0, 1.0]}
    assert advance.spec == job_spec().as_json()
    assert all(unit.units == () for unit in requests if unit.kind != ADVANCE)


@pytest.mark.parametrize(
    "outcome",
    [UnitOutcome({"neither": True}), UnitOutcome({}, units=at_submission()[0].units, finished=True)],
    ids=["neither units nor a result", "both"],
)
def test_an_advance_that_does_not_decide_fails_the_job(watched: Database, outcome: UnitOutcome) -> None:
    job_id = submit(watched, [StagePlan("alone", 0, ready=True)])

    finish(watched, must_take(watched), outcome)

    with watched.transaction() as session:
        job = get_job(session, OWNER, job_id)
        [stage] = list_stages(session, job_id)
    assert (job.status, job.status_reason, stage.state) == ("failed", "internal", "failed")
    assert job.error is not None
    assert "alone" in job.error["detail"]


def test_a_job_whose_chain_leads_nowhere_fails_instead_of_waiting_for_ever(watched: Database) -> None:
    job_id = submit(watched, [StagePlan("resolve", 0, ready=True), StagePlan("unreachable", 1)])
    claimed = must_take(watched)

    with watched.transaction() as session:
        finished = UnitOutcome({}, finished=True)
        complete(session, claimed.unit.unit_id, claimed.token, finished, lambda spec, outcomes: ())

    with watched.transaction() as session:
        job = get_job(session, OWNER, job_id)
    assert (job.status, job.status_reason) == ("failed", "internal")
    assert job.error is not None
    assert "unreachable" in job.error["detail"]


def test_the_same_inputs_have_the_same_digest_in_every_job(watched: Database) -> None:
    submit(watched)
    first = finish_all(watched)
    submit(watched)
    second = finish_all(watched)

    def digests(requests: list) -> dict:  # type: ignore[type-arg]
        return {(r.stage, r.family, r.generation, r.position): r.digest for r in requests}

    assert digests(first) == digests(second)
    assert len(set(digests(first).values())) == len(first)
    assert {r.unit_id for r in first}.isdisjoint(r.unit_id for r in second)


def test_every_unit_that_becomes_ready_is_announced(watched: Database) -> None:
    submit(watched)
    finish_all(watched)

    with watched.transaction() as session:
        counted = select(Outbox.worker_class, func.count()).group_by(Outbox.worker_class)
        announced = {row.worker_class: row.count for row in session.execute(counted)}
    # Submission, five advances of generations with units, two openings of searches, the joining stage; two searches.
    assert announced == {"cpu": 8, "gpu": 2}


def test_lists_and_progress(watched: Database) -> None:
    job_id = submit(watched)
    for _ in range(4):
        finish(watched, must_take(watched))

    with watched.transaction() as session:
        progress = progress_of(session, job_id)
        units = list_units(session, job_id)
        page = list_units(session, job_id, after=units[1].id, limit=2)
        searched = list_units(session, job_id, stage="search")
        whole = get_unit(session, job_id, units[0].id)
        loaded = session.get_one(Unit, units[0].id)
    assert [(p.stage, p.family, p.state, p.finished, p.total) for p in progress] == [
        ("resolve", "", "succeeded", 2, 2),
        ("search", "a", "running", 0, 2),
        ("search", "b", "pending", 0, 0),
        ("join", "", "pending", 0, 0),
    ]
    assert [unit.id for unit in page] == [units[2].id, units[3].id]
    assert {unit.stage for unit in searched} == {"search"}
    assert (units[0].summary, units[0].state, units[0].attempts, units[0].worker) == (
        {"mean": 0.5},
        "succeeded",
        1,
        None,
    )
    assert whole.result == loaded.result == {"mean": 0.5, "values": [0.0, 1.0]}


def test_a_unit_that_ran_out_of_memory_marks_its_job(watched: Database) -> None:
    job_id = submit(watched)
    reason = "out of memory: batch 32 reduced to 8"
    finish(watched, must_take(watched), UnitOutcome({"mean": 0.5, "notes": {"degraded": reason}}))
    finish_all(watched)

    with watched.transaction() as session:
        assert not get_job(session, OWNER, job_id).reproducible
        told = [event.data["reason"] for event in list_events(session, job_id, 0, 100) if "reason" in event.data]
    assert told == [reason]
