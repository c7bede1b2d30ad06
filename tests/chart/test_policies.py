"""Who may speak to whom, as the rendered NetworkPolicies say."""

from typing import Any

import pytest

from tests.support.chart_cases import TOGGLES
from tests.support.chart_objects import components, find_all
from tests.support.chart_tools import HELM_WHEELS, render
from tests.support.policies import allows

NEWEST_HELM = list(HELM_WHEELS)[-1]
POSTGRES, REDIS, API, METRICS, SANDBOX, HTTPS, DNS = 5432, 6379, 8321, 9464, 8800, 443, 53
INSIDE, OUTSIDE = "10.1.2.3", "93.184.215.14"
STRANGER = {"app": "somebody-else"}


class Release:
    def __init__(self, *toggles: str) -> None:
        objects = render(NEWEST_HELM, *(option for toggle in toggles for option in TOGGLES[toggle]))
        self._policies = find_all(objects, "NetworkPolicy")
        self.labels = {name: pod["metadata"]["labels"] for name, pod in components(objects).items()}

    def allows(self, source: str, target: str, port: int) -> bool:
        """Components by name, addresses as they are, `stranger` for a pod of somebody else."""
        return allows(self._policies, self._pod(source), self._pod(target), port)

    def _pod(self, name: str) -> Any:
        return STRANGER if name == "stranger" else self.labels.get(name, name)


@pytest.fixture(scope="module")
def release() -> Release:
    return Release("sandbox", "development")


def test_the_sandbox_reaches_nothing(release: Release) -> None:
    for target in (*release.labels, INSIDE, OUTSIDE):
        for port in (POSTGRES, REDIS, API, METRICS, SANDBOX, HTTPS, DNS):
            assert not release.allows("sandbox", target, port), (target, port)


def test_only_workers_reach_the_sandbox(release: Release) -> None:
    reach = {name for name in (*release.labels, "stranger") if release.allows(name, "sandbox", SANDBOX)}
    assert reach == {"worker-cpu", "worker-hub"}


def test_everybody_of_ours_reaches_the_servers_and_nobody_else_does(release: Release) -> None:
    for target, port in (("postgres", POSTGRES), ("redis", REDIS)):
        reach = {name for name in (*release.labels, "stranger") if release.allows(name, target, port)}
        assert reach == {"api", "maintenance", "worker-cpu", "worker-hub", "migrate", "test"}


def test_only_the_hubs_way_leads_to_the_internet(release: Release) -> None:
    reach = {name for name in release.labels if release.allows(name, OUTSIDE, HTTPS)}
    assert reach == {"api", "worker-hub"}
    assert not any(release.allows(name, INSIDE, HTTPS) for name in release.labels)


def test_the_api_is_open_and_metrics_are_for_pods(release: Release) -> None:
    assert release.allows("stranger", "api", API)
    assert release.allows("test", "api", API)
    assert not release.allows("worker-cpu", "api", API)
    assert release.allows("stranger", "worker-cpu", METRICS)
    assert not release.allows("stranger", "worker-cpu", API)


def test_the_sandbox_holds_no_secret_and_no_volume() -> None:
    pod = components(render(NEWEST_HELM, *TOGGLES["sandbox"]))["sandbox"]
    (sandbox,) = pod["spec"]["containers"]
    assert "env" not in sandbox
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["tmp"]
    assert "serviceAccountName" not in pod["spec"]
