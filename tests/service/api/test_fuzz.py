"""Any body whatsoever is answered, and never by an error of ours."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.service_api import job_request, write_zoo

quick = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**60)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["inf", "nan", "1e999", "\0", "\ud800", "../..", "/", "0.5", "small", "linear"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def fuzzed(app: FastAPI, key_of: Callable[[str], str], root: Path) -> Iterator[TestClient]:
    """A client that does not hide a server's error behind an exception, with a zoo stored."""
    headers = {"Authorization": f"Bearer {key_of('ann')}", "Content-Type": "application/json"}
    with TestClient(app, headers=headers, raise_server_exceptions=False) as client:
        client.post("/v1/zoos", json=write_zoo(root))
        yield client


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within plain data."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The data with the value at `path` replaced."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def send(client: TestClient, path: str, body: Any) -> None:
    raw = json.dumps(body).encode()
    answer = client.post(path, content=raw)
    assert answer.status_code in {200, 201, 400, 422}, answer.text
    if answer.status_code >= 400:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["errors"] or answer.json()["code"] == "unreadable_body"
    else:
        assert client.get(answer.headers["Location"]).status_code == 200


FULL: dict[str, Any] = {
    "seed": 1,
    "name": "n",
    "labels": {"a": "b"},
    "priority": 0,
    "clustering": {"threshold": 0.9, "linkage": "complete", "weights": "raw"},
    "search": {"coefficients": [0.5, "1e-3"]},
    "mixture": {"minimum_share": 0.1, "router": {"type": "linear"}},
    "output": {"dtype": "float32", "shard_bytes": 10_000_000},
}


@quick
@given(data=st.data())
def test_a_job_with_anything_in_one_place(fuzzed: TestClient, root: Path, data: st.DataObject) -> None:
    body = job_request(root, **FULL)
    suite = {"limit": 3, "num_fewshot": 0, "metric": "acc", "weight": 1.5}
    body["proxy"] |= {"tasks": [{"task": "math"} | suite], "batch": 4, "threads": 1, "seed": 3}
    path = data.draw(st.sampled_from(list(places(body))))
    send(fuzzed, "/v1/jobs", replaced(body, path, data.draw(values)))


@quick
@given(data=st.data())
def test_a_zoo_with_anything_in_one_place(fuzzed: TestClient, root: Path, data: st.DataObject) -> None:
    body = write_zoo(root) | {"base": {"source": str(root / "a")}}
    body["members"][0] |= {"domains": ["math"], "prompts": ["x"]}
    path = data.draw(st.sampled_from(list(places(body))))
    send(fuzzed, "/v1/zoos", replaced(body, path, data.draw(values)))


@quick
@given(body=values)
def test_any_value(fuzzed: TestClient, body: Any) -> None:
    send(fuzzed, "/v1/jobs", body)


@quick
@given(body=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode(errors="replace")))
@pytest.mark.parametrize("media_type", ["application/json", "application/yaml"])
def test_any_bytes(fuzzed: TestClient, media_type: str, body: bytes) -> None:
    answer = fuzzed.post("/v1/jobs", content=body, headers={"Content-Type": media_type})
    assert answer.status_code in {400, 422}, answer.text
