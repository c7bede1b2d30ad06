"""`python -m glue.records.issue_key --owner NAME --name WHAT`: a new API key, said once and never again."""

import argparse
import os
import sys

from glue.records.database import Database
from glue.records.keys import create_key


def main() -> None:
    """Write the key's secret to stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--owner", required=True, help="whose records the key opens")
    parser.add_argument("--name", required=True, help="what it is for")
    given = parser.parse_args()
    database = Database(os.environ["DATABASE_URL"], pool_size=1)
    with database.transaction() as session:
        _, secret = create_key(session, given.owner, given.name)
    database.dispose()
    sys.stdout.write(f"{secret}\n")


if __name__ == "__main__":
    main()
