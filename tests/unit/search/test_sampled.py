"""Searches over a parameter space: what they propose, when they end, and that a replay is the live run."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glue.search.cma_es import default_population, next_points
from glue.search.history import History, NextGeneration, Observed, Strategy, Winner
from glue.search.sampled import Facts, grid, uniform_soup
from glue.search.space import Dimension, SearchSpace
from glue.search.strategies import strategy_of
from glue.specs.expression import ByLayer, Expression, Merge, expression_digest, weights_of
from glue.specs.search import Budget, Evolutionary, GridSearch, RandomSearch, UniformSoup
from tests.support.searches import Search, single

SINGLES = (single("a", 0.4), single("b", 0.5), single("c", 0.3))
FACTS = Facts(layers=4, seed=42)


def hidden_optimum(expression: Expression) -> float:
    """Best at 0.5 a + 0.3 b + 0.2 c, from 0 to 1."""
    best = {"a": 0.5, "b": 0.3, "c": 0.2}
    weights = weights_of(expression)
    return round(1 - sum((weights.get(name, 0.0) - value) ** 2 for name, value in best.items()), 6)


def evolutionary(trials: int, **changes: object) -> Strategy:
    spec = {"strategy": "evolutionary", "budget": {"trials": trials}} | changes
    return strategy_of(Evolutionary.parse(spec), FACTS)


def test_cma_es_finds_the_optimum_of_a_quadratic() -> None:
    ranges = [Dimension("x", -4, 4), Dimension("y", -4, 4), Dimension("z", -4, 4)]
    wanted = {"x": 1.2345, "y": -0.7, "z": 2.5}
    told: list[tuple[dict[str, float], float | None]] = []
    for _ in range(45):
        points = next_points(ranges, told, 8, 8, seed=1, baseline=-20.0)
        told += [(point, -sum((point[name] - value) ** 2 for name, value in wanted.items())) for point in points]
    best = max(told, key=lambda pair: pair[1] or float("-inf"))[0]
    assert best == pytest.approx(wanted, abs=1e-3)


def test_one_parameter_is_enough_for_cma_es() -> None:
    told: list[tuple[dict[str, float], float | None]] = []
    for _ in range(20):
        points = next_points([Dimension("x", -4, 4)], told, 4, 4, seed=1, baseline=-1.0)
        told += [(point, -((point["x"] - 1) ** 2)) for point in points]
    assert max(told, key=lambda pair: pair[1] or float("-inf"))[0]["x"] == pytest.approx(1, abs=1e-2)


def test_a_failed_trial_is_replaced_by_one_more() -> None:
    strategy = evolutionary(100, population=4)
    first = strategy(History(SINGLES))
    assert isinstance(first, NextGeneration)
    assert len(first.candidates) == 4
    search = Search(strategy, SINGLES, lambda expression: None)
    search.recorded = [first.candidates]
    for number, candidate in enumerate(first.candidates):
        mean = None if number == 2 else 0.5
        search.scored[expression_digest(candidate.expression)] = Observed(candidate, mean)
    second = search.step()
    assert not isinstance(second, Winner)
    assert len(getattr(second, "candidates", ())) == 1


def test_the_simplex_has_one_dimension_less_and_weights_that_sum_to_one() -> None:
    space = SearchSpace(("a", "b", "c"), "linear")
    assert len(space.dimensions) == 2
    assert sum(weights_of(space.expression(space.middle())).values()) == pytest.approx(1, abs=1e-5)
    assert len(SearchSpace(("a", "b", "c"), "linear", "box").dimensions) == 3
    assert len(SearchSpace(("a", "b", "c"), "task_arithmetic").dimensions) == 3
    assert len(SearchSpace(("a", "b", "c"), "ties").dimensions) == 5


def test_layer_groups_have_parameters_of_their_own_and_one_set_for_what_is_in_no_layer() -> None:
    space = SearchSpace(("a", "b"), "ties", groups=2, layers=4)
    assert len(space.dimensions) == 3 * 3
    point = space.middle() | {"group 1: logit of b": 1.0}
    expression = space.expression(point)
    assert expression.base is not None
    weight = expression.inputs[1].parameters["weight"]
    assert isinstance(weight, ByLayer)
    assert weight.at(0) == weight.at(1) == weight.outside == 0.5
    assert weight.at(2) == weight.at(3) == pytest.approx(0.731059, abs=1e-6)


def test_a_start_from_the_heuristic_is_centred_on_its_result_over_the_accepted_members() -> None:
    strategy = evolutionary(60, start="heuristic", coefficients=[0.5])
    search = Search(strategy, SINGLES, lambda e: 0.1 if "c" in weights_of(e) else hidden_optimum(e))
    search.run()
    sampled = search.recorded[2:]
    assert sampled
    for candidate in (candidate for generation in sampled for candidate in generation):
        weights = weights_of(candidate.expression)
        assert set(weights) == {"a", "b"}
        assert 0.25 < weights["a"] < 0.75


@pytest.mark.parametrize("start", ["uniform", "heuristic"])
def test_evolution_comes_close_to_the_optimum_and_never_ends_below_the_best_single(start: str) -> None:
    ended = Search(evolutionary(120, start=start), SINGLES, hidden_optimum).run()
    assert (ended.winner.observed.mean or 0) > 0.9999
    assert weights_of(ended.winner.observed.candidate.expression) == pytest.approx(
        {"a": 0.5, "b": 0.3, "c": 0.2}, abs=0.02
    )
    poor = Search(evolutionary(20, start=start), SINGLES, lambda expression: 0.0).run()
    assert poor.winner.observed == SINGLES[1]


def test_each_budget_ends_the_search_and_says_so() -> None:
    for budget, reason in (
        ({"trials": 10}, "10 trials"),
        ({"items": 60}, "60 items"),
        ({"hours": 0.002}, "0.002 hours"),
        ({"patience": 2}, "2 generations brought nothing better"),
    ):
        strategy = strategy_of(Evolutionary.parse({"strategy": "evolutionary", "budget": budget}), FACTS)
        ended = Search(strategy, SINGLES, lambda expression: 0.1).run()
        assert reason in ended.winner.reason
    assert (
        sum(len(generation) for generation in Search(evolutionary(10), SINGLES, hidden_optimum).run().generations) == 10
    )


def test_methods_share_the_budget_and_the_best_wins() -> None:
    spec = {"strategy": "evolutionary", "methods": ["linear", "task_arithmetic"], "budget": {"trials": 21}}

    def prefers_task_arithmetic(expression: Expression) -> float:
        return 0.9 if isinstance(expression, Merge) and expression.method == "task_arithmetic" else 0.6

    search = Search(strategy_of(Evolutionary.parse(spec), FACTS), SINGLES, prefers_task_arithmetic)
    ended = search.run()
    methods = [c.expression.method for c in search.executions if isinstance(c.expression, Merge)]
    assert (methods.count("linear"), methods.count("task_arithmetic")) == (11, 10)
    assert isinstance(ended.winner.observed.candidate.expression, Merge)
    assert ended.winner.observed.candidate.expression.method == "task_arithmetic"


def test_a_random_draw_does_not_depend_on_the_generations_size() -> None:
    def draws(generation: int) -> list[str]:
        spec = {"strategy": "random", "generation": generation, "budget": {"trials": 12}}
        search = Search(strategy_of(RandomSearch.parse(spec), FACTS), SINGLES, hidden_optimum)
        search.run()
        return [expression_digest(c.expression) for g in search.recorded for c in g]

    assert draws(3) == draws(12)


def test_the_grid_holds_every_weighting_once_and_no_single_model() -> None:
    step = grid(3, History(SINGLES))
    assert isinstance(step, NextGeneration)
    assert len(step.candidates) == 10 - 3
    assert all(sum(weights_of(c.expression).values()) == pytest.approx(1) for c in step.candidates)


def test_the_uniform_soup_is_one_candidate() -> None:
    ended = Search(uniform_soup, SINGLES, lambda expression: 0.8).run()
    assert weights_of(ended.winner.observed.candidate.expression) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert Search(uniform_soup, SINGLES[:1], lambda expression: 0.8).run().winner.observed == SINGLES[0]


STRATEGIES = {
    "evolutionary": evolutionary(14, population=5),
    "groups": evolutionary(12, population=4, layer_groups=2, methods=["ties"]),
    "heuristic": evolutionary(25, start="heuristic", coefficients=[0.3, 0.6]),
    "random": strategy_of(RandomSearch.parse({"strategy": "random", "budget": {"trials": 9}}), FACTS),
    "grid": partial(grid, GridSearch(strategy="grid", steps=2).steps),
    "soup": strategy_of(UniformSoup(strategy="uniform_soup"), FACTS),
}


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=5, deadline=None)
@given(order=st.integers(0, 1000), failing=st.sets(st.integers(0, 15), max_size=2))
def test_the_order_of_arrival_does_not_matter_and_a_replay_is_the_live_run(
    name: str, order: int, failing: set[int]
) -> None:
    def score(expression: Expression) -> float | None:
        number = int(expression_digest(expression)[:4], 16)
        return None if number % 16 in failing else hidden_optimum(expression)

    first = Search(STRATEGIES[name], SINGLES, score)
    second = Search(STRATEGIES[name], SINGLES, score, order=order)
    assert first.run() == second.run()
    assert first.recorded == second.recorded
    assert first.step() == second.step()
    best = first.run().winner.observed.mean
    assert best is not None
    assert best >= 0.5


def test_a_default_population_is_the_usual_one() -> None:
    assert [default_population(n) for n in (1, 2, 10)] == [4, 6, 10]
    assert Budget().trials == 200
