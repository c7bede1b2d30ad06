"""Training text: rows become examples, a bad row is told with its place, big files are drawn from."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from examples import small_zoo
from examples.small_zoo.data import DOMAINS
from glue.mixture import training_text
from glue.mixture.mix_yaml import read_mix_file
from glue.mixture.training_text import Example, read_examples
from glue.specs.errors import InvalidInputError
from tests.support.models import VOCABULARY, char_tokenizer

EOS = VOCABULARY.index("<eos>")


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def read(*files: Path, length: int = 64, most: int = 100, seed: int = 0) -> list[Example]:
    return read_examples(files, char_tokenizer(), length=length, most=most, seed=seed)


def ids(text: str) -> tuple[int, ...]:
    return tuple(VOCABULARY.index(character) for character in text)


def refused(*files: Path, **settings: int) -> list[str]:
    with pytest.raises(InvalidInputError) as error:
        read(*files, **settings)
    assert all(problem.pointer == "/router/train/data" and problem.fix for problem in error.value.problems)
    return [problem.detail for problem in error.value.problems]


def test_of_a_plain_text_every_token_decides_and_is_learned(tmp_path: Path) -> None:
    (example,) = read(lines(tmp_path / "a.jsonl", {"text": "12+3=15"}))
    assert example == Example((*ids("12+3=15"), EOS))
    assert (example.deciding, example.targets) == (8, 7)


def test_of_a_question_the_prompt_decides_and_the_answer_is_learned(tmp_path: Path) -> None:
    (example,) = read(lines(tmp_path / "a.jsonl", {"prompt": "12+3=", "response": "15", "source": 7}))
    assert example == Example((*ids("12+3=15"), EOS), 5)
    assert (example.deciding, example.targets) == (5, 3)


def test_parquet_and_json_lines_together(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["ab", "cd"], "other": [1, 2]}), tmp_path / "b.parquet")
    examples = read(lines(tmp_path / "a.jsonl", {"text": "x"}, "", {"text": "y"}), tmp_path / "b.parquet")
    assert [example.ids[:-1] for example in examples] == [ids("x"), ids("y"), ids("ab"), ids("cd")]


def test_every_bad_row_is_told_with_its_line_and_field(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl", {"text": "fine"}, "", {"prompt": "x"}, {"text": 7}, "[1]", "{", r'{"text": "\ud800"}'
    )
    told = refused(path)
    assert told[:3] == [
        "a.jsonl, line 3: it has no field 'response'",
        "a.jsonl, line 4: field 'text' is a number, not a text",
        "a.jsonl, line 5: a row is an object with named fields, this is a list",
    ]
    assert told[3].startswith("a.jsonl, line 6 is not JSON")
    assert told[4] == "a.jsonl, line 7: field 'text' holds half a surrogate pair"


def test_a_row_of_parquet_is_told_by_its_number(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "response": ["c", None]}), tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet") == ["a.parquet, row 2: field 'response' is empty, not a text"]


@pytest.mark.parametrize("name", ["a.csv", "a.py", "a"])
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    assert refused(lines(tmp_path / name, {"text": "x"})) == [f"{name} is no file of training text"]


@pytest.mark.parametrize("content", [b"PAR1 and nothing else", b""])
def test_a_file_that_is_no_parquet_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    assert refused(tmp_path / "a.parquet")[0].startswith("a.parquet cannot be read")


def test_nested_without_end_is_told(tmp_path: Path) -> None:
    assert "line 1 is not JSON" in refused(lines(tmp_path / "a.jsonl", "[" * 100_000))[0]


def test_a_line_without_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_text, "MAX_LINE_BYTES", 2**20)
    (tmp_path / "a.jsonl").write_text(" " * (2**20 + 1))
    assert refused(tmp_path / "a.jsonl") == ["a.jsonl, line 1 is longer than 1 MiB"]


def test_rows_are_cut_and_those_without_an_answer_left_out(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"prompt": "12345", "response": "6"}, {"text": "123456"})
    assert read(path, length=4) == [Example(ids("1234"))]
    assert "has a token to learn within 1" in refused(path, length=1)[0]


def test_of_many_rows_some_are_drawn_by_the_seed(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", *({"text": f"{number:03}"} for number in range(200)))
    first, same, other = (read(path, most=20, seed=seed) for seed in (1, 1, 2))
    assert first == same != other
    assert len({example.ids for example in first}) == 20
    assert len(read(path, most=500)) == 200


def test_the_example_learns_from_no_question_of_the_small_zoos_suites() -> None:
    folder = Path(small_zoo.__file__).parent
    file = read_mix_file(folder / "mixture.yml")
    texts = [json.loads(line) for name in file.texts for line in (folder / name).read_text().splitlines()]
    asked = {
        item.context for domain in DOMAINS.values() for items in (domain().proxy, domain().report) for item in items
    }
    assert len(texts) == 180
    assert not asked & {row["prompt"] for row in texts}
