"""Bearer keys."""

import re
from datetime import timedelta

import pytest
from sqlalchemy import text

from glue.records.database import Database, database_time
from glue.records.errors import NotFoundError
from glue.records.keys import create_key, find_owner, revoke_key
from glue.records.tables import ApiKey


def test_a_secret_finds_its_owner_and_is_not_stored(watched: Database) -> None:
    with watched.transaction() as session:
        key, secret = create_key(session, "ada", "laptop")

    with watched.transaction() as session:
        stored = session.get_one(ApiKey, key.id)
        assert find_owner(session, secret) == "ada"
    assert re.fullmatch(r"mgl_[0-9A-Za-z]{43}", secret)
    assert secret.startswith(stored.prefix)
    assert len(stored.prefix) == 8
    assert re.fullmatch(r"[0-9a-f]{64}", stored.hash)
    assert (stored.owner, stored.name, stored.revoked_at) == ("ada", "laptop", None)


def test_what_is_no_key_finds_nobody(watched: Database) -> None:
    with watched.transaction() as session:
        _, secret = create_key(session, "ada", "laptop")
        wrong = "0" if secret[10] != "0" else "1"
        for other in (
            "",
            "mgl_",
            secret[:-1],
            secret + "0",
            secret[:10] + wrong + secret[11:],
            secret.upper(),
            "é" * 47,
        ):
            assert find_owner(session, other) is None


def test_a_well_formed_key_that_nobody_has_finds_nobody(watched: Database) -> None:
    with watched.transaction() as session:
        _, secret = create_key(session, "ada", "laptop")
        session.rollback()

    with watched.transaction() as session:
        assert find_owner(session, secret) is None


def test_a_revoked_key_finds_nobody(watched: Database) -> None:
    with watched.transaction() as session:
        key, secret = create_key(session, "ada", "laptop")
        _, other_secret = create_key(session, "ada", "server")
        with pytest.raises(NotFoundError):
            revoke_key(session, "eve", key.id)
        revoke_key(session, "ada", key.id)
        revoke_key(session, "ada", key.id)

        assert find_owner(session, secret) is None
        assert find_owner(session, other_secret) == "ada"


def test_its_use_is_noted_once_a_minute(watched: Database) -> None:
    def used() -> object:
        with watched.transaction() as session:
            find_owner(session, secret)
        with watched.transaction() as session:
            return session.get_one(ApiKey, key.id).last_used_at

    with watched.transaction() as session:
        key, secret = create_key(session, "ada", "laptop")
        now = database_time(session)
    first = used()
    assert isinstance(first, type(now))
    assert first - now < timedelta(minutes=1)
    assert used() == first
    with watched.transaction() as session:
        session.execute(text("UPDATE api_key SET last_used_at = last_used_at - interval '61 s'"))
    assert used() != first
