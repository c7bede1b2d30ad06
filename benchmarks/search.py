"""What the resident scorer saves. Run: python -m benchmarks.search ZOO SMOLLM2 (folders; each may be `-`).

ZOO is what `python -m examples.small_zoo` builds; SMOLLM2 is SmolLM2-135M in transformers' form, float32. Ours is
compared with (a) merging to disk, loading and `lm_eval.simple_evaluate`, and (b) lm-eval's own model on a loaded
model. Of (a) there are three forms, each with our merge, which is faster than theirs:
- the paper's code: a shell script for each candidate runs the command `lm_eval` for each task, batch 1;
- one such command for all tasks with our batch, kinder than what anybody runs. mergekit-evolve's buffered strategy is
  near it: its evaluations are Ray tasks with a GPU, whose process Ray ends after each;
- no new process: mergekit-evolve's pool of long-lived actors.
All run on one thread and take turns; ratios are of processor time, so that what else the machine does counts
little, and wall time is shown beside it. It prints Markdown.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import datasets
import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from glue.checkpoints.reader import Checkpoint
from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import Suite, drawn, load_suite
from glue.merging.engine import merge_into, merge_to_folder
from glue.specs.expression import Expression, parse_expression
from glue.specs.suite import SuiteSpec
from tests.support.suites import write_items, write_task

WORDS = ["river", "stone", "garden", "yellow", "quickly", "window", "carpet", "thunder", "seven", "letter", "market"]
SHOTS = 5
ITEMS = 20


@dataclass
class Spent:
    """Seconds of one thing that was measured."""

    wall: float
    processor: float


def main() -> None:
    """Print the tables."""
    zoo, smollm2 = sys.argv[1:3]
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        datasets.config.HF_DATASETS_CACHE = root / "cache"
        _say("| what | lm-eval: seconds (processor) | ours: seconds (processor) | ratio | ratio of wall time | same |")
        _say("|---|---|---|---|---|---|")
        if zoo != "-":
            _small_zoo(Path(zoo).resolve(), root / "zoo")
        if smollm2 != "-":
            _smollm2(Path(smollm2).resolve(), root / "smollm2")


def _small_zoo(zoo: Path, work: Path) -> None:
    names = ("math-a", "code-a")
    folders = {name: zoo / "models" / name for name in names}
    tasks = [{"task": f"small_{domain}", "limit": 100} for domain in ("math", "code", "facts")]
    suite = load_suite(SuiteSpec.parse({"include_path": str(zoo / "tasks"), "tasks": tasks}))
    # lm-eval resolves the tasks' relative data files against the working directory.
    with chdir(zoo / "tasks"):
        paper, command = partial(_commands, each=True, batch=1), partial(_commands, each=False, batch=suite.spec.batch)
        _candidates("small zoo, 300 items, a command a task: candidates", suite, folders, work / "task", 1, paper)
        _candidates("small zoo, 300 items, one command: candidates", suite, folders, work / "command", 2, command)
        _candidates("small zoo, 300 items, in one process: candidates", suite, folders, work / "process", 4, _loaded)


def _smollm2(folder: Path, work: Path) -> None:
    other = _neighbour(folder, work / "other")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    several, single = _several_tokens(work / "several"), _one_token(work / "single")
    _items("SmolLM2-135M, 4 choices of several tokens, 5 fixed shots: items", several, model, tokenizer)
    _items("SmolLM2-135M, 4 choices of one token, 250 tokens of context: items", single, model, tokenizer)
    _candidates("SmolLM2-135M, the former suite: candidates", several, {"a": folder, "b": other}, work, 1, _loaded)


def _candidates(
    name: str,
    suite: Suite,
    folders: dict[str, Path],
    work: Path,
    count: int,
    evaluate: Callable[[Path, Suite], list[list[float]]],
) -> None:
    checkpoints = {name: Checkpoint.open(folder) for name, folder in folders.items()}
    first = next(iter(folders.values()))
    tokenizer = AutoTokenizer.from_pretrained(first)
    model = AutoModelForCausalLM.from_pretrained(first, dtype=torch.float32).eval()
    scorer = Scorer(suite, "cpu")
    forward = _forward_seconds(model)
    theirs, ours, same, inside = Spent(0, 0), Spent(0, 0), True, 0.0
    for number in range(count + 1):
        expression = _mix(list(folders), (number + 1) / (count + 2))

        def resident(expression: Expression = expression) -> list[list[float]]:
            merge_into(expression, checkpoints, model)
            return [list(task.values) for task in scorer.score(model, tokenizer).tasks]

        def on_disk(expression: Expression = expression, out: Path = work / str(number)) -> list[list[float]]:
            out.parent.mkdir(parents=True, exist_ok=True)
            merge_to_folder(
                expression, folders, out, dtype="float32", shard_bytes=10**10, token=1, progress=lambda *_: None
            )
            return evaluate(out, suite)

        forward[0] = 0.0
        found, spent = _measured(resident)
        if number == 0:
            # The first candidate pays once for tokens and for what the model is asked.
            continue
        inside += forward[0]
        expected, spent_theirs = _measured(on_disk)
        ours = Spent(ours.wall + spent.wall, ours.processor + spent.processor)
        theirs = Spent(theirs.wall + spent_theirs.wall, theirs.processor + spent_theirs.processor)
        same = same and found == expected
    _row(f"{name} (each)", theirs, ours, count, same)
    hours = [3600 * count / spent.wall for spent in (theirs, ours)]
    outside = 100 * (1 - inside / ours.wall)
    _say(f"| … an hour: {hours[0]:.0f} and {hours[1]:.0f}; outside the forward passes {outside:.1f} % | | | | | |")


def _loaded(folder: Path, suite: Suite) -> list[list[float]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return _evaluate(model, AutoTokenizer.from_pretrained(folder), suite)


def _commands(folder: Path, suite: Suite, *, each: bool, batch: int) -> list[list[float]]:
    names = [task.spec.task for task in suite.tasks]
    for part in [[name] for name in names] if each else [names]:
        _command(folder, part, batch)
    return [_samples(folder, name) for name in names]


def _command(folder: Path, tasks: list[str], batch: int) -> None:
    model = ["--model", "hf", "--model_args", f"pretrained={folder},dtype=float32", "--device", "cpu"]
    run = ["--tasks", ",".join(tasks), "--include_path", ".", "--batch_size", str(batch)]
    output = ["--output_path", str(folder / "results"), "--log_samples"]
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *model, *run, *output],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)},
        capture_output=True,
        check=True,
    )


def _samples(folder: Path, task: str) -> list[float]:
    (file,) = (folder / "results").rglob(f"samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [float(each[each["metrics"][0]]) for each in sorted(samples, key=lambda each: int(each["doc_id"]))]


def _items(name: str, suite: Suite, model: PreTrainedModel, tokenizer: Any) -> None:
    scorer = Scorer(suite, "cpu")
    scorer.score(model, tokenizer)
    ours, theirs, same = Spent(0, 0), Spent(0, 0), True
    turns = 1
    for _ in range(turns):
        expected, spent_theirs = _measured(lambda: _evaluate(model, tokenizer, suite))
        found, spent = _measured(lambda: [list(task.values) for task in scorer.score(model, tokenizer).tasks])
        ours = Spent(ours.wall + spent.wall, ours.processor + spent.processor)
        theirs = Spent(theirs.wall + spent_theirs.wall, theirs.processor + spent_theirs.processor)
        same = same and found == expected
    _row(f"{name} (all {len(suite.item_ids)})", theirs, ours, turns, same)


def _evaluate(model: PreTrainedModel, tokenizer: Any, suite: Suite) -> list[list[float]]:
    sizes = {task.spec.task: len(task.task.eval_docs) for task in suite.tasks}
    seed = suite.spec.seed
    samples = {
        task.spec.task: drawn(sizes[task.spec.task], task.spec.limit, seed, task.spec.task) for task in suite.tasks
    }
    results: Any = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=suite.spec.batch),
        tasks=list(samples),
        task_manager=TaskManager(include_path=suite.spec.include_path, include_defaults=False),
        samples=samples,
        fewshot_random_seed=seed,
        bootstrap_iters=1,
    )
    return [[float(each[task.metric.source]) for each in results["samples"][task.spec.task]] for task in suite.tasks]


def _measured(work: Callable[[], list[list[float]]]) -> tuple[list[list[float]], Spent]:
    wall, processor = time.monotonic(), _processor_seconds()
    result = work()
    return result, Spent(time.monotonic() - wall, _processor_seconds() - processor)


def _processor_seconds() -> float:
    """Of this process and of all that it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _forward_seconds(model: PreTrainedModel) -> list[float]:
    spent, started = [0.0], [0.0]
    model.register_forward_pre_hook(lambda *_: started.__setitem__(0, time.monotonic()))
    model.register_forward_hook(lambda *_: spent.__setitem__(0, spent[0] + time.monotonic() - started[0]))
    return spent


