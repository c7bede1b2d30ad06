"""`python -m glue.records.migrate`: bring the database of DATABASE_URL to this release, or wait until somebody has."""

import argparse
import logging
import os
import sys
from time import monotonic, sleep

from sqlalchemy.exc import OperationalError

from glue.records.database import Database
from glue.records.schema import schema_is_current, upgrade

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


def wait_for_schema(url: str, seconds: float) -> bool:
    """Whether the database stands at this release, or a later one, within so many seconds."""
    database, deadline = Database(url, pool_size=1), monotonic() + seconds
    try:
        while not _is_current(database):
            if monotonic() > deadline:
                return False
            sleep(_RETRY_SECONDS)
        return True
    finally:
        database.dispose()


def migrate(url: str, seconds: float) -> None:
    """Upgrade; a database that does not answer yet is asked again for so many seconds.

    Raises:
        OperationalError: it did not answer in time, or a migration could not get its lock.
    """
    deadline = monotonic() + seconds
    while True:
        try:
            return upgrade(url)
        except OperationalError as error:
            if monotonic() > deadline:
                raise
            logger.warning("the database cannot be migrated yet: %s", str(error.orig).strip().splitlines()[:1])
        sleep(_RETRY_SECONDS)


def _is_current(database: Database) -> bool:
    try:
        with database.transaction() as session:
            return schema_is_current(session)
    except OperationalError:
        return False


def main() -> int:
    """The exit status: 1 if the database is not at this release at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wait", type=float, metavar="SECONDS", help="migrate nothing, only wait for it")
    parser.add_argument("--patience", type=float, default=120, help="seconds for a database that does not answer yet")
    given, url = parser.parse_args(), os.environ["DATABASE_URL"]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    if given.wait is not None:
        return 0 if wait_for_schema(url, given.wait) else 1
    migrate(url, given.patience)
    logger.info("the database is at this release")
    return 0


if __name__ == "__main__":
    sys.exit(main())
