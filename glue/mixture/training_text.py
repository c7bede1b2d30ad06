"""Texts that routers learn from: rows of JSON Lines or Parquet files, as token ids. Knows no model, runs no script."""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import parquet
from transformers import PreTrainedTokenizerBase

from glue.specs.errors import InvalidInputError, Problem

POINTER = "/router/train/data"
MAX_LINE_BYTES = 16 * 1024 * 1024

_MOST_PROBLEMS = 10
_FORM = 'write {"text": "..."} or {"prompt": "...", "response": "..."}'


@dataclass(frozen=True)
class Example:
    """Token ids; the first `prompt` of them decide who answers, and the loss is on the rest.

    In a plain text `prompt` is 0: all its tokens decide, and the loss is on all of them.
    """

    ids: tuple[int, ...]
    prompt: int = 0

    @property
    def deciding(self) -> int:
        """How many of the first ids the router reads."""
        return self.prompt or len(self.ids)

    @property
    def targets(self) -> int:
        """How many ids the loss is on: those that are no prompt and that something comes before."""
        return max(len(self.ids) - max(self.prompt, 1), 0)


@dataclass(frozen=True)
class _Row:
    prompt: str
    text: str


def read_examples(
    files: Sequence[Path], tokenizer: PreTrainedTokenizerBase, *, length: int, most: int, seed: int
) -> list[Example]:
    """Rows of the files as examples, cut to `length` tokens; of more than `most` rows as many, drawn with the seed.

    Every row is checked, and only those drawn are kept in memory. Rows of which nothing is left to learn (a prompt
    as long as `length`) are left out.

    Raises:
        InvalidInputError: a file cannot be read, rows have another form, or no row is left; with one problem for
            each bad row, up to ten.
    """
    rows = _drawn(_rows(files), most, random.Random(seed))  # noqa: S311  # a draw, not a secret
    examples = [_example(row, tokenizer, length) for row in rows]
    learnable = [example for example in examples if example.targets]
    if not learnable:
        names = ", ".join(path.name for path in files)
        detail = f"no row of {names} has a token to learn within {length} tokens"
        raise _refusal([_problem(detail, "give rows with an answer, or raise router.train.length")])
    return learnable


def _drawn(rows: Iterable[_Row], most: int, generator: random.Random) -> list[_Row]:
    """At most `most` of the rows, every one with the same chance, in one pass (Vitter's algorithm R)."""
    kept: list[_Row] = []
    for number, row in enumerate(rows):
        if number < most:
            kept.append(row)
        elif (place := generator.randrange(number + 1)) < most:
            kept[place] = row
    return kept


def _rows(files: Sequence[Path]) -> Iterator[_Row]:
    problems: list[Problem] = []
    for path in files:
        for place, value in _read(path):
            row = _row(value, f"{path.name}, {place}")
            if isinstance(row, _Row):
                yield row
                continue
            problems.append(row)
            if len(problems) == _MOST_PROBLEMS:
                raise _refusal(problems)
    if problems:
        raise _refusal(problems)


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    """Every row of a file with its place; a problem in place of what is no JSON."""
    read = _READERS.get(path.suffix)
    if read is None:
        fix = "save it as JSON Lines (.jsonl) or Parquet (.parquet)"
        raise _refusal([_problem(f"{path.name} is no file of training text", fix)])
    try:
        yield from read(path)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        # pyarrow raises subclasses of these for malformed files.
        raise _refusal([_problem(f"{path.name} cannot be read: {error}", "check the file, or save it again")]) from None


def _row(value: Any, place: str) -> _Row | Problem:
    if isinstance(value, Problem):
        return value
    if not isinstance(value, dict):
        return _problem(f"{place}: a row is an object with named fields, this is {_kind(value)}", _FORM)
    fields = ("text",) if "text" in value else ("prompt", "response")
    for field in fields:
        text = value.get(field)
        if not isinstance(text, str):
            found = f"field '{field}' is {_kind(text)}, not a text" if field in value else f"it has no field '{field}'"
            return _problem(f"{place}: {found}", _FORM)
        if not _is_text(text):
            return _problem(f"{place}: field '{field}' holds half a surrogate pair", "write the text as UTF-8")
    return _Row("", value["text"]) if fields == ("text",) else _Row(value["prompt"], value["response"])


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
            place = f"line {number}"
            if len(line) > MAX_LINE_BYTES:
                detail = f"{path.name}, {place} is longer than {MAX_LINE_BYTES // 2**20} MiB"
                raise _refusal([_problem(detail, "write one object a line, with its newline")])
            if line.strip():
                yield place, _parsed(line, f"{path.name}, {place}")


def _parsed(line: bytes, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return _problem(f"{place} is not JSON: {error}", f"one object a line, in UTF-8: {_FORM}")


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    file = parquet.ParquetFile(path)
    wanted = [name for name in ("text", "prompt", "response") if name in file.schema_arrow.names]
    number = 0
    for batch in file.iter_batches(batch_size=1024, columns=wanted):
        for value in batch.to_pylist():
            number += 1
            yield f"row {number}", value


_READERS = {".jsonl": _json_lines, ".json": _json_lines, ".parquet": _parquet_rows}


def _example(row: _Row, tokenizer: PreTrainedTokenizerBase, length: int) -> Example:
    prompt: list[int] = tokenizer(row.prompt)["input_ids"] if row.prompt else []
    ids: list[int] = tokenizer(row.text, add_special_tokens=not row.prompt)["input_ids"]
    end = [] if tokenizer.eos_token_id in (None, *ids[-1:]) else [tokenizer.eos_token_id]
    return Example(tuple([*prompt, *ids, *end][:length]), len(prompt))


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "empty"}
    return names.get(type(value), "a number")


def _problem(detail: str, fix: str) -> Problem:
    return Problem(POINTER, "training_text", detail, fix)


def _refusal(problems: Sequence[Problem]) -> InvalidInputError:
    return InvalidInputError(f"{problems[0].detail}; {problems[0].fix}", problems)
