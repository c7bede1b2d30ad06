"""The chart as helm renders it, 3 and 4, for every values file and toggle: what the objects say."""

import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from tests.support.chart_cases import CASES, FILES, TOGGLES
from tests.support.chart_objects import components, container, containers, environment, find, find_all, pod_of, pods
from tests.support.chart_tools import CHART, HELM_WHEELS, MONITORING, helm, render

LATEST = max(HELM_WHEELS, key=Version)


SECRET_WORDS = ("PASSWORD", "TOKEN", "SECRET", "DATABASE_URL", "KEY")


def objects(*options: str, version: str = LATEST) -> tuple[dict[str, Any], ...]:
    return render(version, *options)


@pytest.mark.parametrize("name", CASES)
def test_both_helms_render_the_same(name: str) -> None:
    options = CASES[name]
    first, *others = (render(version, *options) for version in HELM_WHEELS)
    assert len(first) > 10
    assert all(other == first for other in others)


@pytest.mark.parametrize("version", HELM_WHEELS)
@pytest.mark.parametrize("name", FILES)
def test_lint_has_nothing_to_say(version: str, name: str) -> None:
    done = subprocess.run(
        [helm(version), "lint", "--strict", CHART, *FILES[name]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", CASES)
def test_every_pod_is_restricted(name: str) -> None:
    rendered = objects(*CASES[name])
    for pod in pods(rendered):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] >= 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any("hostPath" in volume for volume in spec["volumes"])
        for each in containers(pod):
            security = each["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= each["resources"]["requests"].keys()
            assert "memory" in each["resources"]["limits"]
            assert {"name": "tmp", "mountPath": "/tmp"} in each["volumeMounts"]


@pytest.mark.parametrize("name", CASES)
def test_secrets_are_only_named(name: str) -> None:
    rendered = objects(*CASES[name])
    assert not find_all(rendered, "Secret")
    for pod in pods(rendered):
        for each in containers(pod):
            for variable in each.get("env", []):
                secret = any(word in variable["name"] for word in SECRET_WORDS)
                # TOKENIZERS_PARALLELISM is a switch.
                if secret and not variable["name"].startswith("TOKENIZERS_"):
                    assert "secretKeyRef" in variable["valueFrom"], variable


@pytest.mark.parametrize("name", CASES)
def test_what_is_mounted_exists(name: str) -> None:
    for pod in pods(objects(*CASES[name])):
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]} | pod["claims"]
        for each in containers(pod):
            assert {mount["name"] for mount in each["volumeMounts"]} <= volumes


def test_only_what_speaks_to_the_hub_can_open_tokens() -> None:
    rendered = objects(*TOGGLES["hub secret"])
    holders = {
        component
        for component, pod in components(rendered).items()
        for each in containers(pod)
        if "GLUE_SECRET_KEY" in environment(each)
    }
    assert holders == {"api", "worker-hub"}
    for component in holders:
        assert environment(components(rendered)[component]["spec"]["containers"][0])["HF_ENDPOINT"].startswith("https:")


def test_scaling_counts_what_is_ready_and_what_runs() -> None:
    scaled = find(objects(*TOGGLES["gpu deployment"]), "ScaledObject", "glue-model-glue-worker-gpu")
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metadata"]["query"] == (
        "SELECT count(*) FROM unit JOIN job ON job.id = unit.job_id\n"
        "WHERE unit.worker_class IN ('gpu')\n"
        "AND unit.gpu_memory_bytes <= 23622320128\n"
        "AND (unit.state = 'leased'\n"
        "  OR unit.state = 'ready' AND unit.not_before <= now() + interval '1 minute'"
        " AND job.status IN ('queued', 'running'))"
    )
    assert trigger["metadata"]["targetQueryValue"] == "1"
    assert scaled["spec"]["minReplicaCount"] == 0
    authentication = find(objects(*TOGGLES["gpu deployment"]), "TriggerAuthentication")
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    assert authentication["spec"]["secretTargetRef"][0]["parameter"] == "connection"
    deployment = find(objects(*TOGGLES["gpu deployment"]), "Deployment", "glue-model-glue-worker-gpu")
    # The autoscaler owns the number.
    assert "replicas" not in deployment["spec"]


