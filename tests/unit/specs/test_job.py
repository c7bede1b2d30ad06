"""What users write: defaults filled in, mistakes named with their place and their fix."""

from typing import Any

import pytest

from glue.specs.errors import InvalidInputError, Problem
from glue.specs.job import ClusteringSpec, JobRequest
from glue.specs.zoo import ZooSpec

SUITE: dict[str, Any] = {"tasks": [{"task": "t"}]}
JOB: dict[str, Any] = {"kind": "model_glue", "zoo": "small", "proxy": SUITE, "report": SUITE}


def problems(value: dict[str, Any]) -> tuple[Problem, ...]:
    with pytest.raises(InvalidInputError) as raised:
        JobRequest.parse(value)
    return raised.value.problems


def test_defaults_are_the_papers() -> None:
    job = JobRequest.parse(JOB)
    assert job.clustering.threshold == 0.95
    assert job.clustering.linkage == "complete"
    assert job.search.coefficients == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert JobRequest.parse(job.as_json()) == job


@pytest.mark.parametrize(
    ("change", "pointer", "detail", "fix"),
    [
        ({"serach": {}}, "/serach", "unknown key 'serach'", "did you mean 'search'?"),
        (
            {"search": {"coeficients": [0.5]}},
            "/search/coeficients",
            "unknown key 'coeficients'",
            "did you mean 'coefficients'?",
        ),
        (
            {"mixture": {"router": {"typ": "linear"}}},
            "/mixture/router/typ",
            "unknown key 'typ'",
            "did you mean 'type'?",
        ),
        (
            {"proxy": {"tasks": [{"task": "t", "limt": 3}]}},
            "/proxy/tasks/0/limt",
            "unknown key 'limt'",
            "did you mean 'limit'?",
        ),
        ({"zzz": 1}, "/zzz", "unknown key 'zzz'", "remove it"),
    ],
)
def test_unknown_keys_name_their_nearest_neighbour(change: dict[str, Any], pointer: str, detail: str, fix: str) -> None:
    assert Problem(pointer, "unknown_key", detail, fix) in problems(JOB | change)


def test_every_mistake_is_told_at_once() -> None:
    found = problems(JOB | {"kind": "nonsense", "seed": -1, "search": {"coefficients": [1.5]}})
    assert [problem.pointer for problem in found] == ["/kind", "/seed", "/search/coefficients/0"]


def test_numbers_in_scientific_notation_are_numbers() -> None:
    job = JobRequest.parse(JOB | {"search": {"coefficients": ["5e-1"]}})
    assert job.search.coefficients == (0.5,)


def test_task_vectors_need_a_threshold_of_the_users_own() -> None:
    assert ClusteringSpec.parse({"weights": "task_vector", "threshold": 0.5}).threshold == 0.5
    with pytest.raises(InvalidInputError, match="no default threshold"):
        ClusteringSpec.parse({"weights": "task_vector"})


def test_a_zoo_has_unique_names_and_keeps_base_for_the_base() -> None:
    member = {"name": "a", "source": "/a"}
    with pytest.raises(InvalidInputError, match="unique"):
        ZooSpec.parse({"name": "z", "members": [member, member]})
    with pytest.raises(InvalidInputError, match="kept for the zoo's base"):
        ZooSpec.parse({"name": "z", "members": [{"name": "base", "source": "/a"}]})


@pytest.mark.parametrize("prompt", ["", "  ", "\n"])
def test_a_blank_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(InvalidInputError, match="/members/0/prompts/0"):
        ZooSpec.parse({"name": "z", "members": [{"name": "a", "source": "/a", "prompts": [prompt]}]})


def test_a_tasks_folder_is_one_suite_without_doubles() -> None:
    with pytest.raises(InvalidInputError, match="appears twice"):
        JobRequest.parse(JOB | {"proxy": {"tasks": [{"task": "t"}, {"task": "t"}]}})
