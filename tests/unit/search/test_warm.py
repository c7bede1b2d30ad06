"""Searches that start from an earlier one's candidates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glue.search.history import History, NextGeneration
from glue.search.sampled import Facts
from glue.search.strategies import strategy_of
from glue.search.warm import SCORED_AGAIN, usable
from glue.specs.errors import InvalidInputError
from glue.specs.expression import Candidate, Expression, Input, Member, Merge, linear, weights_of
from glue.specs.job import JobRequest
from glue.specs.search import Evolutionary, HeuristicAverage, RandomSearch
from tests.support.searches import Search, single

SINGLES = (single("a", 0.4), single("b", 0.5), single("c", 0.3))
FACTS = Facts(layers=4, seed=42)
GOOD = Candidate(name="linear 7", expression=linear({"a": 0.7, "b": 0.3}))
POOR = Candidate(name="linear 3", expression=linear({"a": 0.1, "c": 0.9}))
EARLIER = usable((GOOD, POOR), ("a", "b", "c"))


def quality(expression: Expression) -> float:
    return round(1 - (weights_of(expression).get("a", 0.0) - 0.7) ** 2 - weights_of(expression).get("c", 0.0), 6)


def test_only_candidates_of_these_members_are_used_and_only_a_few() -> None:
    based = Merge(method="task_arithmetic", inputs=(Input(model=Member(name="a")),), base=Member(name="base"))
    task = Candidate(name="task", expression=based)
    assert [each.name for each in usable((GOOD, POOR, task), ("a", "b"))] == ["earlier linear 7", "earlier task"]
    assert len(usable((GOOD,) * 9, ("a", "b"))) == SCORED_AGAIN


def test_cma_es_is_centred_on_the_best_of_them() -> None:
    spec = Evolutionary.parse({"strategy": "evolutionary", "population": 4, "budget": {"trials": 42}})
    ended = Search(strategy_of(spec, FACTS, EARLIER), SINGLES, quality).run()
    assert [each.candidate.name for each in ended.generations[0]] == ["earlier linear 7", "earlier linear 3"]
    first = ended.generations[1][0].candidate
    assert set(weights_of(first.expression)) == {"a", "b"}
    assert weights_of(ended.winner.observed.candidate.expression)["a"] == pytest.approx(0.7, abs=0.02)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["random", "heuristic_average"]), st.integers(0, 9), st.integers(0, 9))
def test_any_strategy_ends_no_worse_than_they_are_and_replays(name: str, one: int, other: int) -> None:
    specs = {
        "random": RandomSearch.parse({"strategy": "random", "generation": 3, "budget": {"trials": 6}}),
        "heuristic_average": HeuristicAverage(strategy="heuristic_average"),
    }
    runs = [Search(strategy_of(specs[name], FACTS, EARLIER), SINGLES, quality, order) for order in (one, other)]
    first, second = (run.run() for run in runs)
    assert first == second == runs[0].step()
    assert (first.winner.observed.mean or 0) >= quality(GOOD.expression)
    inside = set(weights_of(first.winner.observed.candidate.expression))
    assert inside | {name for name, _ in first.winner.rejected} == {"a", "b", "c"}


def test_without_usable_candidates_it_starts_cold() -> None:
    spec = HeuristicAverage(strategy="heuristic_average")
    step = strategy_of(spec, FACTS, usable((GOOD,), ("c",)))(History(SINGLES))
    assert step == strategy_of(spec, FACTS)(History(SINGLES))
    assert isinstance(step, NextGeneration)


def test_two_starts_are_refused() -> None:
    suite = {"tasks": [{"task": "t"}]}
    search = {"strategy": "evolutionary", "start": "heuristic", "warm_start": "job_1"}
    with pytest.raises(InvalidInputError, match="not both"):
        JobRequest.parse({"kind": "model_glue", "zoo": "z", "search": search, "proxy": suite, "report": suite})
