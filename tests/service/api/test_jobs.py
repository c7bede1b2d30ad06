"""Jobs over HTTP: submitted complete, read, listed, cancelled; and what is wrong with a request."""

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from glue.records.database import Database
from glue.records.leases import claim
from glue.records.outbox import take_unsent
from glue.specs.plan import UnitOutcome
from tests.support.service_api import (
    LEASE,
    RESULT,
    WORKER,
    finish_job,
    job_request,
    job_spec,
    report_files,
    short_job,
    step,
    write_artifact,
    write_zoo,
)


@pytest.fixture
def submitted(client: TestClient, root: Path) -> dict[str, Any]:
    """A job as it was answered."""
    client.post("/v1/zoos", json=write_zoo(root))
    answer = client.post("/v1/jobs", json=job_request(root, name="first", labels={"env": "dev"}))
    assert answer.status_code == 201
    job: dict[str, Any] = answer.json()
    return job


class TestCreate:
    def test_the_answer_is_complete(self, client: TestClient, submitted: dict[str, Any], root: Path) -> None:
        assert submitted["object"] == "job"
        assert submitted["status"] == "queued"
        assert submitted["name"] == "first"
        assert submitted["labels"] == {"env": "dev"}
        assert submitted["seed"] == submitted["spec"]["seed"]
        assert submitted["spec"]["clustering"]["threshold"] == 0.95
        assert submitted["spec_digest"].startswith("sha256:")
        assert submitted["progress"] == {"percent": 0, "stage": None, "units": {"finished": 0, "total": 2}}
        assert [stage["name"] for stage in submitted["stages"]][:2] == ["resolve", "similarity"]
        assert submitted["chain"][0] == "resolve"
        assert submitted["chain"][-1] == "report"
        assert submitted["result"] is submitted["error"] is submitted["finished_at"] is None
        assert submitted["created_at"].endswith("Z")
        assert submitted["initiator"] == {"type": "owner", "id": "ann"}
        read = client.get(f"/v1/jobs/{submitted['id']}").json()
        assert read.pop("durations")["running_seconds"] is None
        assert read == {key: value for key, value in submitted.items() if key != "durations"}

    def test_location_and_wake_up(self, client: TestClient, root: Path, database: Database) -> None:
        client.post("/v1/zoos", json=write_zoo(root))
        answer = client.post("/v1/jobs", json=job_request(root, seed=0))
        assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"
        assert answer.json()["seed"] == 0
        with database.transaction() as session:
            assert [row.worker_class for row in take_unsent(session, 10)] == ["cpu"]

    def test_a_missing_seed_is_drawn(self, client: TestClient, submitted: dict[str, Any], root: Path) -> None:
        seeds = {client.post("/v1/jobs", json=job_request(root)).json()["seed"] for _ in range(3)}
        assert len(seeds | {submitted["seed"]}) == 4

    def test_an_unknown_zoo_is_told(self, client: TestClient, root: Path) -> None:
        write_zoo(root)
        answer = client.post("/v1/jobs", json=job_request(root))
        assert answer.status_code == 422
        assert answer.json()["code"] == "invalid_input"
        assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [("/zoo", "unknown_zoo")]

    def test_nothing_is_stored_when_something_is_wrong(
        self, client: TestClient, submitted: dict[str, Any], root: Path
    ) -> None:
        (root / "a" / "tokenizer.json").unlink()
        answer = client.post(
            "/v1/jobs", json=job_request(root, clustering={"weights": "task_vector", "threshold": 0.5})
        )
        assert answer.status_code == 422
        pointers = {error["pointer"] for error in answer.json()["errors"]}
        assert pointers == {"/members/0/source", "/clustering/weights"}
        assert len(client.get("/v1/jobs").json()["data"]) == 1

    def test_a_forgotten_zoo_leaves_its_jobs(self, client: TestClient, submitted: dict[str, Any]) -> None:
        client.delete("/v1/zoos/small")
        job = client.get(f"/v1/jobs/{submitted['id']}").json()
        assert job["zoo_id"] is None
        assert job["spec"]["zoo"]["name"] == "small"


