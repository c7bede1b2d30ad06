"""lm-eval's language model over a model that stays resident while its parameters change. Knows no suite."""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glue.evaluation.batches import Batch
from glue.evaluation.choices import TOLERANCE, close_choices
from glue.evaluation.generation import generate
from glue.evaluation.likelihood import Answer, Query, log_likelihoods
from glue.evaluation.shared import shared_log_likelihoods
from glue.specs.digests import canonical_json
from glue.specs.errors import EvaluationError


class Encoder:
    """A tokenizer that remembers: a suite's texts are tokenised once, whatever number of models is scored."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._known: dict[tuple[str, bool | None], list[int]] = {}
        prefix = self.prefix_token_id
        self._prefix_text = None if prefix is None else str(tokenizer.decode(prefix))

    @property
    def prefix_token_id(self) -> int | None:
        """What stands before a text that has no context: the begin token, or else the end token."""
        begin: int | None = self.tokenizer.bos_token_id
        return begin if begin is not None else self.end_token_id

    @property
    def end_token_id(self) -> int | None:
        """The end token."""
        end: int | None = self.tokenizer.eos_token_id
        return end

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids, as lm-eval's own model for transformers encodes them."""
        key = (text, add_special_tokens)
        if key not in self._known:
            self._known[key] = self._encode(text, add_special_tokens)
        return self._known[key]

    def _encode(self, text: str, add_special_tokens: bool | None) -> list[int]:
        if add_special_tokens is None and has_bos_prefix(text, self._prefix_text):
            add_special_tokens = False
        settings = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(text, **settings))


class ResidentModel(TemplateLM):  # type: ignore[misc]  # lm-eval ships no types
    """Answers lm-eval's requests; equal to lm-eval's HFLM in float32, and faster.

    The model is used as it is: on its device, in its dtype.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        batch: int | Batch,
        *,
        share: bool = True,
        ends: frozenset[int] = frozenset(),
    ) -> None:
        """With `share`, what contexts and continuations have in common is computed once.

        `ends` are tokens after which answers end beside those that the model and the tokenizer name.
        """
        super().__init__()
        self.model = model.eval()
        self.encoder = encoder
        self.batch = batch if isinstance(batch, Batch) else Batch(batch)
        self._share = share
        self._ends = ends
        self.max_length = resolve_max_length(model.config, encoder.tokenizer)

    @property
    def eot_token_id(self) -> int | None:
        """The end token."""
        return self.encoder.end_token_id

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced by.

        Raises:
            EvaluationError: the tokenizer has neither a begin nor an end token.
        """
        prefix = self.encoder.prefix_token_id
        if prefix is None:
            raise EvaluationError("the tokenizer has neither a bos nor an eos token, which texts without context need")
        return prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text."""
        return self.encoder.encode(string, add_special_tokens)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Answer]:
        """For each (context, continuation) its log-likelihood, and whether greedy decoding gives it."""
        answers: list[Answer] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        if self._share and self.model.dtype == torch.float32:
            self._repeat_close_choices(requests, answers)
        return answers

    def _repeat_close_choices(self, requests: list[Instance], answers: list[Answer]) -> None:
        """Give items whose choice hangs on rounding their answers from the plain path."""
        numbers = close_choices(requests, [total for total, _ in answers])
        self._share = False
        try:
            again = super().loglikelihood([requests[number] for number in numbers], disable_tqdm=True)
        finally:
            self._share = True
        for number, answer in zip(numbers, again, strict=True):
            answers[number] = answer

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[Answer]:
        queries = [Query(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        if self._share:
            return shared_log_likelihoods(self.model, queries, self.batch, self.max_length, TOLERANCE)
        return log_likelihoods(self.model, queries, self.batch, self.max_length)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of each whole text, cut into windows as lm-eval does.

        A whole text has no context: a mixture decides on its own tokens, once for all windows.
        """
        windows = [self._windows(request.args[0]) for request in requests]
        answers = iter(log_likelihoods(self.model, [q for part in windows for q in part], self.batch, self.max_length))
        return [sum(next(answers)[0] for _ in part) for part in windows]

    def _windows(self, text: str) -> list[Query]:
        tokens = self.encoder.encode(text)
        windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
        pairs = [make_disjoint_window(window) for window in windows]
        return [Query(tuple(context), tuple(predicted), prompt=tuple(tokens)) for context, predicted in pairs]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What the model writes after each context, up to the first stop string.

        Raises:
            EvaluationError: no room is left for the context.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(canonical_json(request.args[1]), []).append(number)
        texts = [""] * len(requests)
        for numbers in groups.values():
            contexts = [requests[number].args[0] for number in numbers]
            for number, text in zip(numbers, self._generate(contexts, requests[numbers[0]].args[1]), strict=True):
                texts[number] = text
        return texts

    def _generate(self, contexts: Sequence[str], arguments: dict[str, Any]) -> list[str]:
        settings = normalize_gen_kwargs(arguments)
        end = self.encoder.end_token_id
        end_text = None if end is None else str(self.encoder.tokenizer.decode(end))
        stops = handle_stop_sequences(settings["until"], eos=end_text)
        new_tokens = settings["max_gen_toks"]
        room = self.max_length - new_tokens
        if room <= 0:
            fix = f"set generation_kwargs.max_gen_toks below {self.max_length}"
            raise EvaluationError(f"the model takes {self.max_length} tokens, {new_tokens} are to be written; {fix}")
        prompts = [tuple(self._prompt(context)[-room:]) for context in contexts]
        texts = generate(
            self.model,
            self.encoder.tokenizer,
            prompts,
            new_tokens=new_tokens,
            stops=stops,
            batch=self.batch,
            tolerance=TOLERANCE if self._share else None,
            ends=self._ends,
        )
        return [postprocess_generated_text(text, stops, None) for text in texts]

    def _prompt(self, context: str) -> list[int]:
        return self.encoder.encode(context) or [self.prefix_token_id]
