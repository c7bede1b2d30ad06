"""Jobs that build one model, over REST on real servers and workers: told before, repeated, killed, pulled."""

from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from glue.cli.client import Client
from glue.cli.pull import pull
from tests.support.builds import build_request, build_spec, report_suite
from tests.support.in_process import InProcess
from tests.support.main_job import QUICK_RECOVERY, get, wait, wait_for_stage
from tests.support.processes import kill
from tests.support.services import Service, service
from tests.support.tiny_zoo import build_tiny_zoo

KINDS = ("merge", "mixture", "stack")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_zoo(tmp_path_factory.mktemp("zoo"))


def submit(running: Service, request: dict[str, object], key: str) -> str:
    with running.client as client:
        answer = client.post("/v1/jobs", json=request, headers={"Idempotency-Key": key})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


def test_each_kind_is_built_as_in_one_process_though_its_worker_dies(zoo: Path, tmp_path: Path) -> None:
    changes = {kind: {"report": report_suite(zoo)} if kind == "merge" else {} for kind in KINDS}
    expected = {
        kind: f"sha256:{InProcess(build_spec(kind, zoo, **changes[kind]), tmp_path / kind).run()['digest']}"
        for kind in KINDS
    }
    with service(tmp_path / "home", "--workers", "1", "--root", str(zoo), environment=QUICK_RECOVERY) as running:
        with running.client as client:
            wrong = build_request("stack", zoo, config={"method": "concatenate", "models": [str(zoo / "no")]})
            told = client.post("/v1/preflight", json=wrong).json()
            fine = client.post("/v1/preflight", json=build_request("merge", zoo, **changes["merge"])).json()
            refused = client.post("/v1/jobs", json=wrong)
        assert not told["ok"]
        assert [problem["pointer"] for problem in told["problems"]] == ["/config/models/0"]
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["pointer"] == "/config/models/0"
        assert fine["ok"], fine["problems"]
        assert [stage["stage"] for stage in fine["stages"]] == ["resolve", "build", "report"]
        assert {model["name"] for model in fine["models"]} == {"base-2", "ant", "bee"}

        requests = {kind: build_request(kind, zoo, **changes[kind]) for kind in KINDS}
        jobs = {kind: submit(running, requests[kind], kind) for kind in KINDS}
        assert jobs == {kind: submit(running, requests[kind], kind) for kind in KINDS}
        wait_for_stage(running, jobs["merge"], "build")
        kill(running.pids["worker-1"])
        ended = {kind: wait(running, job_id) for kind, job_id in jobs.items()}
        assert {kind: job["status"] for kind, job in ended.items()} == dict.fromkeys(KINDS, "succeeded"), ended
        assert {kind: job["result"]["digest"] for kind, job in ended.items()} == expected
        assert ended["stack"]["result"]["gain_over_best_single"] is None
        assert ended["merge"]["chain"] == ["resolve", "build", "report"]
        assert ended["merge"]["progress"]["percent"] == 100
        with running.client as client:
            report = get(client, f"/v1/jobs/{jobs['merge']}/report")
            units = get(client, f"/v1/jobs/{jobs['merge']}/units")["data"]
            details = [get(client, f"/v1/jobs/{jobs['merge']}/units/{unit['id']}") for unit in units]
        assert report["best_single"] == ended["merge"]["result"]["best_single"]
        assert all(detail["mergekit"] is None for detail in details)
        with Client(running.url, running.api_key) as glue:
            pull(glue, glue.artifact(ended["stack"]["result"]["artifact_id"]), tmp_path / "pulled", Console(quiet=True))
    assert (tmp_path / "pulled" / "README.md").is_file()
    layers = {name.split(".")[2] for name in load_file(tmp_path / "pulled" / "model.safetensors") if ".layers." in name}
    assert layers == {"0", "1", "2", "3"}
