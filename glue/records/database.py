"""Connections, transactions, and the only clock. Knows no table."""

from contextlib import AbstractContextManager
from datetime import datetime

from sqlalchemy import DateTime, create_engine, func, make_url, select
from sqlalchemy.orm import Session, sessionmaker

from glue.specs.digests import canonical_json

DRIVER = "postgresql+psycopg"

# The time at which a statement evaluates it, not that of the transaction's start.
CLOCK = func.clock_timestamp(type_=DateTime(timezone=True))

# A process that is stopped within a transaction holds its locks: the server ends it, so that nobody waits for ever.
_SERVER_SETTINGS = {
    "timezone": "UTC",
    "lock_timeout": "10s",
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "20s",
}
# A peer that vanished without closing its connection is noticed within about 20 seconds.
_CONNECT_ARGUMENTS = {
    "application_name": "glue",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
    "options": " ".join(f"-c {name}={value}" for name, value in _SERVER_SETTINGS.items()),
}


class Database:
    """A pool of connections to one Postgres. Safe to share between threads, not across a fork."""

    def __init__(self, url: str, pool_size: int = 5) -> None:
        self._engine = create_engine(
            psycopg_url(url),
            pool_size=pool_size,
            pool_pre_ping=True,
            isolation_level="READ COMMITTED",
            json_serializer=canonical_json,
            connect_args=_CONNECT_ARGUMENTS,
        )
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)

    def transaction(self) -> AbstractContextManager[Session]:
        """One transaction: committed on success, rolled back on an error. What it loaded stays readable."""
        return self._sessions.begin()

    def dispose(self) -> None:
        """Close the pool's connections."""
        self._engine.dispose()


def psycopg_url(url: str) -> str:
    """The URL with our driver, whatever driver or none it names (`postgres://`, `postgresql://`)."""
    return make_url(url).set(drivername=DRIVER).render_as_string(hide_password=False)


def database_time(session: Session) -> datetime:
    """What the database's clock shows now."""
    return session.execute(select(CLOCK)).scalar_one()
