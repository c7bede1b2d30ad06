"""`glue preflight` of a merge file: every problem at once, what it may take, nothing written."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from glue.cli.main import app
from glue.cli.preflight import duration, size
from tests.support.models import tiny_llama


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for number, name in enumerate(("one", "two")):
        tiny_llama(tmp_path / name, number)
    return tmp_path


def preflight(folder: Path, config: dict[str, Any], *options: str) -> tuple[int, str]:
    file = folder / "merge.yml"
    file.write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(app, ["preflight", str(file), "--out", str(folder), *options], env={"COLUMNS": "80"})
    return done.exit_code, done.output


def config(*names: str, **more: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "dtype": "float32", "models": [_model(name) for name in names], **more}


def _model(name: str) -> dict[str, Any]:
    return {"model": name, "parameters": {"weight": 0.5}}


def test_a_good_merge_file(models: Path) -> None:
    before = sorted(models.rglob("*"))
    code, output = preflight(models, config("one", "two"), "--json")
    assert code == 0, output
    found = json.loads(output)
    assert [model["group"] for model in found["models"]] == [1, 1]
    assert found["disk"]["needed_bytes"] == 4 * found["models"][0]["parameters"]
    assert sorted(models.rglob("*")) == sorted([*before, models / "merge.yml"])
    code, output = preflight(models, config("one", "two"))
    assert code == 0
    assert "it can be submitted" in output
    assert max(len(line) for line in output.splitlines()) <= 80


def test_every_problem_of_a_merge_file_at_once(models: Path) -> None:
    settings = json.loads((models / "two" / "config.json").read_text())
    (models / "two" / "config.json").write_text(json.dumps(settings | {"quantization_config": {"bits": 4}}))
    code, output = preflight(models, config("one", "two", "three"), "--json")
    assert code == 1
    assert {problem["code"] for problem in json.loads(output)["problems"]} == {"quantised", "merge_file"}
    code, output = preflight(models, config("one", "two", "three"))
    assert code == 1
    assert "2 to mend before it runs" in output


def test_a_plan_that_fails_is_told(models: Path) -> None:
    code, output = preflight(models, config("one", "two") | {"merge_method": "ties"}, "--json")
    assert code == 1
    (problem,) = json.loads(output)["problems"]
    assert "base" in problem["detail"]


def test_sizes_and_spans_are_for_people() -> None:
    assert [size(each) for each in (12, 1500, 13_500_000_000)] == ["12 B", "1.5 kB", "13.5 GB"]
    assert [duration(each) for each in (0.2, 59, 90, 7200)] == ["below 1 s", "59 s", "1.5 min", "2.0 h"]
