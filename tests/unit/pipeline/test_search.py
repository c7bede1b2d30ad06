"""The stage `search` in one process, on a tiny zoo: halving with real scores, and a start from earlier candidates."""

from pathlib import Path

import pytest

from glue.specs.expression import linear
from glue.specs.job import WarmStart
from glue.specs.results import SearchResult
from tests.support.in_process import InProcess
from tests.support.tiny_zoo import build_tiny_zoo, job_spec


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_zoo(tmp_path_factory.mktemp("zoo"))


def searched(run: InProcess) -> SearchResult:
    results = [SearchResult.parse(each.result) for each in run.outcomes if each.name == "search"]
    return max(results, key=lambda result: len(result.trials))


def test_a_halved_search_says_what_it_dropped_and_at_which_risk(zoo: Path, tmp_path: Path) -> None:
    search = {"strategy": "random", "generation": 4, "budget": {"trials": 8}, "halving": {"share": 0.25, "keep": 0.5}}
    run = InProcess(job_spec(zoo, search=search), tmp_path)
    run.run()
    result = searched(run)
    assert result.halving is not None
    assert (result.halving.screened, result.halving.dropped) == (8, 4)
    assert 0 < result.halving.error <= 1
    assert [trial.dropped for trial in result.trials].count(True) == 4
    assert len(result.winner.score.tasks[0].values) == 24
    report = (run.home / "artifacts" / run.outcome("report")["location"] / "README.md").read_text()
    assert "4 of 8 candidates were dropped after 25 % of the proxy items" in report


def test_a_warm_start_scores_the_earlier_candidates_first(zoo: Path, tmp_path: Path) -> None:
    earlier = {"name": "linear 9", "expression": linear({"ant": 0.35, "bee": 0.65}).as_json()}
    cold = job_spec(zoo, search={"strategy": "uniform_soup"})
    warm = WarmStart.parse({"job": "job_1", "candidates": [earlier]})
    run = InProcess(cold.model_copy(update={"warm_start": warm}), tmp_path)
    run.run()
    assert [trial.name for trial in searched(run).trials] == ["earlier linear 9", "mean of 2 members"]


def test_a_search_over_layers_saves_what_it_scored(zoo: Path, tmp_path: Path) -> None:
    search = {"strategy": "data_flow", "repeats": 2, "population": 5, "budget": {"trials": 10}}
    run = InProcess(job_spec(zoo, search=search), tmp_path)
    run.run()
    result = searched(run)
    assert len(result.trials) == 10
    assert all(trial.mean is not None for trial in result.trials)
    singles = [scored["score"]["mean"] for scored in run.outcome("baselines")["scores"]]
    assert result.winner.score.mean >= min(singles)
