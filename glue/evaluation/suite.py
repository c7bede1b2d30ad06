"""A suite: the drawn items of its tasks with lm-eval's requests, built once and scored many times."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from transformers import PreTrainedTokenizerBase

from glue.evaluation.metrics import Metric, metric_named
from glue.evaluation.task_files import TaskFolder
from glue.evaluation.tasks import LocalTask, blamed_on, load_task
from glue.specs.digests import digest_of
from glue.specs.errors import EvaluationError, Problem
from glue.specs.suite import SuiteSpec, TaskSpec

PRESETS = Path(__file__).parent / "presets"
ChatTemplate = Callable[..., str]

# What a person reads, where the data lie, and what else never reaches a model.
NOT_IDENTITY = ("task_alias", "tag", "metadata", "dataset_path", "dataset_kwargs")


@dataclass(frozen=True)
class Item:
    """One item: its identity, the prompt that a model sees, and its requests in lm-eval's order.

    The identity is the sha256 of the item's rendered context and target. Few-shot examples and the task's
    description are left out of it, so that an item stays the same one whatever precedes it.
    """

    identity: str
    context: str
    requests: tuple[Instance, ...]


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite with the items that were drawn, in the order of its data."""

    spec: TaskSpec
    task: LocalTask
    metric: Metric
    items: tuple[Item, ...]

    def identity(self) -> dict[str, Any]:
        """Everything that decides what is asked and what counts, as JSON data."""
        config = self.task.dump_config()
        code = {} if self.task.code is None else {"code": self.task.code.as_json()}
        return code | {
            "config": {key: value for key, value in config.items() if key not in NOT_IDENTITY},
            "items": [item.identity for item in self.items],
            "requests": [[request.args for request in item.requests] for item in self.items],
        }

    def requests(self) -> list[Instance]:
        """All items' requests, in order."""
        return [request for item in self.items for request in item.requests]


