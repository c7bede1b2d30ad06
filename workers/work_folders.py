"""Takes away what ended units left on the disk that this worker sees: partial work, and copies from object storage."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from time import time

from glue.checkpoints.manifest import MANIFEST_FILE
from glue.records.database import Database
from glue.records.tables import TERMINAL
from glue.records.units import locations_in_use, states_of

logger = logging.getLogger(__name__)

# For a unit that the database does not know (perhaps it was restored to an earlier moment), and for a copy that
# nobody is known to need, such as of a folder whose unit has not ended yet.
_KEPT_SECONDS = 24 * 3600.0
_BATCH = 500


def sweep(work: Path, database: Database) -> int:
    """Remove the folders of units that ended, however they did, and return their number.

    A unit that waits or is leased anywhere keeps its folder. Whoever still writes for a unit that ended has lost its
    lease: its outcome counts no more, and what it writes now goes at the next sweep.
    """
    folders = sorted(folder for folder in work.iterdir() if folder.is_dir()) if work.is_dir() else []
    gone = 0
    for start in range(0, len(folders), _BATCH):
        batch = folders[start : start + _BATCH]
        for folder in _ended(batch, database):
            shutil.rmtree(folder, ignore_errors=True)
            gone += not folder.exists()
    if gone:
        logger.info("the partial work of %d ended units was removed", gone)
    return gone


def sweep_copies(artifacts: Path, database: Database) -> int:
    """Remove the folders that lie on object storage too, that no living job made and that nobody used for a day.

    Whoever needs one again fetches it.
    """
    long_ago, gone = time() - _KEPT_SECONDS, 0
    old = {
        f"{folder.parent.name}/{folder.name}": folder
        for folder in artifacts.glob("*/*")
        if folder.is_dir() and _changed_at(folder) < long_ago
    }
    if not old:
        return 0
    with database.transaction() as session:
        used = locations_in_use(session, sorted(old))
    for folder in (old[location] for location in sorted(old.keys() - used)):
        # First it stops to count as finished.
        (folder / MANIFEST_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        gone += not folder.exists()
    if gone:
        logger.info("%d copies of artifacts were removed, which lie on object storage", gone)
    return gone


def _ended(folders: Sequence[Path], database: Database) -> list[Path]:
    with database.transaction() as session:
        states = states_of(session, [folder.name for folder in folders])
    long_ago = time() - _KEPT_SECONDS
    return [
        folder
        for folder in folders
        if (states[folder.name] in TERMINAL if folder.name in states else _changed_at(folder) < long_ago)
    ]


def _changed_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return time()
