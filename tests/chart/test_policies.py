"""Who may speak to whom, as the rendered NetworkPolicies say."""

from typing import Any

import pytest

from tests.support.chart_cases import TOGGLES
from tests.support.chart_objects import components, container, environment, find_all
from tests.support.chart_tools import HELM_WHEELS, render
from tests.support.pod_network import Permission, can_join, pod_network
from tests.support.policies import allows, may_enter, may_leave

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

    def permissions(self, name: str, addresses: dict[str, str], ports: tuple[int, ...]) -> list[Permission]:
        """What this pod may send, each policy read for this pod alone."""
        found = []
        for other, address in addresses.items():
            for port in ports:
                if may_leave(self._policies, self._pod(name), self._pod(_peer(other)), port):
                    found.append(Permission(address, port))
                if other != "outside" and may_enter(self._policies, self._pod(name), self._pod(other), port):
                    found.append(Permission(address, port, answer=True))
        return found

    def _pod(self, name: str) -> Any:
        return STRANGER if name == "stranger" else self.labels.get(name, name)


@pytest.fixture(scope="module")
def release() -> Release:
    return Release("sandbox", "development")


def test_the_sandbox_reaches_nothing(release: Release) -> None:
    for target in (*release.labels, INSIDE, OUTSIDE):
        for port in (POSTGRES, REDIS, API, METRICS, SANDBOX, HTTPS, DNS):
            assert not release.allows("sandbox", target, port), (target, port)


def test_only_workers_that_score_reach_the_sandbox(release: Release) -> None:
    reach = {name for name in (*release.labels, "stranger") if release.allows(name, "sandbox", SANDBOX)}
    assert reach == {"worker-cpu"}


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


def test_the_sandbox_holds_no_secret_but_its_own_and_no_volume() -> None:
    """What it holds a program that breaks out would have. Its own token opens nothing but the sandbox itself."""
    pod = components(render(NEWEST_HELM, *TOGGLES["sandbox"]))["sandbox"]
    (sandbox,) = pod["spec"]["containers"]
    assert environment(sandbox).keys() == {"GLUE_SANDBOX_TOKEN", "GLUE_SANDBOX_PORT", "GLUE_SANDBOX_SLOTS"}
    assert "envFrom" not in sandbox
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["tmp"]
    assert "serviceAccountName" not in pod["spec"]


def test_workers_that_score_are_told_where_programs_run() -> None:
    pods = components(render(NEWEST_HELM, *TOGGLES["sandbox"]))
    given = environment(container(pods["worker-cpu"], "worker"))
    assert given["GLUE_SANDBOX_URL"] == f"http://glue-model-glue-sandbox:{SANDBOX}"
    assert "GLUE_SANDBOX_TOKEN" in given
    assert not any("SANDBOX" in name for name in environment(container(pods["worker-hub"], "worker")))
    without = components(render(NEWEST_HELM))
    assert not any("SANDBOX" in name for name in environment(container(without["worker-cpu"], "worker")))


@pytest.mark.skipif(not can_join(), reason="network namespaces need root and iproute2")
def test_packets_go_where_the_policies_let_them(release: Release) -> None:
    """Pods as network namespaces whose rules are the policies': every connection is tried, at once, for real."""
    names = [*release.labels, "stranger"]
    addresses = {name: f"10.99.0.{number}" for number, name in enumerate(names, start=1)} | {"outside": OUTSIDE}
    ports = (POSTGRES, REDIS, API, METRICS, SANDBOX, HTTPS)
    targets = [(address, port) for address in addresses.values() for port in ports]
    with pod_network(addresses, ports) as network:
        before = network.opened("sandbox", targets)
        for name in names:
            network.permit(name, release.permissions(name, addresses, ports))
        opened = {name: network.opened(name, targets) for name in names}
    assert before == set(targets), "without rules everybody reaches everybody"
    assert opened["sandbox"] == {(addresses["sandbox"], port) for port in ports}, "itself and nothing else"
    for source in names:
        # A pod always reaches itself.
        others = {name: address for name, address in addresses.items() if name != source}
        pairs = ((name, address, port) for name, address in others.items() for port in ports)
        wanted = {(address, port) for name, address, port in pairs if release.allows(source, _peer(name), port)}
        assert {target for target in opened[source] if target[0] != addresses[source]} == wanted, source


def _peer(name: str) -> str:
    return OUTSIDE if name == "outside" else name
