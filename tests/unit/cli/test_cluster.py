"""`glue cluster`: families of folders, with the numbers behind them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from glue.cli.main import app
from tests.support.models import tiny_llama


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    for name, seed in (("base", 0), ("one", 1), ("twin", 1), ("two", 2)):
        tiny_llama(tmp_path / name, seed)
    return tmp_path


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["cluster", *map(str, arguments)], env={"COLUMNS": "80"})
    return done.exit_code, done.output if "--json" in arguments else " ".join(done.output.split())


def test_families_and_numbers(zoo: Path) -> None:
    code, output = run(zoo / "one", zoo / "two", zoo / "twin", "--json", "--plot", zoo / "heat.png")
    assert code == 0, output
    found = json.loads(output)
    assert found["families"] == [["one", "twin"], ["two"]]
    assert found["similarity"][0][2] == 1.0
    assert found["layers"]["0"][0][2] == 1.0
    assert all(matrix[0][2] == 1.0 for matrix in found["matrices"].values())
    assert (zoo / "heat.png").read_bytes().startswith(b"\x89PNG")
    code, output = run(zoo / "one", zoo / "twin", "--per", "layer")
    assert code == 0
    assert "family 1: one, twin" in output


def test_task_vectors_want_a_base_and_a_threshold(zoo: Path) -> None:
    models = (zoo / "one", zoo / "two", "--weights", "task_vector")
    assert "no default threshold" in run(*models)[1]
    code, output = run(*models, "--threshold", 0.5)
    assert code == 1
    assert "--base" in output
    code, output = run(*models, "--threshold", 0.5, "--base", zoo / "base")
    assert code == 0, output


def test_mistakes_are_told(zoo: Path) -> None:
    assert "is not a folder" in run(zoo / "one", zoo / "none")[1]
    assert "twice" in run(zoo / "one", zoo / "one")[1]
    tiny_llama(zoo / "wide", 3, hidden_size=64)
    code, output = run(zoo / "one", zoo / "wide")
    assert code == 1
    assert "cannot be compared" in output
