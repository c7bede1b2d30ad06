"""Scores models on a suite, one after the other, through lm-eval's own tasks. Knows no job and no folder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.instance import Instance
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glue.evaluation.language_model import Encoder, ResidentModel
from glue.evaluation.several_tokenizers import Asked, SeveralTokenizers, has_several_tokenizers, in_place
from glue.evaluation.statistics import DIGITS, estimate, weighted
from glue.evaluation.suite import Suite, SuiteTask
from glue.evaluation.tasks import blamed_on
from glue.specs.results import SuiteScore, TaskScore

# So many tokenizers' tokens are remembered.
_ENCODERS = 8


class Scorer:
    """A suite on a device. What is kept between models are the requests and their tokens, never an answer."""

    def __init__(self, suite: Suite, device: str, *, compare: bool = False) -> None:
        """With `compare`, what is scored in another dtype than float32 is scored in that too, and the items counted
        whose value differs."""
        self._suite = suite
        self._compare = compare
        self._device = torch.device(device)
        self._encoders: list[Encoder] = []
        self._renderings: list[tuple[PreTrainedTokenizerBase, Asked]] = []
        self.degraded = ""

    def score(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SuiteScore:
        """The model's score. Equal models score equally, whatever was scored before.

        `tokenizer` is the model's; of a mixture, that of its checkpoint. Where it has another vocabulary than the one
        that rendered the suite's chats, its own template renders them for this model.

        Afterwards `degraded` says what was done differently from what the suite says, and is empty otherwise: after
        an out of memory the rest runs in smaller batches.

        Raises:
            EvaluationError: an item does not fit the model, or a task cannot judge its answers.
            ValueError: the model is on another device or in another dtype than the suite says.
        """
        self._check(model)
        tasks, self.degraded = self._tasks(model, tokenizer)
        total = weighted([estimate(task.values) for task in tasks], [task.weight for task in tasks]).rounded()
        differing = None
        if self._compare and model.dtype != torch.float32:
            with _in_float32(model):
                differing = _differing(tasks, self._tasks(model, tokenizer)[0])
        return SuiteScore(
            suite=self._suite.digest, mean=total.mean, stderr=total.stderr, tasks=tasks, differing=differing
        )

    def _tasks(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[TaskScore, ...], str]:
        """Every task's score, and what was done differently from what the suite says."""
        with _threads(self._suite.spec.threads), torch.inference_mode():
            resident = self._resident(model, tokenizer)
            self._answer(resident, self._asked(tokenizer))
        return tuple(_task_score(task) for task in self._suite.tasks), resident.batch.degraded

    def _check(self, model: PreTrainedModel) -> None:
        wanted = getattr(torch, self._suite.spec.dtype)
        if model.dtype != wanted or model.device.type != self._device.type:
            place = f"{self._suite.spec.dtype} on {self._device}"
            raise ValueError(f"the suite is scored in {place}, the model is in {model.dtype} on {model.device}")

    def _resident(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> ResidentModel | SeveralTokenizers:
        batch = self._suite.spec.batch
        if not has_several_tokenizers(model):
            return ResidentModel(model, self._encoder_of(tokenizer), batch)
        experts: Any = model.expert_tokenizers
        own = [None if each is None else self._encoder_of(each) for each in experts]
        asked = [{} if each is None else self._asked(each) for each in experts]
        return SeveralTokenizers(model, self._encoder_of(tokenizer), own, batch, asked)

    def _encoder_of(self, tokenizer: PreTrainedTokenizerBase) -> Encoder:
        known = next((each for each in self._encoders if each.tokenizer is tokenizer), None)
        if known is None:
            # Families take turns, each with its tokenizer.
            self._encoders = [*self._encoders[1 - _ENCODERS :], known := Encoder(tokenizer)]
        return known

    def _asked(self, tokenizer: PreTrainedTokenizerBase) -> Asked:
        """What a model of that tokenizer is asked in place of the suite's requests, where that is something else."""
        rendered_by = self._suite.tokenizer
        if rendered_by is None or tokenizer is rendered_by:
            return {}
        known = next((asked for each, asked in self._renderings if each is tokenizer), None)
        if known is None:
            differs = tokenizer.get_vocab() != rendered_by.get_vocab()
            known = _pairs(self._suite, self._suite.rendered(tokenizer)) if differs else {}
            self._renderings = [*self._renderings[1 - _ENCODERS :], (tokenizer, known)]
        return known

    def _answer(self, model: ResidentModel | SeveralTokenizers, asked: Asked) -> None:
        """Give every request its answer, all tasks' requests of a kind together."""
        kinds: dict[str, list[Instance]] = {}
        for task in self._suite.tasks:
            for request in task.requests():
                kinds.setdefault(request.request_type, []).append(request)
        for kind, requests in kinds.items():
            # A mixture of several tokenizers routes on the suite's own requests, and asks each expert in its words.
            given = requests if isinstance(model, SeveralTokenizers) else in_place(requests, asked)
            for request, answer in zip(requests, getattr(model, kind)(given), strict=True):
                request.resps = [answer]
                request.filtered_resps = {}


def _pairs(suite: Suite, other: Suite) -> Asked:
    """Each request of a suite with that of the same items elsewhere."""
    tasks = zip(suite.tasks, other.tasks, strict=True)
    pairs = [pair for one, two in tasks for pair in zip(one.requests(), two.requests(), strict=True)]
    return {id(mine): theirs for mine, theirs in pairs}


def _task_score(task: SuiteTask) -> TaskScore:
    with blamed_on(task.spec.task):
        for ensemble in task.task._filters:
            ensemble.apply(task.requests())
        values = tuple(task.metric.value(_result(task, list(item.requests))) for item in task.items)
    found = estimate(values).rounded()
    return TaskScore(
        task=task.spec.task,
        metric=task.metric.name,
        weight=task.weight,
        mean=found.mean,
        stderr=found.stderr,
        values=values,
    )


def _result(task: SuiteTask, requests: list[Instance]) -> Any:
    """lm-eval's result for one item by the filter that the suite names, or the task's first."""
    name = task.spec.filter or next(iter(requests[0].filtered_resps))
    results = task.task.process_results(requests[0].doc, [request.filtered_resps[name] for request in requests])
    return results[task.metric.source]


def _differing(tasks: Sequence[TaskScore], others: Sequence[TaskScore]) -> float:
    """The share of all items whose value is another."""
    pairs = [
        pair for one, other in zip(tasks, others, strict=True) for pair in zip(one.values, other.values, strict=True)
    ]
    return round(sum(first != second for first, second in pairs) / len(pairs), DIGITS)


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """The same weights in float32, and afterwards as they were: every number of a shorter type is one of float32.

    Parameters alone are changed. Buffers, such as rotary frequencies, are in float32 whatever a model's dtype is.
    """
    before = [(parameter, parameter.dtype) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in before:
            parameter.data = parameter.data.to(dtype)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
