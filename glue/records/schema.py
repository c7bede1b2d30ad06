"""The schema of the database: brought to this release's state, and whether it is there."""

from functools import cache
from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, func, pool, select
from sqlalchemy.orm import Session

from glue.records.database import psycopg_url

# Any fixed number: it is the same for everybody who migrates a database of ours.
_MIGRATION_LOCK = 0x676C7565


def upgrade(url: str) -> None:
    """Bring the database to the newest revision; of several callers one does it and the others wait."""
    engine = create_engine(psycopg_url(url), poolclass=pool.NullPool)
    with engine.begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        command.upgrade(migration_config(connection), "head")


def schema_is_current(session: Session) -> bool:
    """Whether this release can work on the database: it stands at its revision, or at one of a later release.

    Releases only add before they take away, so during an upgrade the old one works on the new one's schema.
    """
    stands_at = MigrationContext.configure(session.connection()).get_current_heads()
    return stands_at == _heads() or (bool(stands_at) and not _known().intersection(stands_at))


def migration_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for the installed package `migrations`, on an open connection if one is given."""
    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@cache
def _known() -> frozenset[str]:
    directory = ScriptDirectory.from_config(migration_config())
    return frozenset(revision.revision for revision in directory.walk_revisions())


@cache
def _heads() -> tuple[str, ...]:
    return tuple(ScriptDirectory.from_config(migration_config()).get_heads())
