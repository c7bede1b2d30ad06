"""Transactions that meet: real threads on a real database."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from threading import Event
from time import monotonic, sleep

import pytest
from sqlalchemy import select, text, update

from glue.records.database import CLOCK, Database
from glue.records.errors import JobFinishedError, LeaseLost
from glue.records.events import list_events
from glue.records.jobs import get_job, list_stages, list_units, request_cancel
from glue.records.leases import Claim, WorkerIdentity, claim, complete, fail, heartbeat, reap, release
from glue.records.locks import lock_whole
from glue.records.tables import Stage, Unit
from glue.specs.plan import StagePlan
from tests.support.chains import (
    AT_ONCE,
    FAMILIES,
    LEASE,
    OTHER_WORKER,
    OWNER,
    TRANSIENT_ERROR,
    WORKER,
    expire,
    finish,
    finish_all,
    inspect_unit,
    must_take,
    outcome_of,
    submit,
    take,
    unlock,
)
from tests.support.threads import at_once


@pytest.fixture
def crowd(watched: Database, watched_url: str) -> Iterator[Database]:
    """The watched database with room for many threads."""
    database = Database(watched_url, pool_size=12)
    yield database
    database.dispose()


def take_all(database: Database, worker: WorkerIdentity) -> list[Claim]:
    claims = []
    while (claimed := take(database, worker)) is not None:
        claims.append(claimed)
    return claims


def cancel(database: Database, job_id: str) -> str:
    with database.transaction() as session:
        return request_cancel(session, OWNER, job_id).status


def last_advances(database: Database, job_id: str) -> list[Claim]:
    """Run the job until one unit is left of either search: the advance that will finish it."""
    held: list[Claim] = []
    while len(held) < len(FAMILIES):
        claimed = must_take(database)
        if claimed.unit.stage == "search" and claimed.unit.units:
            held.append(claimed)
        else:
            finish(database, claimed)
    return held


def test_no_unit_is_claimed_twice(crowd: Database) -> None:
    plans = [StagePlan("alone", 0, ready=True, units=tuple(inspect_unit(str(number)) for number in range(20)))]
    for _ in range(2):
        submit(crowd, plans)
    workers = [WorkerIdentity(f"wrk_{number}", ("cpu",)) for number in range(8)]

    claims = [claim for taken in at_once([partial(take_all, crowd, worker) for worker in workers]) for claim in taken]

    assert len(claims) == 40
    assert len({claim.unit.unit_id for claim in claims}) == 40
    assert len({claim.token for claim in claims}) == 40


def test_first_claims_start_a_job_and_its_stage_once(crowd: Database) -> None:
    for _ in range(10):
        job_id = submit(crowd)
        claims = at_once([partial(take, crowd) for _ in range(4)])

        assert sum(claimed is not None for claimed in claims) == 2
        with crowd.transaction() as session:
            types = Counter(event.type for event in list_events(session, job_id, 0, 50))
        assert (types["job.started"], types["stage.started"]) == (1, 1)


def test_a_claim_that_came_second_to_a_stage_does_not_keep_its_lock(crowd: Database) -> None:
    only = (StagePlan("alone", 0, ready=True, units=(inspect_unit("one"),)),)
    contested, other = submit(crowd, only, priority=1), submit(crowd, only)
    holds, enough = Event(), Event()

    def claim_and_wait() -> Claim | None:
        with crowd.transaction() as session:
            claimed = claim(session, OTHER_WORKER, LEASE)
            holds.set()
            enough.wait(10)
            return claimed

    with ThreadPoolExecutor(1) as pool:
        with crowd.transaction() as session:
            first = claim(session, WORKER, LEASE)
            session.flush()
            late = pool.submit(claim_and_wait)
            _wait_until_somebody_waits(crowd)
        assert holds.wait(10)
        with crowd.transaction() as session:
            free = select(Stage.job_id).with_for_update(skip_locked=True)
            unlocked = session.scalars(free).all()
        enough.set()
        second = late.result(10)

    assert unlocked == [contested]
    assert first is not None
    assert second is not None
    assert (first.unit.job_id, second.unit.job_id) == (contested, other)


def test_units_that_end_together_open_one_advance(crowd: Database) -> None:
    for _ in range(5):
        job_id = submit(crowd)
        first, second = must_take(crowd), must_take(crowd)

        at_once([partial(finish, crowd, claimed) for claimed in (first, second)])

        with crowd.transaction() as session:
            assert [unit.kind for unit in list_units(session, job_id)].count("advance") == 1
        cancel(crowd, job_id)


def test_families_that_finish_together_open_the_joining_stage_once(crowd: Database) -> None:
    for _ in range(5):
        job_id = submit(crowd)
        held = last_advances(crowd, job_id)

        at_once([partial(finish, crowd, claimed) for claimed in held])

        with crowd.transaction() as session:
            joining = list_units(session, job_id, stage="join")
            assert [stage.state for stage in list_stages(session, job_id)] == ["succeeded"] * 3 + ["pending"]
        assert [unit.kind for unit in joining] == ["resolve.inspect"]
        assert [unit.stage for unit in finish_all(crowd)] == ["join", "join"]


def test_the_second_family_waits_for_the_first_and_sees_its_result(crowd: Database) -> None:
    job_id = submit(crowd)
    first, second = last_advances(crowd, job_id)
    with ThreadPoolExecutor(1) as pool:
        with crowd.transaction() as session:
            complete(session, first.unit.unit_id, first.token, outcome_of(first.unit), unlock)
            session.flush()
            late = pool.submit(finish, crowd, second)
            _wait_until_somebody_waits(crowd)
            assert not late.done()
        late.result(10)

    with crowd.transaction() as session:
        assert len(list_units(session, job_id, stage="join")) == 1


def test_who_waits_for_the_whole_job_gets_also_what_was_added_meanwhile(crowd: Database) -> None:
    job_id = submit(crowd)
    for _ in range(2):
        finish(crowd, must_take(crowd))
    opening = must_take(crowd)
    holds, enough = Event(), Event()

    def hold_the_whole() -> None:
        with crowd.transaction() as session:
            lock_whole(session, [job_id])
            holds.set()
            enough.wait(10)

    with ThreadPoolExecutor(1) as pool:
        with crowd.transaction() as session:
            complete(session, opening.unit.unit_id, opening.token, outcome_of(opening.unit), unlock)
            session.flush()
            late = pool.submit(hold_the_whole)
            _wait_until_somebody_waits(crowd)
        assert holds.wait(10)
        with crowd.transaction() as session:
            free = select(Stage.name).where(Stage.job_id == job_id).with_for_update(skip_locked=True)
            assert session.scalars(free).all() == []
            assert len(list_stages(session, job_id)) == 4
        enough.set()
        late.result(10)


def test_a_heartbeat_just_in_time_is_seen_by_the_reaper(crowd: Database) -> None:
    submit(crowd)
    claimed = must_take(crowd)
    with crowd.transaction() as session:
        soon = CLOCK + timedelta(seconds=0.2)
        session.execute(update(Unit).where(Unit.lease_token == claimed.token).values(lease_expires_at=soon))

    def reap_some() -> int:
        with crowd.transaction() as session:
            return reap(session)

    with ThreadPoolExecutor(1) as pool:
        with crowd.transaction() as session:
            assert heartbeat(session, WORKER.id, claimed.unit.unit_id, claimed.token, LEASE, None).alive
            sleep(0.3)
            late = pool.submit(reap_some)
            _wait_until_somebody_waits(crowd)
        assert late.result(10) == 0
    finish(crowd, claimed)


def test_the_last_two_workers_of_a_cancelled_job_do_not_both_wait_for_the_other(crowd: Database) -> None:
    job_id = submit(crowd)
    first, second = last_advances(crowd, job_id)
    assert cancel(crowd, job_id) == "cancelling"

    with ThreadPoolExecutor(1) as pool:
        with crowd.transaction() as session:
            release(session, first.unit.unit_id, first.token)
            session.flush()
            late = pool.submit(_release, crowd, second)
            _wait_until_somebody_waits(crowd)
        late.result(10)

    with crowd.transaction() as session:
        assert get_job(session, OWNER, job_id).status == "cancelled"


@pytest.mark.parametrize("advance_first", [True, False])
def test_an_advance_and_a_cancel_exclude_each_other(crowd: Database, advance_first: bool) -> None:
    job_id = submit(crowd)
    while (claimed := must_take(crowd)).unit.stage != "search":
        finish(crowd, claimed)

    with ThreadPoolExecutor(1) as pool:
        with crowd.transaction() as session:
            if advance_first:
                complete(session, claimed.unit.unit_id, claimed.token, outcome_of(claimed.unit), unlock)
                other: Callable[[], object] = partial(cancel, crowd, job_id)
            else:
                request_cancel(session, OWNER, job_id)
                other = partial(finish, crowd, claimed)
            session.flush()
            late = pool.submit(other)
            _wait_until_somebody_waits(crowd)
            assert not late.done()
        late.result(10)

    with crowd.transaction() as session:
        assert get_job(session, OWNER, job_id).status == "cancelled"
        generations = {unit.generation for unit in list_units(session, job_id, stage="search")}
    assert generations == ({0, 1} if advance_first else {0})


def test_a_cancel_meets_an_advance_and_a_claim_at_any_moment(crowd: Database) -> None:
    for _ in range(6):
        job_id = submit(crowd)
        held = last_advances(crowd, job_id)
        acts: list[Callable[[], object]] = [partial(cancel, crowd, job_id), partial(take, crowd), partial(take, crowd)]
        acts += [partial(finish, crowd, claimed) for claimed in held]

        results = at_once(acts)

        for claimed in results[1:3]:
            if isinstance(claimed, Claim):
                finish(crowd, claimed)
        assert take(crowd) is None
        with crowd.transaction() as session:
            assert get_job(session, OWNER, job_id).status == "cancelled"


def test_a_completion_and_the_reaper_exclude_each_other(crowd: Database) -> None:
    for _ in range(8):
        job_id = submit(crowd)
        claimed = must_take(crowd)
        expire_soon = (
            "UPDATE unit SET lease_expires_at = clock_timestamp() + interval '4 ms' WHERE lease_token = :token"
        )
        with crowd.transaction() as session:
            session.execute(text(expire_soon), {"token": claimed.token})

        def try_to_finish(claimed: Claim = claimed) -> bool:
            try:
                finish(crowd, claimed)
            except LeaseLost:
                return False
            return True

        def reap_some() -> bool:
            with crowd.transaction() as session:
                return reap(session, backoff=AT_ONCE) == 1

        finished, reaped = at_once([try_to_finish, reap_some])
        assert not (finished and reaped)
        if not finished:
            assert reaped or reap_some()
        with crowd.transaction() as session:
            state = session.scalar(select(Unit.state).where(Unit.id == claimed.unit.unit_id))
        assert state == ("succeeded" if finished else "ready")
        cancel(crowd, job_id)


def test_reapers_do_not_count_a_crash_twice(crowd: Database) -> None:
    for _ in range(3):
        submit(crowd)
    claims = [must_take(crowd) for _ in range(6)]
    for claimed in claims:
        expire(crowd, claimed)

    def reap_some() -> int:
        with crowd.transaction() as session:
            return reap(session)

    assert sum(at_once([reap_some] * 4)) == 6
    with crowd.transaction() as session:
        assert set(session.scalars(select(Unit.crashes).where(Unit.attempts > 0))) == {1}


def test_a_storm(crowd: Database) -> None:
    """Workers that do everything at random on several jobs: no deadlock, nothing broken, and every job ends."""
    jobs = [submit(crowd) for _ in range(6)]
    deadline = monotonic() + 3

    def worker(number: int) -> int:
        rng = random.Random(number)
        identity = WorkerIdentity(f"wrk_{number}", WORKER.classes, WORKER.gpu_memory_bytes)
        steps = 0
        while monotonic() < deadline:
            claimed = take(crowd, identity)
            with suppress(LeaseLost, JobFinishedError):
                _act(crowd, rng, claimed, identity, jobs)
            steps += 1
        return steps

    steps = at_once([partial(worker, number) for number in range(6)])

    assert min(steps) > 3
    with crowd.transaction() as session:
        session.execute(text("UPDATE unit SET lease_expires_at = now() - interval '1 s' WHERE state = 'leased'"))
    with crowd.transaction() as session:
        reap(session, backoff=AT_ONCE)
    finish_all(crowd)
    with crowd.transaction() as session:
        assert {get_job(session, OWNER, job_id).status for job_id in jobs} <= {"succeeded", "failed", "cancelled"}


def _act(
    database: Database, rng: random.Random, claimed: Claim | None, worker: WorkerIdentity, jobs: list[str]
) -> None:
    with database.transaction() as session:
        dice = rng.random()
        if dice < 0.08:
            reap(session, backoff=AT_ONCE)
        elif dice < 0.1:
            request_cancel(session, OWNER, rng.choice(jobs))
    if claimed is None:
        return
    unit_id, token = claimed.unit.unit_id, claimed.token
    if rng.random() < 0.1:
        expire(database, claimed)
    with database.transaction() as session:
        dice = rng.random()
        heartbeat(session, worker.id, unit_id, token, LEASE, {"fraction": dice})
    with database.transaction() as session:
        if dice < 0.7:
            complete(session, unit_id, token, outcome_of(claimed.unit), unlock)
        elif dice < 0.8:
            fail(session, unit_id, token, TRANSIENT_ERROR, retry=True, backoff=AT_ONCE)
        else:
            release(session, unit_id, token)


def _release(database: Database, claimed: Claim) -> None:
    with database.transaction() as session:
        release(session, claimed.unit.unit_id, claimed.token)


def _wait_until_somebody_waits(database: Database) -> None:
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    deadline = monotonic() + 10
    while monotonic() < deadline:
        with database.transaction() as session:
            if session.scalar(waiting):
                return
    raise AssertionError("nobody waits for a lock")
