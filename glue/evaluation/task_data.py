"""Items from files, read by ourselves: no network, no data set scripts, no cache folder to share or to lock."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from pyarrow import csv, parquet

from glue.references.data_files import kind_of
from glue.specs.errors import EvaluationError, Problem


def read_split(kind: str, files: Sequence[str]) -> Dataset:
    """The items of the files in order; `kind` is json (one object a line), csv or parquet.

    Raises:
        EvaluationError: a file cannot be read as that, there is no item, or a column mixes types.
    """
    return _joined([_read(kind, Path(file)) for file in files], Path(files[0]))


def read_files(files: Sequence[Path]) -> Dataset:
    """The items of files of a data set, each read as its name says; a JSON file may also hold one array.

    Raises:
        EvaluationError: a file cannot be read, there is no item, or a column mixes types.
    """
    return _joined([_read(f"hub {kind_of(file.name)}", file) for file in files], files[0])


def _joined(parts: Sequence[Dataset], first: Path) -> Dataset:
    try:
        items = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    except ValueError as error:
        raise _refusal(first.name, f"its columns do not fit those of the split's other files: {error}") from None
    if len(items) == 0:
        raise _refusal(first.name, "it holds no item")
    return items


def _read(kind: str, path: Path) -> Dataset:
    try:
        return READERS[kind](path)
    except (OSError, EOFError, zlib.error, ValueError, TypeError, OverflowError, RecursionError) as error:
        # pyarrow raises subclasses of ValueError, TypeError or OSError for malformed files.
        raise _refusal(path.name, f"it cannot be read as {kind}: {error}") from None


def _read_json_lines(path: Path) -> Dataset:
    with path.open(encoding="utf-8") as lines:
        return _table(list(_objects(lines)))


def _read_any_json(path: Path) -> Dataset:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    if not text.lstrip().startswith("["):
        return _table(list(_objects(text.splitlines())))
    rows = json.loads(text)
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("its array holds something else than objects")
    return _table(rows)


def _table(rows: Sequence[dict[str, Any]]) -> Dataset:
    # Every key of any row is a column: `Dataset.from_list` would only take those of the first.
    columns = dict.fromkeys(key for row in rows for key in row)
    return Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})


def _objects(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({error})") from None
        if not isinstance(value, dict):
            raise ValueError(f"line {number} holds no object; write one object with named fields a line")
        yield value


def _read_csv(path: Path) -> Dataset:
    return Dataset(csv.read_csv(path))


def _read_tsv(path: Path) -> Dataset:
    return Dataset(csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\t")))


def _read_parquet(path: Path) -> Dataset:
    return Dataset(parquet.read_table(path))


READERS: dict[str, Callable[[Path], Dataset]] = {
    "json": _read_json_lines,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "hub json": _read_any_json,
    "hub csv": _read_csv,
    "hub tsv": _read_tsv,
    "hub parquet": _read_parquet,
}


def _refusal(name: str, detail: str) -> EvaluationError:
    fix = "look at the file that dataset_kwargs.data_files names"
    problem = Problem("/dataset_kwargs/data_files", "bad_data", f"{name}: {detail}", fix)
    return EvaluationError(f"data file {name}: {detail}", [problem])