class TestIdempotency:
    def test_a_repetition_is_answered_alike_and_done_once(self, client: TestClient, root: Path) -> None:
        client.post("/v1/zoos", json=write_zoo(root))
        first = client.post("/v1/jobs", json=job_request(root), headers={"Idempotency-Key": '"abc"'})
        again = client.post("/v1/jobs", json=job_request(root), headers={"Idempotency-Key": "abc"})
        assert again.status_code == 201
        assert again.json() == first.json()
        assert again.headers["Location"] == first.headers["Location"]
        assert "Idempotency-Replayed" not in first.headers
        assert again.headers["Idempotency-Replayed"] == "true"
        assert len(client.get("/v1/jobs").json()["data"]) == 1

    def test_a_key_for_another_body_is_refused(self, client: TestClient, root: Path) -> None:
        client.post("/v1/zoos", json=write_zoo(root))
        client.post("/v1/jobs", json=job_request(root), headers={"Idempotency-Key": "abc"})
        answer = client.post("/v1/jobs", json=job_request(root, seed=5), headers={"Idempotency-Key": "abc"})
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")

    def test_a_key_belongs_to_its_owner(self, client: TestClient, stranger: TestClient, root: Path) -> None:
        for each in (client, stranger):
            each.post("/v1/zoos", json=write_zoo(root))
            answer = each.post("/v1/jobs", json=job_request(root), headers={"Idempotency-Key": "abc"})
            assert "Idempotency-Replayed" not in answer.headers

    def test_a_refused_request_does_not_use_up_its_key(self, client: TestClient, root: Path) -> None:
        request = job_request(root)
        assert client.post("/v1/jobs", json=request, headers={"Idempotency-Key": "abc"}).status_code == 422
        client.post("/v1/zoos", json=write_zoo(root))
        assert client.post("/v1/jobs", json=request, headers={"Idempotency-Key": "abc"}).status_code == 201

    def test_strange_keys_are_refused(self, client: TestClient, root: Path) -> None:
        for key in ("", "a b", '"', '"a', "x" * 256):
            answer = client.post("/v1/jobs", json=job_request(root), headers={"Idempotency-Key": key})
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_idempotency_key")

    def test_twins_make_one_job(self, http: httpx.Client, root: Path) -> None:
        http.post("/v1/zoos", json=write_zoo(root))
        answers: list[httpx.Response] = []

        def submit() -> None:
            answers.append(http.post("/v1/jobs", json=job_request(root), headers={"Idempotency-Key": "twin"}))

        threads = [threading.Thread(target=submit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in answers} <= {201, 409}
        made = {answer.json()["id"] for answer in answers if answer.status_code == 201}
        assert len(made) == 1
        assert [job["id"] for job in http.get("/v1/jobs").json()["data"]] == list(made)


class TestList:
    def test_filters(self, client: TestClient, submitted: dict[str, Any], root: Path) -> None:
        other = client.post("/v1/jobs", json=job_request(root, labels={"env": "prod", "team": "x"})).json()
        client.post(f"/v1/jobs/{other['id']}/cancel")

        def ids(*params: tuple[str, str]) -> list[str]:
            return [job["id"] for job in client.get("/v1/jobs", params=list(params)).json()["data"]]

        assert ids() == [other["id"], submitted["id"]]
        assert ids(("status", "queued")) == [submitted["id"]]
        assert ids(("status", "queued"), ("status", "cancelled")) == [other["id"], submitted["id"]]
        assert ids(("label", "env:prod"), ("label", "team:x")) == [other["id"]]
        assert ids(("label", "env:prod"), ("label", "team:y")) == []
        assert ids(("label", "env:")) == []

    def test_wrong_parameters_are_told(self, client: TestClient) -> None:
        wrong = (
            "status=done",
            "label=env",
            "label=a%00:b",
            "limit=0",
            "limit=101",
            "limit=x",
            "after=job_x",
            "after=%00",
        )
        for query in wrong:
            answer = client.get(f"/v1/jobs?{query}")
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter"), query
            assert answer.json()["errors"][0]["pointer"].startswith("/query/")

    def test_pages_are_stable_while_jobs_are_added(self, http: httpx.Client, database: Database, root: Path) -> None:
        spec = job_spec(root)
        old = [short_job(database, "ann", spec) for _ in range(23)]
        stop = threading.Event()

        def add() -> None:
            while not stop.is_set():
                short_job(database, "ann", spec)

        adding = [threading.Thread(target=add) for _ in range(2)]
        for thread in adding:
            thread.start()
        try:
            seen, params = [], {"limit": 5}
            while True:
                page = http.get("/v1/jobs", params=params).json()
                seen += [job["id"] for job in page["data"]]
                params = {"limit": 5, "after": page["next_cursor"]}
                if not page["has_more"]:
                    break
        finally:
            stop.set()
            for thread in adding:
                thread.join()
        assert len(seen) == len(set(seen))
        assert seen == sorted(seen, reverse=True)
        assert [job for job in seen if job in set(old)] == old[::-1]


class TestCancel:
    def test_a_queued_job_ends_at_once(self, client: TestClient, submitted: dict[str, Any]) -> None:
        answer = client.post(f"/v1/jobs/{submitted['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
        again = client.post(f"/v1/jobs/{submitted['id']}/cancel")
        assert (again.status_code, again.json()["code"]) == (409, "job_finished")

    def test_a_running_job_is_cancelling(
        self, client: TestClient, submitted: dict[str, Any], database: Database
    ) -> None:
        with database.transaction() as session:
            claim(session, WORKER, LEASE)
        for _ in range(2):
            answer = client.post(f"/v1/jobs/{submitted['id']}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")
        assert answer.json()["status_message"] == "waiting for running units to stop"


class TestPause:
    def test_a_job_is_paused_and_goes_on(self, client: TestClient, submitted: dict[str, Any]) -> None:
        path = f"/v1/jobs/{submitted['id']}"
        for _ in range(2):
            answer = client.post(f"{path}/pause")
            assert (answer.status_code, answer.json()["status"]) == (202, "paused")
        assert answer.json()["status_message"] == "paused; units that run still finish"
        assert [job["id"] for job in client.get("/v1/jobs?status=paused").json()["data"]] == [submitted["id"]]
        for _ in range(2):
            answer = client.post(f"{path}/resume")
            assert (answer.status_code, answer.json()["status"]) == (202, "queued")

    def test_a_job_that_has_ended_stays_so(self, client: TestClient, submitted: dict[str, Any]) -> None:
        path = f"/v1/jobs/{submitted['id']}"
        client.post(f"{path}/cancel")
        for verb in ("pause", "resume"):
            answer = client.post(f"{path}/{verb}")
            assert (answer.status_code, answer.json()["code"]) == (409, "job_finished")


class TestProgress:
    def test_units_and_stages_move(self, client: TestClient, submitted: dict[str, Any], database: Database) -> None:
        step(database, UnitOutcome({"name": "a", "long": list(range(1000))}))
        job = client.get(f"/v1/jobs/{submitted['id']}").json()
        assert job["status"] == "running"
        assert job["status_message"] == "resolve: 1 of 2 units"
        assert job["progress"] == {"percent": 7, "stage": "resolve", "units": {"finished": 1, "total": 2}}
        assert job["durations"]["running_seconds"] >= 0
        units = client.get(f"/v1/jobs/{submitted['id']}/units").json()["data"]
        assert [(unit["kind"], unit["status"]) for unit in units] == [
            ("resolve.inspect", "succeeded"),
            ("resolve.inspect", "ready"),
        ]
        assert units[0]["summary"] == {"name": "a"}
        stages = client.get(f"/v1/jobs/{submitted['id']}/stages").json()
        assert stages["data"] == job["stages"]
        assert stages["data"][0]["status"] == "running"

    def test_a_unit_shows_its_inputs_and_its_result(self, client: TestClient, submitted: dict[str, Any]) -> None:
        path = f"/v1/jobs/{submitted['id']}/units"
        listed = client.get(path).json()["data"][0]
        unit = client.get(f"{path}/{listed['id']}").json()
        assert unit["payload"]["name"] == "a"
        assert unit["result"] is None
        assert unit["mergekit"] is None
        assert client.get(f"{path}/unit_{'0' * 26}").status_code == 404

    def test_units_are_paged_and_filtered(self, client: TestClient, submitted: dict[str, Any]) -> None:
        path = f"/v1/jobs/{submitted['id']}/units"
        first = client.get(path, params={"limit": 1}).json()
        second = client.get(path, params={"limit": 1, "after": first["next_cursor"]}).json()
        assert (first["has_more"], second["has_more"]) == (True, False)
        assert first["data"][0]["id"] < second["data"][0]["id"]
        assert client.get(path, params={"stage": "search"}).json()["data"] == []

    def test_a_finished_job_has_a_result(
        self, client: TestClient, database: Database, root: Path, tmp_path: Path
    ) -> None:
        job_id = short_job(database, "ann", job_spec(root))
        plan = write_artifact(tmp_path / "home" / "artifacts", report_files({"object": "report"}))
        finish_job(database, plan)
        job = client.get(f"/v1/jobs/{job_id}").json()
        assert job["status"] == "succeeded"
        assert job["progress"]["percent"] == 100
        artifact_id = job["result"].pop("artifact_id")
        assert job["result"] == {**RESULT, "digest": f"sha256:{plan.digest}"}
        assert client.get(f"/v1/artifacts/{artifact_id}").json()["job_id"] == job_id