def test_a_scaled_job_ends_when_there_is_no_work() -> None:
    scaled = find(objects(*TOGGLES["gpu job"]), "ScaledJob")
    template = scaled["spec"]["jobTargetRef"]["template"]
    (worker,) = template["spec"]["containers"]
    assert template["spec"]["restartPolicy"] == "Never"
    assert environment(worker)["GLUE_IDLE_EXIT_SECONDS"] == "60"
    assert environment(worker)["REDIS_URL"] == ""


def test_gpu_pods_get_their_device_their_node_and_shared_memory() -> None:
    pod = components(objects(*FILES["small-cluster"]))["worker-gpu"]
    worker = container(pod, "worker")
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert worker["image"].startswith("model-glue/worker-gpu:")
    assert environment(worker)["GLUE_DEVICE"] == "cuda"
    assert environment(worker)["GLUE_GPU_MEMORY_BYTES"] == "42949672960"
    assert pod["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["spec"]["tolerations"]
    shared = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "shm")
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    deployment = find(objects(*FILES["small-cluster"]), "Deployment", "glue-model-glue-worker-gpu")
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_pools_of_different_devices_share_no_unit() -> None:
    rendered = objects(*FILES["large-cluster"])
    queries = {
        each["metadata"]["name"]: each["spec"]["triggers"][0]["metadata"]["query"]
        for each in find_all(rendered, "ScaledJob")
    }
    assert "gpu_memory_bytes <= 23622320128" in queries["glue-model-glue-worker-gpu-24g"]
    assert "gpu_memory_bytes > 23622320128" in queries["glue-model-glue-worker-gpu-80g"]


