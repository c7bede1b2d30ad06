"""Requests with an Idempotency-Key: done once, answered alike."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from glue.records.database import Database
from glue.records.errors import KeyInUseError, KeyReusedError
from glue.records.idempotency import Reply, find_reply, store_reply

ANSWER = Reply("f1", 201, "/v1/jobs/job_1", {"id": "job_1"})


def store(database: Database, key: str = "k", owner: str = "ada") -> None:
    with database.transaction() as session:
        assert find_reply(session, owner, key) is None
        store_reply(session, owner, key, ANSWER.fingerprint, ANSWER.status, ANSWER.location, ANSWER.body)


def find(database: Database, key: str = "k", owner: str = "ada") -> Reply | None:
    with database.transaction() as session:
        return find_reply(session, owner, key)


def test_a_repetition_finds_the_answer(watched: Database) -> None:
    store(watched)

    reply = find(watched)

    assert reply == ANSWER
    reply.require_same("f1")
    assert find(watched, key="other") is None
    assert find(watched, owner="eve") is None


def test_another_request_with_the_same_key_is_refused(watched: Database) -> None:
    store(watched)
    reply = find(watched)
    assert reply is not None

    with pytest.raises(KeyReusedError) as refusal:
        reply.require_same("f2")
    assert refusal.value.code == "idempotency_key_reused"
    with pytest.raises(KeyReusedError), watched.transaction() as session:
        store_reply(session, "ada", "k", "f2", 201, "", {})


def test_a_twin_that_comes_meanwhile_is_refused_and_others_are_not(watched: Database) -> None:
    with watched.transaction() as session, ThreadPoolExecutor(1) as pool:
        assert find_reply(session, "ada", "k") is None
        with pytest.raises(KeyInUseError):
            pool.submit(find, watched).result(10)
        assert pool.submit(find, watched, "other").result(10) is None
        assert pool.submit(find, watched, "k", "eve").result(10) is None
    assert find(watched) is None


def test_an_answer_is_kept_for_a_day(watched: Database) -> None:
    store(watched)
    store(watched, key="young")
    with watched.transaction() as session:
        session.execute(text("UPDATE idempotency_key SET created_at = now() - interval '24 h' WHERE key = 'k'"))

    assert find(watched) is None
    store(watched)
    assert find(watched) == find(watched, key="young") == ANSWER


def test_an_error_keeps_no_answer(watched: Database) -> None:
    def answer_and_break() -> None:
        with watched.transaction() as session:
            find_reply(session, "ada", "k")
            store_reply(session, "ada", "k", "f1", 201, "", {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        answer_and_break()
    assert find(watched) is None
