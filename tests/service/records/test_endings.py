"""How a lease ends: completed, failed, released, lost; and that nothing is written without one."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select, text

from glue.records.artifacts import get_artifact, list_artifacts
from glue.records.database import Database, database_time
from glue.records.errors import LeaseLost, NotFoundError
from glue.records.events import list_events
from glue.records.jobs import get_job, get_unit, list_stages, list_units
from glue.records.leases import Backoff, Claim, claim, complete, fail, reap, release
from glue.records.scores import find_score, store_score
from glue.records.tables import Attempt, Outbox, Unit
from glue.specs.plan import ArtifactPlan, UnitOutcome
from tests.support.chains import (
    AT_ONCE,
    INTERNAL_ERROR,
    LEASE,
    OTHER_WORKER,
    OWNER,
    TRANSIENT_ERROR,
    USER_ERROR,
    WORKER,
    expire,
    finish,
    finish_all,
    must_take,
    submit,
    take,
    unlock,
)

ARTIFACT = ArtifactPlan("merge", "d" * 64, "dd/" + "d" * 64, {"files": [{"path": "config.json", "size": 2}]})


def complete_unit(database: Database, claimed: Claim) -> None:
    outcome = UnitOutcome({"mean": 0.25}, artifact=ARTIFACT)
    with database.transaction() as session:
        complete(session, claimed.unit.unit_id, claimed.token, outcome, unlock)


def fail_unit(database: Database, claimed: Claim) -> None:
    with database.transaction() as session:
        fail(session, claimed.unit.unit_id, claimed.token, TRANSIENT_ERROR, retry=True, backoff=AT_ONCE)


def release_unit(database: Database, claimed: Claim) -> None:
    with database.transaction() as session:
        release(session, claimed.unit.unit_id, claimed.token)


def score_unit(database: Database, claimed: Claim) -> None:
    with database.transaction() as session:
        store_score(session, OWNER, "key", {"mean": 1.0}, claimed.token)


def reap_all(database: Database, backoff: Backoff = AT_ONCE) -> int:
    with database.transaction() as session:
        return reap(session, backoff=backoff)


def unit_of(database: Database, claimed: Claim) -> Unit:
    with database.transaction() as session:
        return get_unit(session, claimed.unit.job_id, claimed.unit.unit_id)


def attempts_of(database: Database, claimed: Claim) -> list[str | None]:
    with database.transaction() as session:
        statement = select(Attempt.outcome).where(Attempt.unit_id == claimed.unit.unit_id).order_by(Attempt.token)
        return list(session.scalars(statement))


def take_the_same(database: Database, earlier: Claim) -> Claim:
    again = must_take(database, OTHER_WORKER)
    assert again.unit.unit_id == earlier.unit.unit_id
    return again


@pytest.mark.parametrize("write", [complete_unit, fail_unit, release_unit, score_unit])
@pytest.mark.parametrize("state", ["expired", "reaped", "claimed by another", "released", "completed"])
def test_nothing_is_written_without_the_lease(
    watched: Database, write: Callable[[Database, Claim], None], state: str
) -> None:
    submit(watched)
    zombie = must_take(watched)
    if state == "released":
        release_unit(watched, zombie)
    elif state == "completed":
        complete_unit(watched, zombie)
    else:
        expire(watched, zombie)
    if state in ("reaped", "claimed by another"):
        reap_all(watched)
    if state == "claimed by another":
        take_the_same(watched, zombie)
    before = unit_of(watched, zombie)

    with pytest.raises(LeaseLost):
        write(watched, zombie)

    after = unit_of(watched, zombie)
    assert (after.state, after.attempts, after.lease_token) == (before.state, before.attempts, before.lease_token)
    with watched.transaction() as session:
        assert find_score(session, OWNER, "key") is None


def test_an_unknown_unit_is_a_lost_lease(watched: Database) -> None:
    with watched.transaction() as session, pytest.raises(LeaseLost):
        release(session, "unit_unknown", 1)


def test_completing_records_result_artifact_and_attempt(watched: Database) -> None:
    job_id = submit(watched)
    claimed = must_take(watched)

    complete_unit(watched, claimed)

    unit = unit_of(watched, claimed)
    assert (unit.state, unit.result, unit.summary, unit.lease_owner) == (
        "succeeded",
        {"mean": 0.25},
        {"mean": 0.25},
        None,
    )
    assert unit.finished_at is not None
    assert attempts_of(watched, claimed) == ["succeeded"]
    with watched.transaction() as session:
        [artifact] = list_artifacts(session, OWNER, job_id)
        assert get_artifact(session, OWNER, artifact.id).manifest == ARTIFACT.manifest
        assert (artifact.digest, artifact.location, artifact.token) == (
            ARTIFACT.digest,
            ARTIFACT.location,
            claimed.token,
        )
        assert list_artifacts(session, "eve", job_id) == []
        with pytest.raises(NotFoundError):
            get_artifact(session, "eve", artifact.id)


def test_a_result_that_is_not_json_is_refused_and_leaves_the_lease(watched: Database) -> None:
    submit(watched)
    claimed = must_take(watched)

    with pytest.raises(Exception, match="Out of range float"):
        finish(watched, claimed, UnitOutcome({"mean": float("nan")}))

    assert unit_of(watched, claimed).state == "leased"
    finish(watched, claimed)


def test_a_score_is_kept_once_for_its_owner_and_can_precede_the_completion(watched: Database) -> None:
    submit(watched)
    first, second = must_take(watched), must_take(watched)

    with watched.transaction() as session:
        store_score(session, OWNER, "key", {"mean": 1.0}, first.token)
        complete(session, first.unit.unit_id, first.token, UnitOutcome({}), unlock)
    with watched.transaction() as session:
        store_score(session, OWNER, "key", {"mean": 2.0}, second.token)

    with watched.transaction() as session:
        assert find_score(session, OWNER, "key") == {"mean": 1.0}
        assert find_score(session, "eve", "key") is None


def test_a_transient_failure_is_tried_again_later_and_later(watched: Database) -> None:
    job_id = submit(watched)
    delays = []
    for _ in range(2):
        claimed = must_take(watched)
        with watched.transaction() as session:
            fail(session, claimed.unit.unit_id, claimed.token, TRANSIENT_ERROR, retry=True)
            now = database_time(session)
            unit = get_unit(session, job_id, claimed.unit.unit_id)
        assert (unit.state, unit.error, unit.finished_at) == ("ready", TRANSIENT_ERROR, None)
        delays.append((unit.not_before - now).total_seconds())
        with watched.transaction() as session:
            due = session.scalars(select(Outbox.due_at).order_by(Outbox.id.desc())).first()
            assert due == unit.not_before
            session.execute(text("UPDATE unit SET not_before = now() WHERE id = :id"), {"id": unit.id})

    assert delays == pytest.approx([4, 8], abs=0.5)
    assert attempts_of(watched, claimed) == ["failed", "failed"]
    with watched.transaction() as session:
        retried = [event for event in list_events(session, job_id, 0, 50) if event.type == "unit.retried"]
    assert [event.data["attempt"] for event in retried] == [1, 2]
    assert retried[0].data["error"]["reason"] == "disk_full"


def test_a_unit_that_fails_every_time_fails_its_job(watched: Database) -> None:
    job_id = submit(watched)
    bystander = submit(watched)
    for _ in range(3):
        claimed = must_take(watched)
        fail_unit(watched, claimed)

    with watched.transaction() as session:
        job = get_job(session, OWNER, job_id)
        states = {stage.name: stage.state for stage in list_stages(session, job_id)}
        units = [unit.state for unit in list_units(session, job_id)]
        types = [event.type for event in list_events(session, job_id, 0, 50)]
    assert (job.status, job.status_reason, job.error) == ("failed", "disk_full", TRANSIENT_ERROR)
    assert states == {"resolve": "failed", "join": "cancelled"}
    assert units == ["failed", "cancelled"]
    assert types[-3:] == ["unit.failed", "stage.failed", "job.failed"]
    assert {unit.job_id for unit in finish_all(watched)} == {bystander}


@pytest.mark.parametrize(
    ("error", "retry"), [(USER_ERROR, True), (INTERNAL_ERROR, False)], ids=["the user's fault", "not to be retried"]
)
def test_what_is_not_tried_again(watched: Database, error: dict, retry: bool) -> None:  # type: ignore[type-arg]
    job_id = submit(watched)
    claimed = must_take(watched)

    with watched.transaction() as session:
        fail(session, claimed.unit.unit_id, claimed.token, error, retry=retry)

    with watched.transaction() as session:
        assert get_job(session, OWNER, job_id).status_reason == error["reason"]


def test_an_error_with_characters_that_json_columns_refuse_is_stored(watched: Database) -> None:
    submit(watched)
    claimed = must_take(watched)

    with watched.transaction() as session:
        error = {**INTERNAL_ERROR, "detail": "nul \0 and half a pair \ud800"}
        fail(session, claimed.unit.unit_id, claimed.token, error, retry=False)

    stored = unit_of(watched, claimed).error
    assert stored is not None
    assert stored["detail"] == "nul \ufffd and half a pair ?"


def test_a_failed_trial_does_not_stop_its_search(watched: Database) -> None:
    job_id = submit(watched)
    while (claimed := must_take(watched)).unit.kind != "score.candidate":
        finish(watched, claimed)
    failed = claimed.unit

    with watched.transaction() as session:
        fail(session, failed.unit_id, claimed.token, USER_ERROR, retry=False)
    advance = next(unit for unit in finish_all(watched) if unit.stage == "search" and unit.units)

    assert advance.family == failed.family
    assert [(unit.position, unit.result, unit.error) for unit in advance.units] == [
        (0, None, USER_ERROR),
        (1, {"mean": 0.5, "values": [0.0, 1.0]}, None),
    ]
    with watched.transaction() as session:
        assert get_job(session, OWNER, job_id).status == "succeeded"
        assert get_unit(session, job_id, failed.unit_id).state == "failed"
        assert "unit.failed" in [event.type for event in list_events(session, job_id, 0, 50)]


def test_a_search_whose_trials_all_fail_still_advances(watched: Database) -> None:
    submit(watched)
    advances = []
    while (claimed := take(watched)) is not None:
        if claimed.unit.kind != "score.candidate":
            advances.append(claimed.unit)
            finish(watched, claimed)
            continue
        with watched.transaction() as session:
            fail(session, claimed.unit.unit_id, claimed.token, USER_ERROR, retry=False)

    decided = [unit for unit in advances if unit.stage == "search" and unit.units]
    assert [[unit.error for unit in advance.units] for advance in decided] == [[USER_ERROR, USER_ERROR]] * 2


def test_the_failure_of_an_advance_is_not_a_trial(watched: Database) -> None:
    job_id = submit(watched)
    while (claimed := must_take(watched)).unit.stage != "search":
        finish(watched, claimed)

    with watched.transaction() as session:
        fail(session, claimed.unit.unit_id, claimed.token, INTERNAL_ERROR, retry=False)

    with watched.transaction() as session:
        assert get_job(session, OWNER, job_id).status == "failed"


def test_a_released_unit_costs_no_attempt(watched: Database) -> None:
    submit(watched)
    for _ in range(10):
        claimed = must_take(watched)
        release_unit(watched, claimed)

    unit = unit_of(watched, claimed)
    assert (unit.state, unit.attempts, unit.crashes, unit.error) == ("ready", 0, 0, None)
    assert attempts_of(watched, claimed) == ["released"] * 10


def test_a_release_can_ask_for_a_pause(watched: Database) -> None:
    submit(watched)
    claimed = must_take(watched)

    with watched.transaction() as session:
        release(session, claimed.unit.unit_id, claimed.token, delay=timedelta(minutes=5))

    assert must_take(watched).unit.unit_id != claimed.unit.unit_id
    assert take(watched) is None


def test_the_reaper_takes_back_only_what_has_expired(watched: Database) -> None:
    job_id = submit(watched)
    dead, living = must_take(watched), must_take(watched, OTHER_WORKER)
    expire(watched, dead)

    assert reap_all(watched, Backoff()) == 1
    assert reap_all(watched) == 0

    unit = unit_of(watched, dead)
    assert (unit.state, unit.attempts, unit.crashes) == ("ready", 1, 1)
    assert unit_of(watched, living).state == "leased"
    assert attempts_of(watched, dead) == ["lost"]
    assert take(watched) is None, "it has to wait a second"
    with watched.transaction() as session:
        [lost] = [event for event in list_events(session, job_id, 0, 50) if event.type == "unit.lost"]
    assert (lost.token, lost.data["error"]["reason"]) == (dead.token, "worker_lost")


def test_a_poisonous_unit_fails_its_job_and_no_other(watched: Database) -> None:
    poisoned, bystander = submit(watched), submit(watched)
    for _ in range(3):
        claimed = must_take(watched)
        assert claimed.unit.job_id == poisoned
        expire(watched, claimed)
        assert reap_all(watched) == 1

    with watched.transaction() as session:
        job = get_job(session, OWNER, poisoned)
    assert (job.status, job.status_reason) == ("failed", "worker_lost")
    assert unit_of(watched, claimed).crashes == 3
    assert {unit.job_id for unit in finish_all(watched)} == {bystander}


def test_a_poisonous_trial_is_a_failed_trial(watched: Database) -> None:
    job_id = submit(watched)
    while (claimed := must_take(watched)).unit.kind != "score.candidate":
        finish(watched, claimed)
    for _ in range(3):
        expire(watched, claimed)
        reap_all(watched)
        again = take(watched)
        if again is not None and again.unit.unit_id == claimed.unit.unit_id:
            claimed = again
        elif again is not None:
            finish(watched, again)

    finish_all(watched)
    with watched.transaction() as session:
        assert get_job(session, OWNER, job_id).status == "succeeded"


def test_crashes_and_failures_have_budgets_of_their_own(watched: Database) -> None:
    submit(watched)
    for end in ("crash", "fail", "crash", "fail"):
        claimed = must_take(watched)
        if end == "fail":
            fail_unit(watched, claimed)
        else:
            expire(watched, claimed)
            reap_all(watched)

    unit = unit_of(watched, claimed)
    assert (unit.state, unit.attempts, unit.crashes) == ("ready", 4, 2)
    finish(watched, must_take(watched))


def test_the_reaper_goes_at_most_so_far_at_once(watched: Database) -> None:
    jobs = [submit(watched) for _ in range(3)]
    claims = [must_take(watched) for _ in range(6)]
    for claimed in claims:
        expire(watched, claimed)

    with watched.transaction() as session:
        assert reap(session, max_units=4) == 4
    with watched.transaction() as session:
        assert reap(session, max_units=4) == 2
        assert {get_job(session, OWNER, job_id).status for job_id in jobs} == {"running"}


def test_several_expired_units_of_one_job_share_its_end(watched: Database) -> None:
    job_id = submit(watched)
    for _ in range(3):
        claims = [must_take(watched), must_take(watched)]
        for claimed in claims:
            expire(watched, claimed)
        assert reap_all(watched) == 2

    with watched.transaction() as session:
        assert get_job(session, OWNER, job_id).status == "failed"
    assert sorted(unit_of(watched, claimed).state for claimed in claims) == ["cancelled", "failed"]


def test_a_failed_job_learns_nothing_from_its_last_workers(watched: Database) -> None:
    job_id = submit(watched)
    failing, late = must_take(watched), must_take(watched, OTHER_WORKER)
    with watched.transaction() as session:
        fail(session, failing.unit.unit_id, failing.token, USER_ERROR, retry=False)
        events = len(list_events(session, job_id, 0, 50))

    complete_unit(watched, late)

    assert (unit_of(watched, late).state, unit_of(watched, late).result) == ("cancelled", None)
    assert attempts_of(watched, late) == ["cancelled"]
    with watched.transaction() as session:
        assert len(list_events(session, job_id, 0, 50)) == events
        assert list_artifacts(session, OWNER, job_id) == []


def test_several_steps_in_one_transaction_see_each_other(watched: Database) -> None:
    job_id = submit(watched)

    with watched.transaction() as session:
        for _ in range(3):
            claimed = claim(session, WORKER, LEASE)
            assert claimed is not None
            outcome = UnitOutcome({}, finished=claimed.unit.kind == "advance")
            complete(session, claimed.unit.unit_id, claimed.token, outcome, unlock)
        assert {stage.name for stage in list_stages(session, job_id)} == {"resolve", "search", "join"}
