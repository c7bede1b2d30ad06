"""Any sequence of what workers, the reaper and a user can do keeps the invariants, and every job comes to an end."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from glue.records import locks
from glue.records.database import Database
from glue.records.errors import JobFinishedError, LeaseLost
from glue.records.jobs import get_job, request_cancel, request_pause, request_resume
from glue.records.leases import Claim, claim, complete, fail, heartbeat, reap, release
from glue.records.scores import store_score
from glue.records.tables import Unit
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
    outcome_of,
    submit,
    take,
    unlock,
)
from tests.support.invariants import clear, violations, watch

ENDED = {"succeeded", "failed", "cancelled"}
ARTIFACT = ArtifactPlan("model", "d" * 64, "dd", {"files": []})


class Records(RuleBasedStateMachine):
    """Two jobs and two workers that may lose their leases without noticing. `held` is what should be true."""

    database: Database

    @initialize()
    def submit_two_jobs(self) -> None:
        clear(self.database)
        self.jobs = [submit(self.database), submit(self.database, priority=1)]
        self.claims: list[Claim] = []
        self.held: set[int] = set()

    @rule(worker=st.sampled_from([WORKER, OTHER_WORKER]))
    def claim(self, worker: Any) -> None:
        with self.database.transaction() as session:
            claimed = claim(session, worker, LEASE)
        if claimed is not None:
            assert claimed.token not in self.held
            self.claims.append(claimed)
            self.held.add(claimed.token)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        claimed = self._any_claim(data)
        with self.database.transaction() as session:
            owner = session.scalar(select(Unit.lease_owner).where(Unit.lease_token == claimed.token)) or WORKER.id
            beat = heartbeat(session, owner, claimed.unit.unit_id, claimed.token, LEASE, {"fraction": 0.5})
        assert beat.alive == (claimed.token in self.held)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        claimed = data.draw(st.sampled_from([claim for claim in self.claims if claim.token in self.held]))
        expire(self.database, claimed)
        self.held.discard(claimed.token)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), with_artifact=st.booleans())
    def complete(self, data: st.DataObject, with_artifact: bool) -> None:
        claimed = self._any_claim(data)
        outcome = outcome_of(claimed.unit)
        if with_artifact:
            outcome = UnitOutcome(outcome.result, ARTIFACT, outcome.units, outcome.finished)
        self._write(claimed, lambda session, unit_id, token: complete(session, unit_id, token, outcome, unlock))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), error=st.sampled_from([TRANSIENT_ERROR, TRANSIENT_ERROR, INTERNAL_ERROR, USER_ERROR]))
    def fail(self, data: st.DataObject, error: dict[str, Any]) -> None:
        self._write(
            self._any_claim(data),
            lambda session, unit_id, token: fail(session, unit_id, token, error, retry=True, backoff=AT_ONCE),
        )

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self._write(self._any_claim(data), release)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def score(self, data: st.DataObject) -> None:
        claimed = self._any_claim(data)
        with self._fenced(claimed), self.database.transaction() as session:
            store_score(session, OWNER, str(claimed.token), {"mean": 0.5}, claimed.token)

    @rule()
    def reap(self) -> None:
        with self.database.transaction() as session:
            reap(session, backoff=AT_ONCE)

    @rule(number=st.integers(0, 9))
    def cancel(self, number: int) -> None:
        # A cancel ends a job, so it comes seldom.
        if number < len(self.jobs):
            with self.database.transaction() as session:
                try:
                    request_cancel(session, OWNER, self.jobs[number])
                except JobFinishedError:
                    assert get_job(session, OWNER, self.jobs[number]).status in ENDED

    @rule(number=st.integers(0, 1), change=st.sampled_from([request_pause, request_resume, request_resume]))
    def pause_or_resume(self, number: int, change: Callable[[Session, str, str], Any]) -> None:
        with self.database.transaction() as session:
            try:
                change(session, OWNER, self.jobs[number])
            except JobFinishedError:
                assert get_job(session, OWNER, self.jobs[number]).status in {*ENDED, "cancelling"}

    @invariant()
    def nothing_is_broken(self) -> None:
        with self.database.transaction() as session:
            assert violations(session) == {}

    def teardown(self) -> None:
        """However it stands now, workers and reaper bring every job to its end, once nothing is paused."""
        for number in range(len(self.jobs)):
            self.pause_or_resume(number, request_resume)
        with self.database.transaction() as session:
            session.execute(text("UPDATE unit SET lease_expires_at = now() - interval '1 s' WHERE state = 'leased'"))
        self.reap()
        finish_all(self.database)
        self.nothing_is_broken()
        with self.database.transaction() as session:
            assert {get_job(session, OWNER, job_id).status for job_id in self.jobs} <= ENDED

    def _any_claim(self, data: st.DataObject) -> Claim:
        """Mostly a recent one, so that things move on; older ones are the zombies'."""
        return self.claims[-1 - data.draw(st.integers(0, min(3, len(self.claims) - 1)))]

    def _write(self, claimed: Claim, write: Callable[[Session, str, int], None]) -> None:
        with self._fenced(claimed), self.database.transaction() as session:
            write(session, claimed.unit.unit_id, claimed.token)
        self.held.discard(claimed.token)

    def _fenced(self, claimed: Claim) -> AbstractContextManager[Any]:
        return nullcontext() if claimed.token in self.held else pytest.raises(LeaseLost)


def explore(database: Database, examples: int, *, always_the_same: bool) -> None:
    machine = type("OnThisDatabase", (Records,), {"database": database})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=35,
            deadline=None,
            derandomize=always_the_same,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_sequence_keeps_the_invariants(watched: Database) -> None:
    explore(watched, examples=6, always_the_same=True)


@pytest.mark.long
def test_many_sequences_keep_the_invariants(watched: Database) -> None:
    explore(watched, examples=300, always_the_same=False)


def _unfenced(session: Session, unit_id: str, token: int) -> Unit:
    return session.scalars(select(Unit).where(Unit.id == unit_id).with_for_update(key_share=True)).one()


def test_without_the_fence_a_zombie_breaks_the_invariants(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is worth something only if it sees what the fence prevents."""
    with database.transaction() as session:
        watch(session)
    submit(database)
    zombie = must_take(database)
    expire(database, zombie)
    with database.transaction() as session:
        reap(session, backoff=AT_ONCE)
    heir = take(database, OTHER_WORKER)
    assert heir is not None
    assert heir.unit.unit_id == zombie.unit.unit_id
    with database.transaction() as session:
        assert violations(session) == {}
    monkeypatch.setattr(locks, "hold_lease", _unfenced)

    finish(database, zombie, UnitOutcome({}, ARTIFACT))

    with database.transaction() as session:
        broken = violations(session)
    assert {rule.split()[0] for rule in broken} == {"I2", "I3", "I5"}
    assert "I3 no event is written under a token that is no longer the latest" in broken
    assert "I3 no artifact is written under a token that is no longer the latest" in broken
