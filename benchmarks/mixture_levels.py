"""`python -m benchmarks.mixture_levels ZOO`: mixtures over the small zoo at every level, with every router, as hybrids.

The paper's Tables 3 (levels) and 4 (routers) and its hybrids in our numbers: accuracy on the report suite, which
neither prompts nor training text share an item with. Abbreviations are the paper's, level-router-input: F, B, M; L, M;
T, S. Everything that is no expert's comes from the experts' mean. It prints Markdown.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from examples.small_zoo.build import build_zoo
from examples.small_zoo.data import DOMAINS
from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import load_suite
from glue.merging.run import merge_file
from glue.mixture.load import load_model
from glue.mixture.run import mix_file
from glue.pipeline.models import load_tokenizer
from glue.specs.results import SuiteScore
from glue.specs.suite import SuiteSpec

EXPERTS = {"math": "math-a", "code": "code-a", "facts": "facts-a"}
ZOOS = {"Which2": ("math", "code"), "Which3": ("math", "code", "facts")}
PROMPTS, TEXTS = 40, 300
LAYERS = 4
TRAIN = {"steps": 200, "batch": 16, "warmup": 0.05}


@dataclass(frozen=True)
class Variant:
    """One mixture: its abbreviation, what is particular, and the keys of its file."""

    name: str
    note: str
    keys: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Build, score, print; a table after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", type=Path, help="the folder of the small zoo; it is trained there if it is missing")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    zoo = build_zoo(parser.parse_args().zoo).resolve()
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(zoo, Path(place))
        for title, members in ZOOS.items():
            bench.table(f"{title}: no mixture", [], members, singles=True)
            bench.table(f"{title}: levels (Table 3)", levels(), members)
        bench.table("Which3: routers (Table 4)", routers(), ZOOS["Which3"])
        bench.table("Which3: hybrids, K dense layers", hybrids(), ZOOS["Which3"])


def levels() -> list[Variant]:
    """Every level with the linear router that the prompts give."""
    return [
        Variant("F-L-T", "2 experts a token", {"level": "ffn"}),
        Variant("F-L-T", "1 expert a token", {"level": "ffn", "experts_per_token": 1}),
        Variant("F-L-T", "2, gates from mean states", {"level": "ffn", "gate_mode": "hidden_avg"}),
        Variant("F-L-S", "", {"level": "ffn", "router": {"input": "sample"}}),
        Variant("B-L-S", "", {"level": "block"}),
        Variant("M-L-S", "", {"level": "model"}),
    ]


def routers() -> list[Variant]:
    """Where the router comes from, at every level and with every input; text is for the language-model loss."""
    kinds = (("F", "ffn", "token"), ("F", "ffn", "sample"), ("B", "block", "sample"), ("M", "model", "sample"))
    return [variant for letter, level, source in kinds for variant in _routers(letter, level, source)]


def _routers(letter: str, level: str, source: str) -> Iterator[Variant]:
    linear, deep = (f"{letter}-{kind}-{source[0].upper()}" for kind in "LM")
    ways: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        (linear, "drawn", {}, {"gate_mode": "uniform_random"}),
        (linear, "drawn, then text", {"train": TRAIN}, {"gate_mode": "uniform_random"}),
        (linear, "prompts", {}, {}),
        (linear, "prompts, then text", {"train": TRAIN}, {}),
        (linear, "trained on prompts", {"train": {"steps": 300}}, {}),
        (deep, "trained on prompts", {"type": "mlp"}, {}),
        (deep, "trained on prompts, then text", {"type": "mlp", "train": TRAIN}, {}),
    ]
    for name, note, router, keys in ways:
        yield Variant(name, note, {"level": level, "router": {"input": source} | router} | keys)


def hybrids() -> list[Variant]:
    """K dense layers from the experts' mean, below each level; with all of them dense there is no mixture."""
    return [
        Variant(name, f"{dense} of {LAYERS}", keys | {"dense_layers": dense})
        for name, keys in (
            ("F-L-T", {"level": "ffn"}),
            ("F-L-S", {"level": "ffn", "router": {"input": "sample"}}),
            ("B-L-S", {"level": "block"}),
            ("M-L-S", {"level": "model"}),
        )
        for dense in range(LAYERS)
    ]


