"""The revisions: they make exactly what the tables say, can be taken back, and run once."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from alembic import command
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, pool, text

from glue.records.database import Database, psycopg_url
from glue.records.schema import migration_config, schema_is_current, upgrade
from glue.records.tables import Base
from tests.support.database import temporary_database
from tests.support.threads import at_once

# Everything that makes up a schema, one line a thing.
CATALOGUE = """
SELECT concat_ws(' ', 'column', table_name, column_name, data_type, udt_name, is_nullable, column_default, is_identity)
    AS line FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
UNION ALL SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND conname !~ '^alembic_version'
UNION ALL SELECT concat_ws(' ', 'index', indexdef)
    FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'
UNION ALL SELECT concat_ws(' ', 'sequence', sequencename, data_type, start_value, increment_by, cycle)
    FROM pg_sequences WHERE schemaname = 'public'
ORDER BY line"""


@pytest.fixture
def empty_url(postgres_url: str) -> Iterator[str]:
    with temporary_database(postgres_url) as url:
        yield url


@pytest.fixture
def engine(empty_url: str) -> Engine:
    return create_engine(psycopg_url(empty_url), poolclass=pool.NullPool)


def catalogue(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(text(CATALOGUE)))


def test_the_revisions_make_what_the_tables_say(engine: Engine, empty_url: str, postgres_url: str) -> None:
    upgrade(empty_url)
    with temporary_database(postgres_url) as other_url:
        other = create_engine(psycopg_url(other_url), poolclass=pool.NullPool)
        Base.metadata.create_all(other)

        expected = catalogue(other)

    assert len(expected) > 100
    assert catalogue(engine) == expected


def test_alembic_finds_nothing_to_do(engine: Engine, empty_url: str) -> None:
    upgrade(empty_url)

    with engine.begin() as connection:
        command.check(migration_config(connection))


def test_every_revision_can_be_taken_back_and_done_again(engine: Engine, empty_url: str) -> None:
    upgrade(empty_url)
    whole = catalogue(engine)

    with engine.begin() as connection:
        command.downgrade(migration_config(connection), "base")
    assert catalogue(engine) == []

    upgrade(empty_url)
    assert catalogue(engine) == whole


def columns(engine: Engine) -> dict[tuple[str, str], tuple[str, str, bool]]:
    """Type, whether it may be empty, and whether it has a value by itself, of every column."""
    query = (
        "SELECT table_name, column_name, udt_name, is_nullable, "
        "column_default IS NOT NULL OR is_identity = 'YES' AS own "
        "FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
    )
    with engine.connect() as connection:
        rows = connection.execute(text(query)).all()
    return {(row.table_name, row.column_name): (row.udt_name, row.is_nullable, row.own) for row in rows}


def test_every_revision_only_adds(engine: Engine) -> None:
    """So the release before goes on reading and writing on what this one has migrated."""
    revisions = list(ScriptDirectory.from_config(migration_config()).walk_revisions())
    before: dict[tuple[str, str], tuple[str, str, bool]] = {}
    for revision in reversed(revisions):
        with engine.begin() as connection:
            command.upgrade(migration_config(connection), revision.revision)
        after = columns(engine)
        assert before.items() <= after.items(), f"{revision.revision} takes something away, or changes it"
        tables = {table for table, _ in before}
        for table, column in after.keys() - before.keys():
            _, may_be_empty, has_value = after[table, column]
            # Who does not know the column writes rows without it.
            assert table not in tables or may_be_empty == "YES" or has_value, (revision.revision, table, column)
        before = after
    assert len(before) > 50


def test_a_database_knows_whether_it_is_current(engine: Engine, empty_url: str) -> None:
    database = Database(empty_url)

    def current() -> bool:
        with database.transaction() as session:
            return schema_is_current(session)

    assert not current()
    upgrade(empty_url)
    assert current()
    with engine.begin() as connection:
        command.stamp(migration_config(connection), "base")
    assert not current()
    database.dispose()


def test_upgrades_that_meet_run_once(engine: Engine, empty_url: str) -> None:
    at_once([partial(upgrade, empty_url)] * 4)

    upgrade(empty_url)
    with engine.connect() as connection:
        heads = ScriptDirectory.from_config(migration_config()).get_heads()
        assert list(connection.scalars(text("SELECT version_num FROM alembic_version"))) == list(heads)


def test_an_upgrade_that_fails_leaves_nothing(engine: Engine, empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_env = EnvironmentContext.run_migrations

    def run_and_fail(self: EnvironmentContext) -> None:
        run_env(self)
        raise RuntimeError("the power is gone")

    monkeypatch.setattr(EnvironmentContext, "run_migrations", run_and_fail)
    with pytest.raises(RuntimeError):
        upgrade(empty_url)

    assert catalogue(engine) == []


def test_no_revision_waits_for_locks_without_end() -> None:
    directory = ScriptDirectory.from_config(migration_config())
    sources = [Path(revision.path) for revision in directory.walk_revisions()]

    for source in [*sources, Path(directory.dir) / "script.py.mako"]:
        assert source.read_text().count("SET LOCAL lock_timeout") == 2, source
