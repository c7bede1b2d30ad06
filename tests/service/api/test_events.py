"""Events over HTTP, as pages and as a stream: complete, in order, once each, also across reconnections."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from api.app import create_app
from api.settings import Settings
from glue.plans.units import unit
from glue.records.database import Database
from glue.records.events import list_events
from glue.records.leases import claim, complete
from glue.specs.plan import ADVANCE, UnitOutcome
from tests.support.service_api import (
    LEASE,
    WORKER,
    finish_job,
    job_spec,
    report_files,
    served,
    short_job,
    write_artifact,
)

OPEN_TRANSACTIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE state = 'idle in transaction' AND datname = current_database() AND pid <> pg_backend_pid()
"""
STREAM = {"Accept": "text/event-stream"}


def frames(response: httpx.Response) -> Iterator[dict[str, str]]:
    """The events of a stream as field to value; comments under the empty name."""
    frame: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(":")
            frame[name] = value.removeprefix(" ")
        else:
            yield frame
            frame = {}


def follow(http: httpx.Client, job_id: str, last: int = 0, most: int = 10**9) -> tuple[list[dict[str, Any]], str]:
    """Read at most `most` events behind `last`; gives them and the name of the last frame."""
    seen: list[dict[str, Any]] = []
    with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM | {"Last-Event-ID": str(last)}) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        name = ""
        for frame in frames(response):
            name = frame.get("event", name)
            if "id" in frame:
                event = json.loads(frame["data"])
                assert (str(event["seq"]), event["type"]) == (frame["id"], frame["event"])
                seen.append(event)
            if len(seen) == most or name == "reconnect":
                break
    return seen, name


@pytest.fixture
def many_units(database: Database, root: Path) -> str:
    return short_job(database, "ann", job_spec(root), [unit("score.candidate", {"n": n}) for n in range(60)])


def work(database: Database) -> None:
    """Run every unit that there is."""
    while True:
        with database.transaction() as session:
            claimed = claim(session, WORKER, LEASE)
        if claimed is None:
            return
        outcome = UnitOutcome({"digest": "d"}, finished=claimed.unit.kind == ADVANCE)
        with database.transaction() as session:
            complete(session, claimed.unit.unit_id, claimed.token, outcome, lambda spec, outcomes: ())


def test_pages_hold_every_event_once(client: TestClient, database: Database, many_units: str) -> None:
    work(database)
    seen: list[int] = []
    after = "0"
    while True:
        page = client.get(f"/v1/jobs/{many_units}/events", params={"after": after, "limit": 7}).json()
        seen += [event["seq"] for event in page["data"]]
        after = page["next_cursor"]
        if not page["has_more"]:
            break
    assert seen == list(range(1, len(seen) + 1))
    assert after == str(seen[-1])
    assert client.get(f"/v1/jobs/{many_units}/events", params={"after": after}).json()["next_cursor"] == after
    types = {event["type"] for event in client.get(f"/v1/jobs/{many_units}/events").json()["data"]}
    assert {
        "job.created",
        "job.started",
        "stage.started",
        "unit.succeeded",
        "stage.succeeded",
        "job.succeeded",
    } <= types


def test_a_stream_follows_to_the_end(http: httpx.Client, database: Database, many_units: str) -> None:
    workers = [threading.Thread(target=work, args=(database,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    seen, last = follow(http, many_units)
    for worker in workers:
        worker.join()
    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    assert last == "job.succeeded"


def test_resuming_loses_nothing_and_repeats_nothing(http: httpx.Client, database: Database, many_units: str) -> None:
    workers = [threading.Thread(target=work, args=(database,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["type"] != "job.succeeded":
        more, _ = follow(http, many_units, seen[-1]["seq"] if seen else 0, most=5)
        seen += more
    for worker in workers:
        worker.join()
    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    assert len([event for event in seen if event["type"] == "unit.succeeded"]) == 60


def test_behind_the_last_event_there_is_nothing(http: httpx.Client, database: Database, many_units: str) -> None:
    work(database)
    last = http.get(f"/v1/jobs/{many_units}/events").json()["next_cursor"]
    answer = http.get(f"/v1/jobs/{many_units}/events", headers=STREAM | {"Last-Event-ID": last})
    assert (answer.status_code, answer.content) == (204, b"")


def test_silence_is_filled_with_pings(http: httpx.Client, many_units: str) -> None:
    with http.stream("GET", f"/v1/jobs/{many_units}/events", headers=STREAM) as response:
        found = frames(response)
        assert next(found) == {"retry": "1000"}
        assert next(found)["event"] == "job.created"
        assert [next(found), next(found)] == [{"": "ping"}, {"": "ping"}]


def test_a_connection_does_not_last_for_ever(settings: Settings, key_of: Any, many_units: str) -> None:
    app: FastAPI = create_app(settings.model_copy(update={"event_stream": 0.3}))
    with (
        served(app) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key_of('ann')}"}) as http,
    ):
        seen, last = follow(http, many_units)
        assert ([event["type"] for event in seen], last) == (["job.created"], "reconnect")


def test_postgres_is_not_asked_for_a_client_that_left(
    http: httpx.Client, many_units: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(*arguments: Any) -> Any:
        asked.append(1)
        return list_events(*arguments)

    monkeypatch.setattr("api.routes.events.list_events", counted)
    follow(http, many_units, most=1)
    time.sleep(0.3)
    before = len(asked)
    time.sleep(0.3)
    assert len(asked) == before > 0


def test_no_transaction_is_open_while_streaming(http: httpx.Client, database: Database, many_units: str) -> None:
    with http.stream("GET", f"/v1/jobs/{many_units}/events", headers=STREAM) as response:
        found = frames(response)
        for _ in range(4):
            next(found)
        with database.transaction() as session:
            assert session.scalar(text(OPEN_TRANSACTIONS)) == 0


def test_a_strange_last_event_id_is_refused(client: TestClient, many_units: str) -> None:
    for last in ("x", "-1", str(2**63)):
        answer = client.get(f"/v1/jobs/{many_units}/events", headers=STREAM | {"Last-Event-ID": last})
        assert answer.status_code == 422


def test_a_finished_job_streams_its_whole_record(
    http: httpx.Client, database: Database, root: Path, tmp_path: Path
) -> None:
    job_id = short_job(database, "ann", job_spec(root))
    finish_job(database, write_artifact(tmp_path / "home" / "artifacts", report_files({})))
    seen, last = follow(http, job_id)
    assert last == "job.succeeded"
    summary = next(event["data"] for event in seen if event["type"] == "unit.succeeded")
    assert summary["kind"] == "report.write"
