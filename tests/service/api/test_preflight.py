"""`POST /v1/preflight`: what a submission would refuse, told together with what the job may take. Stores nothing."""

import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from glue.records.database import Database
from glue.records.leases import WorkerIdentity
from glue.records.workers import register_worker
from tests.support.hub.server import OWNER, StandIn
from tests.support.hub.shapes import shaped_model
from tests.support.model_folders import LLAMA, LLAMA_TENSORS, TOKENIZER, write_model
from tests.support.service_api import job_request, write_zoo

MEGABYTE = 1e6


def told(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/v1/preflight", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["ok"] == (not found["problems"])
    return found


def codes(findings: list[dict[str, Any]]) -> set[tuple[str, str]]:
    assert all(finding["detail"] and finding["fix"] for finding in findings)
    return {(finding["pointer"], finding["code"]) for finding in findings}


def test_a_good_job_is_described(client: TestClient, root: Path, database: Database) -> None:
    zoo = write_zoo(root)
    with database.transaction() as session:
        register_worker(session, WorkerIdentity("wrk_a", ("cpu", "gpu", "hub"), 2**40))
    found = told(client, job_request(root, zoo=zoo))
    assert found["ok"]
    assert found["warnings"] == []
    assert [(model["name"], model["group"], model["dtype"]) for model in found["models"]] == [
        ("a", 1, "F32"),
        ("b", 1, "F32"),
    ]
    assert found["models"][0]["rope"] == {"rope_theta": 10000.0, "rope_type": "default"}
    assert [stage["stage"] for stage in found["stages"]][:5] == [
        "resolve", "similarity", "baselines", "search", "merge",
    ]  # fmt: skip
    assert found["disk"]["needed_bytes"] < found["disk"]["free_bytes"]
    assert found["download_bytes"] == 0
    assert found["assumptions"]
    assert client.get("/v1/zoos").json()["data"] == []
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_stored_zoo_is_looked_into_by_name_and_only_its_owner_sees_it(
    client: TestClient, stranger: TestClient, root: Path
) -> None:
    client.post("/v1/zoos", json=write_zoo(root))
    assert told(client, job_request(root))["ok"]
    assert codes(told(stranger, job_request(root))["problems"]) == {("/zoo", "unknown_zoo")}


def test_without_a_worker_that_could_the_job_would_wait(client: TestClient, root: Path, database: Database) -> None:
    with database.transaction() as session:
        register_worker(session, WorkerIdentity("wrk_a", ("cpu", "gpu"), 16))
    found = told(client, job_request(root, zoo=write_zoo(root)))
    assert found["ok"]
    waiting = [warning["detail"] for warning in found["warnings"] if warning["code"] == "no_worker"]
    assert any("baselines" in detail for detail in waiting)


def test_what_is_refused_is_what_a_submission_refuses(client: TestClient, root: Path) -> None:
    zoo = write_zoo(root)
    write_model(root / "b", tokenizer=TOKENIZER | {"model": {"vocab": {"z": 0}}})
    client.post("/v1/zoos", json=zoo)
    body = job_request(root, clustering={"weights": "task_vector", "threshold": 0.5})
    body["proxy"]["tasks"] = [{"task": "nath"}]
    refused = client.post("/v1/jobs", json=body)
    assert refused.status_code == 422
    assert told(client, body)["problems"] == refused.json()["errors"]


def test_mistakes_of_the_file_do_not_hide_those_of_the_models(client: TestClient, root: Path) -> None:
    zoo = write_zoo(root)
    (root / "a" / "model.safetensors").unlink()
    found = told(client, job_request(root, zoo=zoo, serch={}))
    assert codes(found["problems"]) >= {("/members/0/source", "no_weights")}
    assert [problem["code"] for problem in found["problems"] if problem["pointer"] == "/serch"] == ["unknown_key"]
    assert [model["name"] for model in found["models"]] == ["b"]


def test_a_zoo_alone(client: TestClient, root: Path) -> None:
    found = told(client, write_zoo(root))
    assert (found["kind"], found["ok"], found["stages"], len(found["models"])) == ("zoo", True, [], 2)


def test_what_differs_is_told(client: TestClient, root: Path) -> None:
    zoo = write_zoo(root)
    rope = {"rope_theta": 500000.0, "rope_type": "default"}
    write_model(root / "b", LLAMA | {"rope_parameters": rope, "max_position_embeddings": 64})
    write_model(root / "c", LLAMA | {"max_position_embeddings": 32})
    half = {name: ("BF16", shape) for name, (_, shape) in LLAMA_TENSORS.items()}
    write_model(root / "d", tensors=half)
    (root / "c" / "README.md").write_text("---\nlicense: llama2\n---\n")
    (root / "d" / "README.md").write_text("---\nlicense: llama3\n---\n")
    zoo["members"] += [{"name": name, "source": str(root / name)} for name in ("c", "d")]
    found = told(client, job_request(root, zoo=zoo))
    assert found["ok"]
    assert codes(found["warnings"]) >= {
        ("/members/1/source", "other_signature"),
        ("/members/2/source", "context_differs"),
        ("", "dtypes_differ"),
        ("/members", "licences_conflict"),
        ("/members", "licence"),
    }
    text = next(each["detail"] for each in found["warnings"] if each["code"] == "other_signature")
    assert "rope_theta 10000.0 and 500000.0" in text


def test_sixteen_models_of_seven_billion_parameters_on_the_hub(
    standing: StandIn, client: TestClient, root: Path, tmp_path: Path
) -> None:
    for number in range(16):
        other = {"rope_theta": 5e5} if number == 15 else {}
        standing.store.add_folder(f"{OWNER}/m{number}", shaped_model(tmp_path / f"m{number}", **other))
    members = [{"name": f"m{number}", "source": f"{OWNER}/m{number}"} for number in range(16)]
    write_zoo(root)
    body = job_request(root, zoo={"name": "seven", "members": members})
    began = time.monotonic()
    found = told(client, body)
    seconds = time.monotonic() - began
    assert found["ok"]
    assert seconds < 20
    assert standing.sent() < 10 * MEGABYTE
    assert found["download_bytes"] > 16 * 13e9
    assert found["disk"]["needed_bytes"] > found["download_bytes"]
    # The largest model twice in fp32, for each of two experts.
    assert max(stage["device_bytes"] for stage in found["stages"]) == pytest.approx(2 * 2 * 4 * 6.74e9, rel=0.01)
    assert ("/members/15/source", "other_signature") in codes(found["warnings"])


def test_every_problem_on_the_hub_at_once(standing: StandIn, client: TestClient, root: Path, tmp_path: Path) -> None:
    plants: dict[str, dict[str, Any]] = {
        "good": {},
        "code": {"auto_map": {"AutoModelForCausalLM": "x.Y"}},
        "quantised": {"quantization_config": {"bits": 4}},
        "gated": {},
        "private": {},
    }
    for name, config in plants.items():
        folder = shaped_model(tmp_path / name, num_hidden_layers=2, **config)
        standing.store.add_folder(f"{OWNER}/{name}", folder, private=name == "private", gated=name == "gated")
    sources = [*(f"{OWNER}/{name}" for name in plants), f"{OWNER}/missing", f"{OWNER}/good@v9"]
    members = [{"name": f"m{number}", "source": source} for number, source in enumerate(sources)]
    write_zoo(root)
    body = job_request(root, zoo={"name": "bad", "members": members}, publish={"repo": f"{OWNER}/out"})
    body["report"]["tasks"] = [{"task": "nath"}]
    found = told(client, body)
    places = {(problem["pointer"], problem["code"]) for problem in found["problems"]}
    assert places >= {
        ("/members/1/source", "custom_code"),
        ("/members/2/source", "quantised"),
        ("/members/3/source", "gated"),
        ("/members/4/source", "no_repository"),
        ("/members/5/source", "no_repository"),
        ("/members/6/source", "no_revision"),
        ("/report/tasks/0/task", "unknown_task"),
    }
    assert any(pointer.startswith("/publish") for pointer, _ in places)
    assert [model["name"] for model in found["models"]] == ["m0"]


@pytest.mark.parametrize("body", [[], 3, {"kind": "nonsense"}, {"members": []}, {"kind": "model_glue", "zoo": 7}])
def test_anything_is_answered(client: TestClient, body: Any) -> None:
    assert not told(client, body)["ok"]


def test_an_earlier_job_that_cannot_be_started_from_is_told(client: TestClient, root: Path) -> None:
    search = {"strategy": "evolutionary", "warm_start": "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"}
    found = told(client, job_request(root, zoo=write_zoo(root), search=search))
    assert codes(found["problems"]) == {("/search/warm_start", "unknown_job")}
    assert found["models"]
