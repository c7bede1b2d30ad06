"""The rendered containers as processes: their commands and environments, on loopback, with real servers.

One deployment, from the migration hook to `helm test`; scraped before and after, probed, drained and stopped.
"""

import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from examples.small_zoo.build import build_zoo
from glue.cli.files import job_request, zoo_request
from glue.evaluation.sandbox_client import run_remotely
from glue.records.database import Database
from glue.sandbox.programs import Limits
from glue.specs.errors import EvaluationError
from glue.specs.plan import WorkerClass
from glue.telemetry.traces import job_ids
from tests.support.chart_objects import components, container, find
from tests.support.chart_tools import CHART, HELM_WHEELS, ROOT, render
from tests.support.database import temporary_database
from tests.support.deployed import Container, can_isolate
from tests.support.fake_pipeline import RUNNER
from tests.support.promql import Scrapes, metric_names
from tests.support.service import Jobs
from workers.embedded.process import wait_for
from workers.embedded.valkey import ValkeyServer

pytestmark = pytest.mark.skipif(not can_isolate(), reason="mount namespaces need root")

NEWEST_HELM = list(HELM_WHEELS)[-1]
PODS = ("api", "maintenance", "worker-cpu", "worker-hub")
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
# What only a GPU, or object storage, has something to say about.
ELSEWHERE = ("glue_gpu_memory", "glue_artifact_transfer")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Collector(BaseHTTPRequestHandler):
    """An OpenTelemetry collector that keeps what it gets."""

    spans: list[Span] = []

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in request.resource_spans:
            self.spans.extend(span for scope in resource.scope_spans for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def starts(container: Container) -> bool:
    """Whether it is up within a minute, as its own probe says."""
    return wait_for(lambda: container.probe("startupProbe"), 60)


@dataclass
class Deployment:
    """The release's containers by component, its database, its ports."""

    containers: dict[str, Container]
    objects: tuple[dict[str, Any], ...]
    database_url: str
    ports: dict[str, int]
    api_port: int

    @property
    def url(self) -> str:
        """Of the API."""
        return f"http://127.0.0.1:{self.api_port}"

    def scrape(self, into: Scrapes) -> None:
        """One scrape of every pod."""
        for name, port in self.ports.items():
            into.add(name, httpx.get(f"http://127.0.0.1:{port}/metrics").text, time.monotonic())


def rendered(ports: dict[str, int], api_port: int, collector: int) -> dict[str, tuple[dict[str, Any], ...]]:
    """The manifests, once for each pod with a metrics port of its own: here all pods share one address."""
    options = (
        *("--set", "workers.cpu.classes={cpu,gpu}", "--set", "workers.cpu.drainSeconds=1"),
        *("--set", "workers.cpu.scaling=deployment", "--set", "models.mountPath=/var/lib/models"),
        *("--set", "lease.seconds=5,lease.reapSeconds=1,lease.pollSeconds=1,lease.republishSeconds=1"),
        *("--set", f"api.port={api_port},api.preStopSeconds=2"),
        *("--set", f"observability.otlpEndpoint=http://127.0.0.1:{collector}"),
    )
    return {
        name: render(NEWEST_HELM, *options, "--set", f"observability.metricsPort={port}")
        for name, port in ports.items()
    }


@pytest.fixture(scope="module")
def collector() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def deployment(postgres_url: str, collector: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Everything that the chart starts, in the chart's order: the hook, every pod's init container, the pods."""
    root = tmp_path_factory.mktemp("cluster")
    shared = {name: root / name for name in ("home", "models")}
    ports, api_port = {name: free_port() for name in PODS}, free_port()
    manifests = rendered(ports, api_port, collector)
    valkey = ValkeyServer(root / "valkey")
    valkey.start()
    with temporary_database(postgres_url) as database_url:
        secrets = {
            ("model-glue-database", "DATABASE_URL"): database_url,
            ("model-glue-redis", "REDIS_URL"): valkey.url,
        }

        def made(component: str, name: str, objects: tuple[dict[str, Any], ...]) -> Container:
            pod = components(objects)[component]
            own = {volume["name"]: root / component / volume["name"] for volume in pod["spec"]["volumes"]}
            volumes = {**own, **({} if component == "maintenance" else shared)}
            for folder in volumes.values():
                folder.mkdir(parents=True, exist_ok=True)
            return Container(container(pod, name), pod, secrets, volumes, root / f"{component}-{name}.log")

        first = manifests["api"]
        migration = made("migrate", "migrate", first)
        assert migration.run() == 0, migration.said()
        running = {}
        try:
            for component in PODS:
                schema = made(component, "schema", manifests[component])
                assert schema.run() == 0, schema.said()
                name = "worker" if component.startswith("worker-") else component
                running[component] = made(component, name, manifests[component]).start()
            running["test"] = made("test", "job", first)
            for component in PODS:
                assert wait_for(lambda each=component: running[each].probe("startupProbe"), 60), running[
                    component
                ].said()
            yield Deployment(running, first, database_url, ports, api_port)
        finally:
            for each in running.values():
                each.kill()
            valkey.stop()


@pytest.fixture(scope="module")
def scrapes(deployment: Deployment) -> Scrapes:
    """Scrapes from before the job to after it, while `helm test` runs it."""
    found, job = Scrapes(), deployment.containers["test"]
    job.manifest["args"] = [word.replace("http://glue-model-glue-api", deployment.url) for word in job.manifest["args"]]
    deployment.scrape(found)
    job.start()
    assert job.process is not None
    deadline = time.monotonic() + 240
    while job.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
        deployment.scrape(found)
    assert job.process.poll() == 0, job.said() + deployment.containers["worker-cpu"].said()
    deployment.scrape(found)
    return found


def test_helm_test_runs_the_job(scrapes: Scrapes, deployment: Deployment) -> None:
    said = deployment.containers["test"].said()
    assert '"status": "succeeded"' in said
    assert '"digest": "sha256:' in said


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_demos_job_runs_through_the_same_containers(scrapes: Scrapes, deployment: Deployment) -> None:
    api = deployment.containers["api"]
    zoo = shutil.copytree(build_zoo(ROOT / "build" / "demo" / "zoo"), api.volumes["models"] / "demo")
    asked = json.dumps([zoo_request(zoo / "zoo.yml"), job_request(zoo / "job.yml")])
    # The files' own folder, as the containers see it.
    zoo_asked, job_asked = json.loads(asked.replace(str(zoo), "/var/lib/models/demo"))
    issued = api.execute(["python", "-m", "glue.records.issue_key", "--owner", "demo", "--name", "demo"])
    key = re.search(r"mgl_\w+", issued.stdout.decode())
    assert key is not None, issued.stderr
    with httpx.Client(base_url=deployment.url, headers={"Authorization": f"Bearer {key[0]}"}, timeout=30) as client:
        client.post("/v1/zoos", json=zoo_asked).raise_for_status()
        job_id = client.post("/v1/jobs", json=job_asked).raise_for_status().json()["id"]
        ended = ("succeeded", "failed", "cancelled")
        assert wait_for(lambda: client.get(f"/v1/jobs/{job_id}").json()["status"] in ended, 600)
        job = client.get(f"/v1/jobs/{job_id}").json()
        assert job["status"] == "succeeded", (job["error"], deployment.containers["worker-cpu"].said()[-3000:])
        report = client.get(f"/v1/jobs/{job_id}/report").json()
    assert report["artifact"] == report["recommended"] == "mixture"
    assert report["warnings"] == []


def test_every_probe_is_content(scrapes: Scrapes, deployment: Deployment) -> None:
    for component in PODS:
        probes = deployment.containers[component].manifest.keys() & {"livenessProbe", "readinessProbe", "startupProbe"}
        assert probes
        for probe in probes:
            assert deployment.containers[component].probe(probe), (component, probe)


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: str(panel["title"]))
def test_every_query_of_the_dashboard_returns_data(panel: dict[str, Any], scrapes: Scrapes) -> None:
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "5m")
        if any(name in expression for name in ELSEWHERE):
            continue
        assert scrapes.query(expression), expression


def test_the_numbers_are_those_of_the_job(scrapes: Scrapes) -> None:
    def total(expression: str) -> float:
        return sum(scrapes.query(expression).values())

    assert total("max by (worker_class, state) (glue_queue_units)") == 0
    assert scrapes.query("max by (worker_class) (glue_workers)") == {
        frozenset({("worker_class", "cpu")}): 1,
        frozenset({("worker_class", "gpu")}): 1,
        frozenset({("worker_class", "hub")}): 1,
    }
    # Two members and their merge, on the proxy suite, at least.
    assert total("sum(glue_scores_total)") >= 3
    assert total("sum(glue_merged_bytes_total)") > 10_000
    assert total('sum(glue_unit_seconds_count{ending="failed"})') == 0
    assert total('sum(glue_heartbeats_total{result="missed"})') == 0
    assert total('sum(glue_api_request_seconds_count{route="/v1/jobs",status="201"})') == 1


def test_every_alert_asks_for_metrics_that_exist(scrapes: Scrapes) -> None:
    groups = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
    known, runbooks = scrapes.names, (ROOT / "docs" / "operations.md").read_text()
    for rule in (rule for group in groups for rule in group["rules"]):
        assert metric_names(rule["expr"]), rule
        assert metric_names(rule["expr"]) <= known, rule
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert f"\n### {rule['alert']}\n" in runbooks


def test_log_lines_name_job_unit_and_request(scrapes: Scrapes, deployment: Deployment) -> None:
    worker = [json.loads(line) for line in deployment.containers["worker-cpu"].said().splitlines() if line[:1] == "{"]
    ended = [line for line in worker if " succeeded after " in line["message"]]
    assert ended
    assert all(line["job_id"].startswith("job_") and line["unit_id"].startswith("unit_") for line in ended)
    api = [json.loads(line) for line in deployment.containers["api"].said().splitlines()]
    submitted = [line for line in api if line["message"].startswith("POST /v1/jobs 201")]
    assert submitted[0]["request_id"].startswith("req_")


def test_a_trace_leads_from_the_submission_to_every_unit(scrapes: Scrapes, deployment: Deployment) -> None:
    job_id = re.search(r"job_\w+", deployment.containers["test"].said())
    assert job_id is not None
    trace, root = (number.to_bytes(size, "big") for number, size in zip(job_ids(job_id[0]), (16, 8), strict=True))

    def spans() -> dict[str, Span]:
        return {span.name: span for span in Collector.spans if span.trace_id == trace}

    # Exporters send every five seconds.
    assert wait_for(lambda: {"job.submit", "report.write"} <= spans().keys(), 20), spans().keys()
    assert spans()["job.submit"].span_id == root
    assert {"merge.build", "score.candidate", "advance"} <= spans().keys()
    assert all(span.parent_span_id == root for name, span in spans().items() if name != "job.submit")


def test_the_sandboxes_pod_runs_programs_for_workers_that_show_its_token(tmp_path: Path) -> None:
    manifests = render(NEWEST_HELM, "--set", f"sandbox.enabled=true,sandbox.port={free_port()}")
    pod, worker = components(manifests)["sandbox"], container(components(manifests)["worker-cpu"], "worker")
    given = {each["name"]: each for each in worker["env"]}
    named = given["GLUE_SANDBOX_TOKEN"]["valueFrom"]["secretKeyRef"]
    (tmp_path / "tmp").mkdir()
    secrets, token = {(named["name"], named["key"]): "the worker shows it"}, "the worker shows it"
    url = given["GLUE_SANDBOX_URL"]["value"].replace("glue-model-glue-sandbox", "127.0.0.1")
    sandbox = Container(container(pod, "sandbox"), pod, secrets, {"tmp": tmp_path / "tmp"}, tmp_path / "log").start()
    try:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert wait_for(lambda kind=probe: sandbox.probe(kind), 30), sandbox.said()
        assert run_remotely(url, token, "python", "open('note', 'w').write('x')", Limits()).passed
        assert not run_remotely(url, token, "python", "import socket; socket.socket()", Limits()).passed
        with pytest.raises(EvaluationError, match="GLUE_SANDBOX_TOKEN"):
            run_remotely(url, "a stranger guesses", "python", "", Limits())
        assert not list((tmp_path / "tmp").glob("run*")), "nothing of a program stays"
    finally:
        sandbox.kill()


def scale_query(deployment: Deployment, url: str) -> int:
    """What KEDA reads."""
    scaled = find(deployment.objects, "ScaledObject", "glue-model-glue-worker-cpu")
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
        row = connection.execute(scaled["spec"]["triggers"][0]["metadata"]["query"]).fetchone()
        assert row is not None
        return int(row[0])


def test_the_scaler_counts_what_waits_and_what_runs_through_a_drain(scrapes: Scrapes, deployment: Deployment) -> None:
    url, worker = deployment.database_url, deployment.containers["worker-cpu"]
    assert worker.stop() == 0
    jobs = Jobs(Database(url))
    assert scale_query(deployment, url) == 0
    deeds = [{"do": "sleep", "seconds": 60}] * 3
    job_id = jobs.submit(*deeds, worker_class=WorkerClass.CPU)
    jobs.submit({"do": "sleep", "seconds": 60}, worker_class=WorkerClass.HUB)
    assert scale_query(deployment, url) == 3, "three wait, the fourth is another pool's"
    worker.extra = {"GLUE_ENGINE_RUNNER": RUNNER}
    worker.start()
    jobs.wait_for(lambda: "leased" in jobs.states(job_id))
    assert scale_query(deployment, url) == 3, "one runs, two wait"
    assert worker.stop() == 0, "it drains within its grace period"
    assert jobs.states(job_id) == ["ready"] * 3
    assert scale_query(deployment, url) == 3, "the drained unit waits again"
    assert jobs.attempts(job_id) == ["released"]
    jobs.database.dispose()


def test_the_api_answers_until_it_is_told_to_end(scrapes: Scrapes, deployment: Deployment) -> None:
    api, failures, stopped = deployment.containers["api"], [], threading.Event()

    def ask() -> None:
        # As long as preStop lasts the pod answers; what comes later is another pod's.
        ends = time.monotonic() + 1.5
        while time.monotonic() < ends:
            if not httpx.get(f"{deployment.url}/healthz").is_success:
                failures.append("an answer")
        stopped.set()

    asking = threading.Thread(target=ask)
    asking.start()
    # uvicorn ends gracefully, then by the signal that it got.
    assert api.stop() == -signal.SIGTERM
    asking.join()
    assert stopped.is_set()
    assert not failures


def test_a_hanging_thread_is_seen(scrapes: Scrapes, deployment: Deployment) -> None:
    maintenance = deployment.containers["maintenance"]
    assert maintenance.probe("livenessProbe")
    (pulse,) = (maintenance.volumes["tmp"] / "pulse").glob("reaper")
    # A file that nobody touches grows old; here its folder gets one.
    old = pulse.with_name("stuck")
    old.touch()
    os.utime(old, (time.time() - 200,) * 2)
    assert not maintenance.probe("livenessProbe")
    old.unlink()
    assert maintenance.probe("livenessProbe")
