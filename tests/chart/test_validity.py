"""What the chart renders, against the schemas of Kubernetes, KEDA and the Prometheus operator, and checkov's rules."""

import json
import subprocess
import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.chart_cases import CASES, FILES, TOGGLES
from tests.support.chart_tools import HELM_WHEELS, MONITORING, checkov, render, validate_custom

CUSTOM = ("keda.sh/v1alpha1", MONITORING)
KUBERNETES = ("1.29", "1.33", "1.37")
SKIPS = yaml.safe_load((Path(__file__).parent / "checkov_skips.yaml").read_text())
NEWEST_HELM = list(HELM_WHEELS)[-1]
WITH_MONITORS = ("--api-versions", MONITORING)

# These cannot stand beside each other: both say what the same thing is.
APART = [
    {"monitors", "no monitors"},
    {"gpu fixed", "gpu deployment"},
    {"gpu fixed", "gpu job"},
    {"gpu deployment", "gpu job"},
]
PAIRS = [pair for pair in combinations(TOGGLES, 2) if set(pair) not in APART]


def split(rendered: tuple[dict[str, Any], ...]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Kubernetes' own objects, and the others."""
    own = [each for each in rendered if each["apiVersion"] not in CUSTOM]
    return own, [each for each in rendered if each["apiVersion"] in CUSTOM]


def check_own(objects: list[dict[str, Any]], release: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in objects:
            kubernetes_validate.validate(each, release, strict=True)


@pytest.mark.parametrize("release", KUBERNETES)
@pytest.mark.parametrize("name", FILES)
def test_values_files_are_valid_in_every_supported_release(name: str, release: str) -> None:
    own, _ = split(render(NEWEST_HELM, *FILES[name], *WITH_MONITORS, "--kube-version", f"{release}.0"))
    check_own(own, release)


@pytest.mark.parametrize("name", TOGGLES)
def test_toggles_are_valid(name: str) -> None:
    check_own(split(render(NEWEST_HELM, *TOGGLES[name], *WITH_MONITORS))[0], KUBERNETES[-1])


def test_pairs_of_toggles_are_valid() -> None:
    for first, second in PAIRS[::16]:
        check_own(split(render(NEWEST_HELM, *TOGGLES[first], *TOGGLES[second]))[0], KUBERNETES[-1])


@pytest.mark.long
def test_every_pair_of_toggles_is_valid() -> None:
    for first, second in PAIRS:
        own, custom = split(render(NEWEST_HELM, *TOGGLES[first], *TOGGLES[second]))
        check_own(own, KUBERNETES[-1])
        assert validate_custom(custom) == []


def test_kinds_of_others_are_valid() -> None:
    custom = [each for options in CASES.values() for each in split(render(NEWEST_HELM, *options, *WITH_MONITORS))[1]]
    kinds = {"ScaledObject", "ScaledJob", "TriggerAuthentication", "ServiceMonitor", "PrometheusRule"}
    assert {each["kind"] for each in custom} == kinds
    assert validate_custom(custom) == []


def test_the_validators_see_mistakes() -> None:
    own, custom = split(render(NEWEST_HELM, *FILES["small-cluster"], *WITH_MONITORS))
    deployment = next(each for each in own if each["kind"] == "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        check_own([{**deployment, "spec": {**deployment["spec"], "revisionHistoryLimit": "five"}}], KUBERNETES[-1])
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        check_own([{**deployment, "kind": "Deploymint"}], KUBERNETES[-1])
    scaled = next(each for each in custom if each["kind"] == "ScaledObject")
    assert validate_custom([{**scaled, "spec": {**scaled["spec"], "minReplicaCount": "0"}}])


def test_checkov_finds_nothing_without_a_reason(tmp_path: Path) -> None:
    for name, options in {**FILES, "sandbox": TOGGLES["sandbox"]}.items():
        rendered = render(NEWEST_HELM, *options)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(rendered))
    options = ["--framework", "kubernetes", "--skip-download", "--quiet", "--compact", "--output", "json"]
    done = subprocess.run(
        [*checkov(), "--directory", str(tmp_path), *options], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)
    assert found["summary"]["passed"] > 1000
    assert found["summary"]["parsing_errors"] == 0
    failures = found["results"]["failed_checks"]
    failed = {(check["check_id"], check["resource"], check["check_name"]) for check in failures}
    unexplained = {each for each in failed if each[0] not in SKIPS}
    assert not unexplained, sorted(unexplained)
    assert SKIPS.keys() == {check_id for check_id, _, _ in failed}, "a reason that explains nothing"


def test_every_skip_has_its_reason() -> None:
    assert all(len(reason) > 30 for reason in SKIPS.values())