class Bench:
    """The zoo, its report suite, and the folder in which mixtures are built."""

    def __init__(self, zoo: Path, place: Path) -> None:
        self._zoo, self._place = zoo, place
        tasks = [{"task": f"small_{domain}_report"} for domain in EXPERTS]
        self._scorer = Scorer(load_suite(SuiteSpec.parse({"include_path": str(zoo / "tasks"), "tasks": tasks})), "cpu")
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(zoo / "models" / "base")
        self._domains = {name: domain() for name, domain in DOMAINS.items()}
        self._count = 0

    def table(self, title: str, variants: Sequence[Variant], members: Sequence[str], *, singles: bool = False) -> None:
        """Print a table of these mixtures, or of their experts alone."""
        _say(f"\n### {title}\n\n| mixture | | {' | '.join(EXPERTS)} | mean | sent home |\n|{'---|' * 7}")
        if singles:
            for name, folder in self._dense(members).items():
                model = load_model(folder, torch.float32, "cpu")
                _row(name, "", self._scorer.score(model, self._tokenizer), "")
        for variant in variants:
            model = load_model(self._mixed(variant, members), torch.float32, "cpu")
            _row(variant.name, variant.note, self._scorer.score(model, self._tokenizer), self._routed(model, members))

    def _dense(self, members: Sequence[str]) -> dict[str, Path]:
        """The base, the experts, and the experts' mean: what a hybrid is whose layers are all dense."""
        folders = {name: self._zoo / "models" / name for name in ("base", *(EXPERTS[domain] for domain in members))}
        merge = {"merge_method": "linear", "models": []}
        merge["models"] = [{"model": str(folder), "parameters": {"weight": 1}} for folder in list(folders.values())[1:]]
        self._count += 1
        file = self._place / f"merge-{self._count}.yml"
        file.write_text(yaml.safe_dump(merge))
        out = self._place / f"merged-{self._count}"
        merge_file(file, out, shard_bytes=10**9, seed=0, progress=lambda *_: None)
        return folders | {f"mean of {len(members)}": out}

    def _mixed(self, variant: Variant, members: Sequence[str]) -> Path:
        self._count += 1
        place = self._place / str(self._count)
        place.mkdir()
        keys = dict(variant.keys)
        train = keys.get("router", {}).get("train")
        if train and "batch" in train:
            self._write_text(place / "text.jsonl", members)
            keys["router"] = keys["router"] | {"train": dict(train) | {"data": "text.jsonl"}}
        if keys["level"] != "model" or keys.get("dense_layers"):
            keys["trunk"] = "mean"
        (place / "mix.yml").write_text(yaml.safe_dump(self._file(members) | keys))
        mix_file(place / "mix.yml", place / "out", shard_bytes=10**9, seed=0, progress=lambda *_: None)
        return place / "out"

    def _file(self, members: Sequence[str]) -> dict[str, Any]:
        models = self._zoo / "models"
        experts = [
            {
                "source_model": str(models / EXPERTS[domain]),
                "positive_prompts": [item.context for item in self._lessons(domain, PROMPTS, "prompts")],
            }
            for domain in members
        ]
        return {"base_model": str(models / "base"), "experts": experts}

    def _lessons(self, domain: str, count: int, purpose: str) -> list[Any]:
        return random.Random(f"{purpose} {domain}").sample(self._domains[domain].lessons, count)  # noqa: S311

    def _write_text(self, path: Path, members: Iterable[str]) -> None:
        rows = [
            {"prompt": item.context, "response": item.target}
            for domain in members
            for item in self._lessons(domain, TEXTS, "text")
        ]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    @torch.no_grad()
    def _routed(self, model: Any, members: Sequence[str]) -> str:
        """Of the decisions on report items of the experts' domains, the share that prefers the domain's expert."""
        if not hasattr(model, "route"):
            return ""
        right, all_of_them = 0, 0
        for index, domain in enumerate(members):
            for item in self._domains[domain].report:
                preferred = model.route(torch.tensor([self._tokenizer(item.context)["input_ids"]])).argmax(-1).flatten()
                right, all_of_them = right + int((preferred == index).sum()), all_of_them + len(preferred)
        return f"{100 * right / all_of_them:.1f}"


def _row(name: str, note: str, score: SuiteScore, routed: str) -> None:
    numbers = " | ".join(f"{100 * task.mean:.1f}" for task in score.tasks)
    _say(f"| {name} | {note} | {numbers} | {100 * score.mean:.1f} ± {100 * score.stderr:.1f} | {routed} |")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
