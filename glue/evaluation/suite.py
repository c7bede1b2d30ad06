"""A suite: the drawn items of its tasks with lm-eval's requests, built once and scored many times."""

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from transformers import PreTrainedTokenizerBase

from glue.evaluation.metrics import Metric, mean_of, metric_named
from glue.evaluation.task_files import TaskFolder
from glue.evaluation.tasks import LocalTask, blamed_on, load_installed, load_task
from glue.specs.digests import digest_of
from glue.specs.errors import EvaluationError, Problem
from glue.specs.suite import SuiteSpec, TaskData, TaskSpec

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
    weight: float
    data: tuple[TaskData, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Everything that decides what is asked and what counts, as JSON data."""
        config = self.task.dump_config()
        more: dict[str, Any] = {} if self.task.code is None else {"code": self.task.code.as_json()}
        if self.data:
            more["data"] = [[each.repo, each.commit] for each in self.data]
        return more | {
            "config": _plain({key: value for key, value in config.items() if key not in NOT_IDENTITY}),
            "items": [item.identity for item in self.items],
            "requests": [[request.args for request in item.requests] for item in self.items],
        }

    def requests(self) -> list[Instance]:
        """All items' requests, in order."""
        return [request for item in self.items for request in item.requests]


@dataclass(frozen=True)
class Suite:
    """Tasks with their items. Item order is that of the spec's tasks, within a task that of its data.

    `tokenizer` is what rendered its chats; none where it has none.
    """

    spec: SuiteSpec
    tasks: tuple[SuiteTask, ...]
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, compare=False, repr=False)

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

    def rendered(self, tokenizer: PreTrainedTokenizerBase) -> "Suite":
        """The same items in the same order, with their chats as that tokenizer's template renders them.

        Raises:
            EvaluationError: it has none.
        """
        again = load_suite(self.spec, tokenizer, [each for task in self.tasks for each in task.data])
        pairs = zip(self.tasks, again.tasks, strict=True)
        return replace(again, tasks=tuple(_with_items_of(task, other) for task, other in pairs))

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

    def without(self, identities: Set[str]) -> "Suite":
        """The suite without these items.

        Raises:
            EvaluationError: a task has fewer than two others.
        """
        tasks = tuple(_without(task, identities) for task in self.tasks)
        return replace(self, tasks=tuple(_weighted(task, tasks) for task in tasks))


def load_suite(
    spec: SuiteSpec, tokenizer: PreTrainedTokenizerBase | None = None, data: Sequence[TaskData] = ()
) -> Suite:
    """Build the suite from its task folder, and from `data` what comes from the Hub.

    `limit` takes the items whose sha256 of "seed:task:index" is smallest, so a smaller limit draws a part of
    a larger one's items. Few-shot examples are drawn by lm-eval with the suite's seed. `tokenizer` is what renders
    prompts where the suite asks for its chat template.

    Raises:
        EvaluationError: with the file, the key and the fix.
    """
    given = Path(spec.include_path) if spec.include_path else None
    if spec.suite:
        folder: TaskFolder | None = TaskFolder(PRESETS, data=given, data_are_elsewhere=given is None)
    else:
        folder = TaskFolder(given) if given else None
    chat = chat_template_of(tokenizer) if spec.chat_template else None
    here = {task.task: tuple(each for each in data if each.task == task.task) for task in spec.tasks}
    tasks = tuple(_build(folder, task, here[task.task], spec.seed, chat) for task in spec.tasks)
    return Suite(spec, tuple(_weighted(task, tasks) for task in tasks), tokenizer if chat else None)


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


def _plain(value: Any) -> Any:
    """JSON data, with a function of lm-eval's in place of itself as its source."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return inspect.getsource(value) if callable(value) else value


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


def _without(task: SuiteTask, identities: Set[str]) -> SuiteTask:
    items = tuple(item for item in task.items if item.identity not in identities)
    if len(items) < 2:
        raise EvaluationError(f"task {task.spec.task}: the proxy has all its items but {len(items)}; raise its limit")
    return replace(task, items=items)


def _part(task: SuiteTask, share: float, seed: int) -> SuiteTask:
    count = min(max(2, math.ceil(share * len(task.items))), len(task.items))
    numbers = [item.requests[0].doc_id for item in task.items]
    first = set(sorted(numbers, key=lambda number: _key(number, seed, task.spec.task))[:count])
    items = tuple(item for item, number in zip(task.items, numbers, strict=True) if number in first)
    return replace(task, items=items)


def _with_items_of(task: SuiteTask, other: SuiteTask) -> SuiteTask:
    items = {item.requests[0].doc_id: item for item in other.items}
    return replace(task, items=tuple(items[item.requests[0].doc_id] for item in task.items))


def _weighted(task: SuiteTask, tasks: Sequence[SuiteTask]) -> SuiteTask:
    """With its part of its group's weight: a group's score is the mean over its items, as lm-eval's."""
    if task.spec.group is None:
        return task
    items = sum(len(each.items) for each in tasks if each.spec.group == task.spec.group)
    return replace(task, weight=task.spec.weight * len(task.items) / items)


def _load(folder: TaskFolder | None, spec: TaskSpec, data: Sequence[TaskData]) -> LocalTask:
    if folder is not None and spec.task in folder:
        return load_task(folder, spec.task, spec.num_fewshot, data, fixed_shots=spec.fixed_shots)
    if folder is not None and not data:
        # Neither in the folder nor pinned at submission: the folder says best what it has.
        folder.read(spec.task)
    return load_installed(spec.task, data, spec.num_fewshot, fixed_shots=spec.fixed_shots)


def _build(
    folder: TaskFolder | None, spec: TaskSpec, data: Sequence[TaskData], seed: int, chat: ChatTemplate | None
) -> SuiteTask:
    task = _load(folder, spec, data)
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
        return SuiteTask(spec, task, metric, _items(task), spec.weight, tuple(data))


def _metric(task: LocalTask, spec: TaskSpec) -> Metric:
    usable = {name: metric for name in task.aggregation() if (metric := _usable(task, name)) is not None}
    name = spec.metric or next(iter(usable), None)
    if name is None or name not in usable:
        known = ", ".join(usable) or "none"
        wrong = (
            f"no metric '{name}'" if name not in task.aggregation() else f"a metric '{name}' that is no mean of items"
        )
        fix = "give the task another metric, or leave it out" if usable else "choose another task"
        raise EvaluationError(f"task {spec.task} has {wrong}; it has: {known}; {fix}")
    return usable[name]


def _usable(task: LocalTask, name: str) -> Metric | None:
    """How the metric becomes a number from 0 to 1 for each item; none if it is one number for all items."""
    is_mean = task.aggregation()[name] is mean and task.higher_is_better().get(name) is not False
    return metric_named(name) or (mean_of(name) if is_mean else None)


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
    text = task.question(document)
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
