"""Small data sets on the stand-in for the Hub, laid out as repositories there are."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pyarrow import parquet

from tests.support.hub.store import Store

Rows = Sequence[Mapping[str, Any]]


def write_parquet(path: Path, rows: Rows) -> Path:
    """One parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def write_lines(path: Path, rows: Rows) -> Path:
    """One object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_card(folder: Path, configs: Sequence[Mapping[str, Any]]) -> None:
    """The card that names configurations and their files."""
    folder.mkdir(parents=True, exist_ok=True)
    front = yaml.safe_dump({"license": "mit", "configs": [dict(each) for each in configs]})
    (folder / "README.md").write_text(f"---\n{front}---\n# data\n", encoding="utf-8")


def add_data_set(
    store: Store, repo: str, folder: Path, splits: Mapping[str, Rows], name: str | None = None, **access: bool
) -> str:
    """A repository with one parquet file a split below the folder of its configuration; the oid of its commit."""
    base = folder / name if name else folder / "data"
    for split, rows in splits.items():
        write_parquet(base / f"{split}-00000-of-00001.parquet", rows)
    if name:
        files = [{"split": split, "path": f"{name}/{split}-*"} for split in splits]
        write_card(folder, [{"config_name": name, "data_files": files}])
    return store.add_folder(f"datasets/{repo}", folder, **access)
