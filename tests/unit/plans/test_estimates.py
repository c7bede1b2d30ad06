"""Estimates grow with what they are made of, and follow the search's own number of candidates."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.plans.estimates import ModelSize, Throughputs, Workers, candidates_of, disk_needed, estimate_stages
from glue.specs.job import JobRequest

SUITES = {name: {"tasks": [{"task": name, "limit": 10}]} for name in ("proxy", "report")}
ONE = Workers({"cpu": 1, "gpu": 1, "hub": 1}, on_device=False)


def job(**more: Any) -> JobRequest:
    return JobRequest.parse({"kind": "model_glue", "zoo": "z", **SUITES, **more})


@pytest.mark.parametrize(
    ("search", "members", "expected"),
    [
        ({}, 1, 0),
        ({}, 3, 18),
        ({"strategy": "heuristic_average"}, 4, 3),
        ({"strategy": "greedy_soup"}, 4, 3),
        ({"strategy": "uniform_soup"}, 4, 1),
        ({"strategy": "grid", "steps": 4}, 3, 15),
        ({"strategy": "random", "budget": {"trials": 7}}, 3, 7),
        ({"strategy": "evolutionary", "start": "heuristic", "budget": {"trials": 7}, "coefficients": [0.5]}, 3, 9),
    ],
)
def test_candidates_are_those_of_the_strategy(search: dict[str, Any], members: int, expected: int) -> None:
    assert candidates_of(job(search=search).search, members) == expected


def test_a_chain_of_one_family_has_no_mixture() -> None:
    sizes = [ModelSize(1000, 2000)] * 2
    stages = [stage.stage for stage in estimate_stages(job(), [sizes], [0, 0], ONE, Throughputs())]
    assert stages == ["resolve", "similarity", "baselines", "search", "merge", "report"]
    apart = estimate_stages(job(), [[sizes[0]], [sizes[1]]], [0, 5], ONE, Throughputs())
    assert [stage.stage for stage in apart] == [*stages[:5], "mixture", "report"]
    assert (apart[0].units, apart[0].worker_class) == (1, "hub")
    assert apart[-1].device_bytes == 2 * apart[2].device_bytes


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=5), st.integers(2, 8))
def test_more_takes_more(parameters: list[int], factor: int) -> None:
    small = [[ModelSize(each, 2 * each) for each in parameters]]
    large = [[ModelSize(factor * each, 2 * factor * each) for each in parameters]]
    downloads = [0] * len(parameters)
    for one, other in zip(
        *(estimate_stages(job(), each, downloads, ONE, Throughputs()) for each in (small, large)), strict=True
    ):
        assert one.seconds <= other.seconds
        assert one.device_bytes <= other.device_bytes
    assert disk_needed(job(), small, downloads) < disk_needed(job(), large, downloads)
    bf16 = job(output={"dtype": "bfloat16"})
    assert 2 * disk_needed(bf16, small, downloads) == disk_needed(job(), small, downloads)