def _mix(names: list[str], weight: float) -> Expression:
    shares = dict(zip(names, (weight, 1 - weight), strict=True))
    inputs = [{"model": {"node": "member", "name": name}, "parameters": {"weight": shares[name]}} for name in names]
    return parse_expression({"node": "merge", "method": "linear", "inputs": inputs})


def _neighbour(folder: Path, out: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter += 0.01 * parameter.std() * noise
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return out


def _several_tokens(folder: Path) -> Suite:
    random = Random(0)  # noqa: S311  (words)
    shots = write_items(folder / "shots.jsonl", [_question(random, 35, 4) for _ in range(SHOTS)])
    items = [_question(random, 35, 4) for _ in range(ITEMS)]
    files = {"data_files": {"test": str(folder / "several.jsonl"), "train": str(shots)}}
    settings = {"num_fewshot": SHOTS, "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    return _suite(folder, "several", items, dataset_kwargs=files, **settings)


def _one_token(folder: Path) -> Suite:
    random = Random(1)  # noqa: S311  (words)
    return _suite(folder, "single", [_question(random, 220, 1) for _ in range(ITEMS)])


def _question(random: Random, words: int, answer_words: int) -> dict[str, Any]:
    first = random.sample(WORDS, 4)
    answers = [" ".join([word, *random.choices(WORDS, k=answer_words - 1)]) for word in first]
    return {"q": " ".join(random.choices(WORDS, k=words)) + ":", "answers": answers, "right": random.randrange(4)}


def _suite(folder: Path, name: str, items: list[dict[str, Any]], **settings: Any) -> Suite:
    choice = {"output_type": "multiple_choice", "doc_to_choice": "answers", "doc_to_target": "right"}
    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    write_task(folder, name, items, doc_to_text="{{q}}", metric_list=[metric], **choice, **settings)
    return load_suite(SuiteSpec.parse({"include_path": str(folder), "tasks": [{"task": name}], "batch": 8}))


def _row(name: str, theirs: Spent, ours: Spent, count: int, same: bool) -> None:
    ratio, wall = theirs.processor / ours.processor, theirs.wall / ours.wall
    seconds = [f"{spent.wall / count:.2f} ({spent.processor / count:.2f})" for spent in (theirs, ours)]
    _say(f"| {name} | {seconds[0]} | {seconds[1]} | {ratio:.1f} | {wall:.1f} | {'yes' if same else 'NO'} |")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
