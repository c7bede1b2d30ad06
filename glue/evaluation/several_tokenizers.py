"""Answers lm-eval's requests for a mixture whose experts read several tokenizers. Knows no suite.

Each item is routed on its context's text, in the checkpoint's tokens, and answered as a whole by the expert chosen,
in that expert's own tokens: as lm-eval would score the expert alone. Items of experts that share a tokenizer too, so
that what is scored does not depend on who else is in the mixture.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from transformers import PreTrainedModel

from glue.evaluation.batches import Batch, Tokens, routing_of
from glue.evaluation.generation import end_tokens
from glue.evaluation.language_model import Encoder, ResidentModel
from glue.evaluation.likelihood import Answer

Given = TypeVar("Given")
# By the id of a request of the suite, what is asked in its place.
Asked = Mapping[int, Instance]
_ROUTED_AT_ONCE = 64


def has_several_tokenizers(model: PreTrainedModel) -> bool:
    """Whether the model is a mixture in which an expert has a tokenizer of its own."""
    return any(getattr(model, "expert_tokenizers", ()))


def in_place(requests: Sequence[Instance], asked: Asked) -> list[Instance]:
    """The requests, each replaced by what is asked in its place."""
    return [asked.get(id(request), request) for request in requests]


class SeveralTokenizers:
    """What `ResidentModel` is for other models."""

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        own: Sequence[Encoder | None],
        batch: int,
        asked: Sequence[Asked],
    ) -> None:
        """`encoder` is that of the checkpoint's tokenizer, `own` those of the experts that have another.

        `asked` has for each expert what it is asked in place of requests that are not in its words.
        """
        self.batch = Batch(batch)
        self._asked = asked
        self._model, self._encoder = model, encoder
        experts: Any = model.experts
        # Who shares the checkpoint's tokenizer also ends where the checkpoint says.
        shared = frozenset(end_tokens(model, encoder.tokenizer))
        self._experts = [
            ResidentModel(expert, theirs or encoder, self.batch, ends=frozenset() if theirs else shared)
            for expert, theirs in zip(experts, own, strict=True)
        ]

    def loglikelihood(self, requests: list[Instance]) -> list[Answer]:
        """For each (context, continuation) its log-likelihood, and whether greedy decoding gives it."""
        return self._by_expert(requests, lambda expert, some: expert.loglikelihood(some))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-likelihood of each whole text."""
        return self._by_expert(requests, lambda expert, some: expert.loglikelihood_rolling(some))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What is written after each context, up to the first stop string."""
        return self._by_expert(requests, lambda expert, some: expert.generate_until(some))

    def _by_expert(
        self, requests: list[Instance], answer: Callable[[ResidentModel, list[Instance]], list[Given]]
    ) -> list[Given]:
        chosen = self._chosen(requests)
        answers: dict[int, Given] = {}
        for number, expert in enumerate(self._experts):
            mine = [place for place, choice in enumerate(chosen) if choice == number]
            if mine:
                given = in_place([requests[place] for place in mine], self._asked[number])
                answers |= dict(zip(mine, answer(expert, given), strict=True))
        return [answers[place] for place in range(len(requests))]

    def _chosen(self, requests: Sequence[Instance]) -> list[int]:
        """Each request's expert. All requests of an item have that of the first: their answers are compared."""
        items = [(request.task_name, request.doc_id) for request in requests]
        first: dict[tuple[str | None, int | None], str] = {}
        for item, request in zip(items, requests, strict=True):
            first.setdefault(item, str(request.args[0]))
        texts = list(dict.fromkeys(first.values()))
        found = dict(zip(texts, self._routes(texts), strict=True))
        return [found[first[item]] for item in items]

    def _routes(self, texts: Sequence[str]) -> list[int]:
        prompts = [self._prompt(text) for text in texts]
        chosen: list[int] = []
        for start in range(0, len(prompts), _ROUTED_AT_ONCE):
            routing = routing_of(self._model, prompts[start : start + _ROUTED_AT_ONCE])["routing"]
            chosen += routing.argmax(-1).tolist()
        return chosen

    def _prompt(self, text: str) -> Tokens:
        begin = self._encoder.prefix_token_id
        # A router's features of no token at all are those of the begin token.
        return tuple(self._encoder.encode(text) or [0 if begin is None else begin])
