"""Rendered Kubernetes objects, found by kind, name and component. Knows nothing of helm."""

from collections.abc import Sequence
from typing import Any

Object = dict[str, Any]


def find_all(objects: Sequence[Object], kind: str) -> list[Object]:
    """All of this kind."""
    return [each for each in objects if each["kind"] == kind]


def find(objects: Sequence[Object], kind: str, name: str | None = None) -> Object:
    """The only one of this kind, or the one of that name."""
    (found,) = (each for each in find_all(objects, kind) if name in (None, each["metadata"]["name"]))
    return found


def pod_of(workload: Object) -> Object:
    """The pod that a workload makes, with its claims' names under `claims`."""
    spec = workload["spec"]
    if workload["kind"] == "Pod":
        return {**workload, "claims": set()}
    template = spec["jobTargetRef"]["template"] if workload["kind"] == "ScaledJob" else spec["template"]
    return {**template, "claims": {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}}


def pods(objects: Sequence[Object]) -> list[Object]:
    """The pods of all workloads."""
    kinds = ("Pod", "Deployment", "StatefulSet", "Job", "ScaledJob")
    return [pod_of(each) for each in objects if each["kind"] in kinds]


def components(objects: Sequence[Object]) -> dict[str, Object]:
    """The pods by component."""
    return {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for pod in pods(objects)}


def containers(pod: Object) -> list[Object]:
    """All containers of a pod, those that come first too."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def container(pod: Object, name: str) -> Object:
    """The container of that name."""
    (found,) = (each for each in containers(pod) if each["name"] == name)
    return found


def environment(container: Object) -> dict[str, str]:
    """The variables of a container; of one from a secret or a field only that it is there."""
    return {each["name"]: each.get("value", "") for each in container.get("env", [])}
