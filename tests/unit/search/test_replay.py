"""A search is brought forward from its records alone."""

from glue.search.greedy import heuristic_similarity
from glue.search.history import History, NextGeneration, Step, Winner
from glue.search.replay import Ended, Pending
from glue.specs.expression import Candidate, Expression, linear, weights_of
from tests.support.searches import Search, single

SINGLES = (single("a", 0.5), single("b", 0.4), single("c", 0.3))


def candidate(name: str, **weights: float) -> Candidate:
    return Candidate(name=name, expression=linear(weights))


def repeats_itself(history: History) -> Step:
    """Three generations: two equal candidates and a single model; one of them again; a new one."""
    steps = (
        (candidate("one", a=0.5, b=0.5), candidate("two", a=0.5, b=0.5), candidate("three", c=1.0)),
        (candidate("four", a=0.5, b=0.5),),
        (candidate("five", a=0.2, b=0.8),),
    )
    if len(history.generations) < len(steps):
        return NextGeneration(steps[len(history.generations)])
    return Winner(history.singles[0], (), ())


def test_candidates_that_are_equal_by_digest_are_scored_once() -> None:
    search = Search(repeats_itself, SINGLES, lambda expression: 0.7)
    first = search.step()
    assert isinstance(first, Pending)
    assert [each.name for each in first.candidates] == ["one"]
    ended = search.run()
    assert [each.name for each in search.executions] == ["one", "five"]
    means = [[observed.mean for observed in generation] for generation in ended.generations]
    assert means == [[0.7, 0.7, 0.3], [0.7], [0.7]]
    seconds = [observed.seconds for generation in ended.generations for observed in generation]
    assert seconds == [1.0, 0.0, 0.0, 0.0, 1.0]


def test_generations_that_were_known_already_are_recorded_too() -> None:
    search = Search(repeats_itself, SINGLES, lambda expression: 0.7)
    search.run()
    assert [[each.name for each in generation] for generation in search.recorded] == [
        ["one", "two", "three"],
        ["four"],
        ["five"],
    ]


def test_a_similarity_is_measured_once_and_then_known() -> None:
    asked: list[Expression] = []

    def similarity(expression: Expression, name: str) -> float:
        asked.append(expression)
        return {"b": 0.1, "c": 0.2}[name]

    search = Search(heuristic_similarity((0.5,), "highest"), SINGLES, lambda expression: 0.6)
    ended = search.run(similarity)
    assert isinstance(ended, Ended)
    assert len(asked) == 2
    assert list(weights_of(ended.winner.observed.candidate.expression)) == ["a", "c", "b"]
