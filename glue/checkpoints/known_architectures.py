"""What transformers once said about a config, kept beside other caches: asking it costs seconds of imports.

Knows nothing of what is kept. Whatever goes wrong here means no more than that transformers is asked again.
"""

import hashlib
import json
import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Part of every entry's name: a change in what is kept, or in how it is found out, makes the old ones unreadable.
_FORMAT = 1
_KEPT_ENTRIES = 500


def recalled(config: str) -> Any:
    """The plain data that was kept for this config (JSON with sorted keys); none where nothing readable was."""
    with suppress(OSError, ValueError, RuntimeError):
        return json.loads(_entry(config).read_bytes())
    return None


def keep(config: str, facts: Any) -> None:
    """Keep plain data for this config and the installed version of transformers."""
    with suppress(OSError, RuntimeError):
        entry = _entry(config)
        entry.parent.mkdir(parents=True, exist_ok=True)
        # Readers never see a half-written entry; of two writers either one may win.
        partial = entry.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(facts))
        partial.rename(entry)
        _forget_oldest(entry.parent)


def _entry(config: str) -> Path:
    name = hashlib.sha256(f"{_FORMAT}\0{version('transformers')}\0{config}".encode()).hexdigest()
    return _folder() / f"{name}.json"


def _folder() -> Path:
    own = os.environ.get("GLUE_CACHE")
    if own:
        return Path(own) / "architectures"
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "glue" / "architectures"


def _forget_oldest(folder: Path) -> None:
    entries = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in entries[:-_KEPT_ENTRIES]:
        path.unlink(missing_ok=True)