@dataclass(frozen=True)
class Suite:
    """Tasks with their items. Item order is that of the spec's tasks, within a task that of its data."""

    spec: SuiteSpec
    tasks: tuple[SuiteTask, ...]

    @cached_property
    def digest(self) -> str:
        """sha256 over spec, task configurations, item identities and requests; it does not depend on the folder."""
        spec = {key: value for key, value in self.spec.as_json().items() if key != "include_path"}
        return digest_of({"spec": spec, "tasks": [task.identity() for task in self.tasks]})

    @property
    def item_ids(self) -> list[str]:
        """The identities of all items, in item order."""
        return [item.identity for task in self.tasks for item in task.items]

    def contexts(self) -> list[str]:
        """What a model is shown of each item before it answers, in item order; a text that is scored as a
        whole has no context and stands for itself."""
        return [item.context for task in self.tasks for item in task.items]

    def part(self, share: float) -> "Suite":
        """The suite on `share` of each task's items, at least two: those that a smaller limit would draw.

        A smaller share's items are a part of a larger one's, so that what survived one can be scored on the next.
        Its digest is another, so that no score is taken for one on all items.

        Raises:
            ValueError: `share` is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"the share of a suite's items is above 0 and at most 1, not {share}")
        return replace(self, tasks=tuple(_part(task, share, self.spec.seed) for task in self.tasks))


def load_suite(spec: SuiteSpec, tokenizer: PreTrainedTokenizerBase | None = None) -> Suite:
    """Build the suite from its task folder.

    `limit` takes the items whose sha256 of "seed:task:index" is smallest, so a smaller limit draws a part of
    a larger one's items. Few-shot examples are drawn by lm-eval with the suite's seed. `tokenizer` is what renders
    prompts where the suite asks for its chat template.

    Raises:
        EvaluationError: with the file, the key and the fix.
    """
    if spec.include_path is None:
        fix = "set include_path to a folder with the tasks' YAML files and data"
        raise EvaluationError(f"the suite names no task folder; {fix}", [Problem("/include_path", "missing", fix)])
    given = Path(spec.include_path)
    folder = TaskFolder(PRESETS, data=given) if spec.suite else TaskFolder(given)
    chat = chat_template_of(tokenizer) if spec.chat_template else None
    return Suite(spec, tuple(_build(folder, task, spec.seed, chat) for task in spec.tasks))


def chat_template_of(tokenizer: PreTrainedTokenizerBase | None) -> ChatTemplate:
    """What renders a list of messages, as lm-eval's model for transformers renders them.

    Raises:
        EvaluationError: there is no template.
    """
    if tokenizer is None or not tokenizer.chat_template:
        fix = "set chat_template: false, or give the first member a tokenizer with one"
        detail = f"the suite asks for a chat template and the tokenizer has none; {fix}"
        raise EvaluationError(detail, [Problem("/chat_template", "no_chat_template", detail, fix)])

    def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    return render


def check_disjoint(proxy: Suite, report: Suite) -> None:
    """Show that what steers the search is not what the result is measured on.

    Raises:
        EvaluationError: the suites share an item.
    """
    known = set(proxy.item_ids)
    shared = [item for task in report.tasks for item in task.items if item.identity in known]
    if shared:
        example = shared[0].context[-80:]
        raise EvaluationError(
            f"the proxy and the report suite share {len(shared)} items, for example one that ends in {example!r}; "
            "give them tasks whose data files have no item in common"
        )


def drawn(size: int, limit: int | None, seed: int, task: str) -> list[int]:
    """The indices of the items that a suite takes of a task of `size` items, ascending."""
    if limit is None or limit >= size:
        return list(range(size))
    return sorted(sorted(range(size), key=lambda index: _key(index, seed, task))[:limit])


def _key(index: int, seed: int, task: str) -> bytes:
    return hashlib.sha256(f"{seed}:{task}:{index}".encode()).digest()


def _indices(size: int, spec: TaskSpec, seed: int) -> list[int]:
    if spec.items is None:
        return drawn(size, spec.limit, seed, spec.task)
    missing = [index for index in spec.items if index >= size]
    if missing:
        raise EvaluationError(f"task {spec.task}: items names {missing[0]}, but its data have {size}, from 0")
    return sorted(spec.items)


def _part(task: SuiteTask, share: float, seed: int) -> SuiteTask:
    count = min(max(2, math.ceil(share * len(task.items))), len(task.items))
    numbers = [item.requests[0].doc_id for item in task.items]
    first = set(sorted(numbers, key=lambda number: _key(number, seed, task.spec.task))[:count])
    items = tuple(item for item, number in zip(task.items, numbers, strict=True) if number in first)
    return replace(task, items=items)


def _build(folder: TaskFolder, spec: TaskSpec, seed: int, chat: ChatTemplate | None) -> SuiteTask:
    task = load_task(folder, spec.task, spec.num_fewshot, fixed_shots=spec.fixed_shots)
    metric = _metric(task, spec)
    _check_filter(task, spec)
    indices = _indices(len(task.eval_docs), spec, seed)
    if len(indices) < 2:
        raise EvaluationError(f"task {spec.task}: a standard error needs at least two items, it has {len(indices)}")
    task.set_fewshot_seed(seed)
    with blamed_on(spec.task):
        turns = chat is not None
        task.build_all_requests(
            samples=indices, apply_chat_template=turns, fewshot_as_multiturn=turns, chat_template=chat
        )
        return SuiteTask(spec, task, metric, _items(task))


def _metric(task: LocalTask, spec: TaskSpec) -> Metric:
    offered = list(task.aggregation())
    name = spec.metric or offered[0]
    if name not in offered:
        raise EvaluationError(f"task {spec.task} has no metric '{name}'; it has: {', '.join(offered)}")
    return metric_named(name)


def _check_filter(task: LocalTask, spec: TaskSpec) -> None:
    offered = [ensemble.name for ensemble in task._filters]
    if spec.filter is not None and spec.filter not in offered:
        raise EvaluationError(f"task {spec.task} has no filter '{spec.filter}'; it has: {', '.join(offered)}")


def _items(task: LocalTask) -> tuple[Item, ...]:
    requests: dict[int, list[Instance]] = {}
    for request in task.instances:
        requests.setdefault(request.doc_id, []).append(request)
    return tuple(_item(task, group) for group in requests.values())


def _item(task: LocalTask, requests: list[Instance]) -> Item:
    document = requests[0].doc
    context, target = _question(task, document), _answer(task, document)
    identity = digest_of([context, target])
    return Item(identity, str(requests[0].args[0]), tuple(requests))


def _question(task: LocalTask, document: dict[str, Any]) -> str:
    text = task.doc_to_text(document)
    if task.multiple_input:
        # The contexts are the choices, and the text is the number of the right one.
        return str(_chosen(task.doc_to_choice(document), text))
    return str(text)


def _answer(task: LocalTask, document: dict[str, Any]) -> list[str]:
    target = task.doc_to_target(document)
    targets = target if isinstance(target, list) else [target]
    if task.config.doc_to_choice is None or task.multiple_input:
        return [str(one) for one in targets]
    choices = task.doc_to_choice(document)
    return [str(_chosen(choices, one) if isinstance(one, int) else one) for one in targets]


def _chosen(choices: Sequence[str], number: int) -> str:
    if not 0 <= number < len(choices):
        raise ValueError(f"the right choice has number {number}, but there are {len(choices)} choices")
    return choices[number]
