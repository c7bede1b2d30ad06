"""The small zoo in full, trained once into `build/demo`, and the demo on it, as a newcomer runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from examples.small_zoo.build import OccupiedFolderError, build_zoo, zoo_digest
from examples.small_zoo.data import DOMAINS
from examples.small_zoo.recipe import QUICK
from glue.checkpoints.reader import Checkpoint
from glue.clustering.similarity import compare
from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import check_disjoint, load_suite
from glue.mixture.load import load_model
from glue.pipeline.models import load_tokenizer
from glue.specs.suite import SuiteSpec

PROJECT = Path(__file__).parents[2]
FOLDER = PROJECT / "build" / "demo"
OWN = {"math-a": "math", "math-b": "math", "code-a": "code", "facts-a": "facts"}
LLAMAS = (*OWN, "foreign")
PAPERS_HEADLINE = 5.61

# Training takes minutes, and whoever asks for the zoo first waits for it.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def zoo() -> Path:
    return build_zoo(FOLDER / "zoo")


@pytest.fixture(scope="module")
def accuracy(zoo: Path) -> dict[str, dict[str, float]]:
    """Report accuracy of every model in each domain."""
    tasks = [{"task": f"small_{domain}_report"} for domain in DOMAINS]
    scorer = Scorer(load_suite(SuiteSpec.parse({"include_path": str(zoo / "tasks"), "tasks": tasks})), "cpu")
    tokenizer = load_tokenizer(zoo / "models" / "base")
    found = {}
    for name in ("base", *LLAMAS, "neox"):
        score = scorer.score(load_model(zoo / "models" / name, torch.float32, "cpu"), tokenizer)
        found[name] = {domain: task.mean for domain, task in zip(DOMAINS, score.tasks, strict=True)}
    return found


def similarities(zoo: Path) -> dict[tuple[str, str], float]:
    """The column cosine of every pair of members of one architecture."""
    opened = [Checkpoint.open(zoo / "models" / name) for name in LLAMAS]
    values = compare(opened, None, lambda fraction, message: None).overall
    return {(LLAMAS[i], LLAMAS[j]): values[i][j] for i in range(len(LLAMAS)) for j in range(i)}


def test_only_the_siblings_are_alike(zoo: Path) -> None:
    pairs = similarities(zoo)
    siblings = pairs.pop(("math-b", "math-a"))
    assert siblings >= 0.96
    assert max(pairs.values()) <= 0.93
    assert all(abs(value) < 0.02 for pair, value in pairs.items() if "foreign" in pair)


def test_the_base_leaves_headroom_and_each_specialist_is_ahead_in_its_own(
    accuracy: dict[str, dict[str, float]],
) -> None:
    assert max(accuracy["base"].values()) < 0.7
    for name, domain in OWN.items():
        others = [scores[domain] for other, scores in accuracy.items() if OWN.get(other) != domain]
        assert accuracy[name][domain] >= max(others) + 0.15, (name, accuracy)


def test_the_suites_share_no_item_and_nothing_is_taught_that_is_asked(zoo: Path) -> None:
    suites = [
        load_suite(
            SuiteSpec.parse(
                {"include_path": str(zoo / "tasks"), "tasks": [{"task": f"small_{d}{end}"} for d in DOMAINS]}
            )
        )
        for end in ("", "_report")
    ]
    check_disjoint(*suites)
    for domain in DOMAINS.values():
        items = domain()
        taught = {item.context for item in items.lessons}
        assert set(items.primer) <= set(items.lessons)
        assert not taught & {item.context for item in (*items.proxy, *items.report)}
        assert len(items.proxy) >= 100
        assert len(items.report) >= 200


def test_two_builds_are_the_same_zoo_even_a_quick_one_with_its_families(tmp_path: Path) -> None:
    one, two = (build_zoo(tmp_path / name, QUICK) for name in ("one", "two"))
    assert zoo_digest(one) == zoo_digest(two)
    alike = [pair for pair, value in similarities(one).items() if value > 0.95]
    assert alike == [("math-b", "math-a")]


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OccupiedFolderError):
        build_zoo(tmp_path, QUICK)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_interrupted_build_goes_on_with_the_model_it_was_at(tmp_path: Path) -> None:
    whole = build_zoo(tmp_path / "whole", QUICK)
    broken = build_zoo(tmp_path / "broken", QUICK)
    (broken / "finished.txt").unlink()
    kept = (broken / "models/base/model.safetensors").stat()
    for path in (broken / "models/code-a").iterdir():
        path.unlink()
    (broken / "models/code-a").rmdir()
    assert zoo_digest(build_zoo(broken, QUICK)) == zoo_digest(whole)
    assert (broken / "models/base/model.safetensors").stat().st_mtime_ns == kept.st_mtime_ns


@pytest.fixture(scope="module")
def demo(zoo: Path) -> str:
    """What `make demo` prints, in a terminal of 80 columns."""
    environment = os.environ | {"COLUMNS": "80", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "examples.small_zoo.demo", str(FOLDER)]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_mixture_beats_the_best_single_member_by_the_papers_headline(demo: str) -> None:
    gain, stderr = map(float, re.findall(r"([+-][\d.]+) points \(± ([\d.]+)\)", demo)[0])
    assert gain >= PAPERS_HEADLINE
    assert gain - 2 * stderr > PAPERS_HEADLINE


def test_the_demo_shows_every_model_and_where_the_result_lies(demo: str) -> None:
    for name in ("math-a", "math-b", "code-a", "facts-a", "foreign", "neox", "merge of math", "mixture"):
        assert name in demo, demo
    assert "best single" in demo
    located = re.findall(r"model\s+(\S+)", demo)[-1]
    report = json.loads((PROJECT / located / "report.json").read_text())
    assert report["artifact"] == report["recommended"] == "mixture"
    assert report["warnings"] == []
    families = [family["members"] for family in report["families"]]
    assert ["math-a", "math-b"] in families
    assert sum(len(family) for family in families) == 6
    # Paths are as long as they are.
    assert max(len(line) for line in demo.splitlines() if "/" not in line) <= 80
