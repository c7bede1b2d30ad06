"""Transactions and their settings."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from glue.records.database import Database, database_time, psycopg_url


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_every_spelling_of_the_driver_is_understood(scheme: str) -> None:
    assert (
        psycopg_url(f"{scheme}://u:p%40@h:5/d?sslmode=require") == "postgresql+psycopg://u:p%40@h:5/d?sslmode=require"
    )


def test_the_clock_goes_on_within_a_transaction(watched: Database) -> None:
    with watched.transaction() as session:
        first, second = database_time(session), database_time(session)

    assert first < second
    assert first.utcoffset() is not None


def test_a_lock_is_not_waited_for_without_end(watched: Database) -> None:
    with watched.transaction() as session:
        timeouts = {name: session.scalar(text(f"SHOW {name}")) for name in ("lock_timeout", "statement_timeout")}
        timeouts["idle"] = session.scalar(text("SHOW idle_in_transaction_session_timeout"))
        isolation = session.scalar(text("SHOW transaction_isolation"))

    assert timeouts == {"lock_timeout": "10s", "statement_timeout": "30s", "idle": "20s"}
    assert isolation == "read committed"


def test_a_connection_that_was_cut_is_replaced(watched_url: str) -> None:
    database = Database(watched_url, pool_size=1)
    with database.transaction() as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
    killer = Database(watched_url, pool_size=1)
    with killer.transaction() as session:
        session.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    with database.transaction() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != pid
    database.dispose()
    killer.dispose()


def test_a_process_that_stops_within_a_transaction_does_not_keep_its_locks(watched: Database) -> None:
    def stop_within_a_transaction() -> None:
        with watched.transaction() as session:
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '50ms'"))
            session.execute(text("SELECT pg_advisory_xact_lock(1)"))
            with watched.transaction() as other:
                other.execute(text("SELECT pg_advisory_xact_lock(1)"))
            session.execute(text("SELECT 1"))

    with pytest.raises(DBAPIError) as cut:
        stop_within_a_transaction()
    assert cut.value.connection_invalidated