@pytest.mark.parametrize("name", FILES)
def test_a_worker_has_time_for_its_last_checkpoint(name: str) -> None:
    for component, pod in components(objects(*FILES[name])).items():
        if component.startswith("worker-"):
            given = environment(container(pod, "worker"))
            needed = float(given["GLUE_DRAIN_SECONDS"]) + float(given["GLUE_LEASE_SECONDS"])
            assert pod["spec"]["terminationGracePeriodSeconds"] > needed
            assert pod["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


def test_the_api_stops_within_its_grace_period() -> None:
    pod = components(objects())["api"]
    api = container(pod, "api")
    (graceful,) = (int(word.partition("=")[2]) for word in api["args"] if "graceful" in word)
    pre_stop = int(api["lifecycle"]["preStop"]["exec"]["command"][1])
    assert graceful + pre_stop < pod["spec"]["terminationGracePeriodSeconds"]


def test_migrations_come_before_the_release_or_with_its_pods() -> None:
    job = find(objects(), "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    # The release's own account does not exist yet when the hook runs.
    assert "serviceAccountName" not in job["spec"]["template"]["spec"]
    bundled = find(objects(*TOGGLES["development"]), "Job")
    assert bundled["metadata"]["annotations"]["helm.sh/hook"] == "post-install,pre-upgrade"
    with_pods = objects(*TOGGLES["init migrations"])
    assert not find_all(with_pods, "Job")
    for component, waits in ((objects(), True), (with_pods, False)):
        (schema,) = components(component)["api"]["spec"]["initContainers"]
        assert schema["command"] == ["python", "-m", "glue.records.migrate"]
        assert ("--wait" in schema.get("args", [])) is waits


def test_budgets_exist_for_all_that_matters() -> None:
    budgets = {each["metadata"]["name"]: each["spec"] for each in find_all(objects(), "PodDisruptionBudget")}
    assert budgets["glue-model-glue-api"]["minAvailable"] == 1
    for name in ("worker-cpu", "worker-hub", "maintenance"):
        assert budgets[f"glue-model-glue-{name}"]["maxUnavailable"] == 1


def test_external_servers_by_default_and_bundled_ones_on_request() -> None:
    assert not find_all(objects(), "StatefulSet")
    rendered = objects(*TOGGLES["development"])
    assert find(rendered, "StatefulSet", "glue-model-glue-postgres")
    given = container(components(rendered)["api"], "api")["env"]
    named = {
        variable["name"]: variable["valueFrom"]["secretKeyRef"]["name"] for variable in given if "valueFrom" in variable
    }
    assert named == {"DATABASE_URL": "model-glue-development", "REDIS_URL": "model-glue-development"}


def test_without_redis_workers_are_told_so() -> None:
    rendered = objects(*TOGGLES["no redis"])
    for component in ("api", "maintenance", "worker-cpu"):
        assert environment(components(rendered)[component]["spec"]["containers"][0])["REDIS_URL"] == ""


def test_artifacts_on_object_storage_need_no_shared_volume() -> None:
    rendered = objects(*TOGGLES["s3"])
    assert not find_all(rendered, "PersistentVolumeClaim")
    for component in ("api", "worker-cpu"):
        pod = components(rendered)[component]
        given = environment(pod["spec"]["containers"][0])
        assert given["GLUE_ARTIFACTS_URL"] == "s3://b/p"
        assert "AWS_SECRET_ACCESS_KEY" in given
        assert {"name": "home", "emptyDir": {}} in pod["spec"]["volumes"]


def test_the_api_can_keep_headers_of_the_hub_and_no_model() -> None:
    mounts = {each["name"]: each for each in container(components(objects())["api"], "api")["volumeMounts"]}
    assert "readOnly" not in mounts["home"]
    assert mounts["models"]["readOnly"] is True


def test_the_ingress_speaks_tls_only() -> None:
    ingress = find(objects(*TOGGLES["ingress"]), "Ingress")
    assert ingress["spec"]["tls"] == [{"hosts": ["model-glue.example.org"], "secretName": "model-glue-tls"}]


def test_the_api_scales_with_its_load() -> None:
    rendered = objects(*TOGGLES["autoscaling"])
    scaler = find(rendered, "HorizontalPodAutoscaler")
    assert scaler["spec"]["scaleTargetRef"]["name"] == "glue-model-glue-api"
    assert "replicas" not in find(rendered, "Deployment", "glue-model-glue-api")["spec"]


def test_monitors_only_where_the_cluster_knows_them() -> None:
    assert not find_all(objects(), "ServiceMonitor")
    rendered = objects("--api-versions", MONITORING)
    monitor = find(rendered, "ServiceMonitor")
    service = find(rendered, "Service", "glue-model-glue-metrics")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    scraped = {
        component
        for component, pod in components(rendered).items()
        if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    }
    assert scraped == {"api", "maintenance", "worker-cpu", "worker-hub"}


def test_selectors_find_their_pods() -> None:
    rendered = objects(*FILES["one-gpu-box"])
    labels = [pod["metadata"]["labels"] for pod in pods(rendered)]
    for each in [*find_all(rendered, "Deployment"), *find_all(rendered, "StatefulSet")]:
        wanted = each["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= pod_of(each)["metadata"]["labels"].items()
        assert sum(wanted.items() <= found.items() for found in labels) == 1
    for service in find_all(rendered, "Service"):
        assert any(service["spec"]["selector"].items() <= found.items() for found in labels)


def test_helm_test_submits_a_job() -> None:
    pod = find(objects(), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["containers"][0]["command"] == ["python", "-m", "examples.smoke_job"]


@pytest.mark.parametrize("version", HELM_WHEELS)
def test_notes_tell_the_next_step(version: str, tmp_path: Path) -> None:
    # Without a cluster helm renders no notes, so they are rendered as the text of an object.
    chart = shutil.copytree(CHART, tmp_path / "chart")
    notes = (chart / "templates" / "NOTES.txt").read_text()
    (chart / "templates" / "notes.yaml").write_text("kind: Notes\ntext: |\n" + textwrap.indent(notes, "  "))
    command = [helm(version), "template", "glue", chart, "--namespace", "ml", "--show-only", "templates/notes.yaml"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "kubectl -n ml exec deploy/glue-model-glue-api -c api -- python -m glue.records.issue_key" in said
    assert "helm -n ml test glue" in said


@pytest.mark.parametrize("version", HELM_WHEELS)
def test_the_chart_packs_its_files(version: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [helm(version), "package", CHART, "--destination", tmp_path], capture_output=True, text=True, check=True
    )
    assert "model-glue-0.1.0.tgz" in done.stdout
