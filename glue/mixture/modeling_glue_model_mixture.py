"""A mixture of whole causal language models: a router reads the prompt and picks the expert that answers it.

This file travels with the checkpoint and needs torch and transformers, nothing else. Every expert keeps its own
architecture, configuration, embedding, final norm and head. The router is linear, or two linear layers with a ReLU
between them, on the mean embedding of the prompt's unmasked tokens (Model-GLUE, arXiv 2410.05357: model level, sample
input), so routing depends neither on padding nor on the other samples of a batch. It is decided once for a sample and
kept for the whole generation.

`routing` is a float tensor, samples x experts: each expert's weight for each sample, 0 for those not asked. With
one expert a sample the logits are exactly that expert's. With several they are the logarithm of the weighted
mean of the experts' probabilities.

With `token_gate` there is no router: every expert answers every token, and a gate on their last states weighs their
logits (UltraFuser, arXiv 2403.08281).

Experts may have a tokenizer of their own; `input_ids` are always those of the checkpoint's. `generate` then gives the
chosen expert the prompt's text in its own tokens, and returns what it said in the checkpoint's. `forward` answers for
experts that share the checkpoint's tokenizer alone.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutputWithPast


class GlueModelMixtureConfig(PreTrainedConfig):
    """The experts' own configurations, in order, and the router's shape; without an inner size it is linear.

    `expert_tokenizers` names the folder in the checkpoint where an expert's tokenizer lies; none for one that shares
    the checkpoint's.
    """

    model_type = "glue_model_mixture"

    experts: list[dict[str, Any]] | None = None
    expert_names: list[str] | None = None
    expert_tokenizers: list[str | None] | None = None
    experts_per_token: int = 1
    token_gate: bool = False
    router_vocab_size: int = 0
    router_hidden_size: int = 0
    router_inner_size: int = 0
    vocab_size: int = 0
    num_hidden_layers: int = 0
    output_router_logits: bool = False
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def expert_configs(self) -> list[PreTrainedConfig]:
        """A fresh configuration object for each expert."""
        return [AutoConfig.for_model(**expert) for expert in self.experts or []]

    def tokenizer_folders(self) -> list[str | None]:
        """For each expert where its own tokenizer lies; none if it shares the checkpoint's."""
        return self.expert_tokenizers or [None] * len(self.experts or [])


@dataclass
class GlueModelMixtureOutput(CausalLMOutputWithPast):
    """`logits` are samples x tokens x vocabulary; `routing` and `router_logits` are samples x experts.

    With a token gate `router_logits` are samples x tokens x experts, of the tokens that have logits.
    """

    routing: Tensor | None = None
    router_logits: Tensor | None = None


def pool_features(embedding: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The mean embedding of each sample's unmasked tokens: samples x hidden, float32.

    `embedding` is vocabulary x hidden, `input_ids` and `attention_mask` are samples x tokens. Each sample is
    summed on its own over its unmasked tokens alone, so that padding and batch mates change not even a bit.
    """
    masks = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    kept = [ids[mask.bool()] for ids, mask in zip(input_ids, masks, strict=True)]
    return torch.stack([embedding[ids].float().sum(0) / max(len(ids), 1) for ids in kept])


class SampleRouter(nn.Module):
    """Logits over the experts for a whole sample: W x, or W relu(V x + b), where x is the mean embedding - centre."""

    embedding: Tensor
    centre: Tensor

    def __init__(self, config: GlueModelMixtureConfig) -> None:
        super().__init__()
        hidden, inner = config.router_hidden_size, config.router_inner_size
        # Buffers: loading makes every parameter trainable, and these two stay as they are.
        self.register_buffer("embedding", torch.empty(config.router_vocab_size, hidden))
        self.register_buffer("centre", torch.empty(hidden))
        self.inner = nn.Linear(hidden, inner) if inner else None
        self.weight = nn.Parameter(torch.empty(len(config.experts or []), inner or hidden))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Samples x experts, float32."""
        features = pool_features(self.embedding, input_ids, attention_mask) - self.centre
        return torch.stack([self._logits(feature) for feature in features])

    def _logits(self, feature: Tensor) -> Tensor:
        # Of one sample, as a matrix product may round differently for another batch size; and as sums of products,
        # which autocast leaves in float32.
        if self.inner is not None:
            feature = functional.relu((self.inner.weight * feature).sum(-1) + self.inner.bias)
        return (self.weight * feature).sum(-1)


class TokenGate(nn.Module):
    """Logits over the experts for each token: W [h_1; ...; h_K] + b, where h_k is what expert k's head reads."""

    def __init__(self, config: GlueModelMixtureConfig) -> None:
        super().__init__()
        widths = [expert.get_text_config().hidden_size for expert in config.expert_configs()]
        self.weight = nn.Parameter(torch.empty(len(widths), sum(widths)))
        self.bias = nn.Parameter(torch.empty(len(widths)))

    def forward(self, states: Tensor) -> Tensor:
        """`states` is samples x tokens x all experts' widths; gives samples x tokens x experts, float32."""
        with torch.autocast(states.device.type, enabled=False):
            return functional.linear(states.float(), self.weight.float(), self.bias.float())


class MixtureCache(Cache):
    """One cache for each expert, holding only the samples that are routed to it, and the routing itself."""

    def __init__(self, routing: Tensor, caches: Sequence[Cache | None]) -> None:
        super().__init__(layers=[])
        self.routing = routing
        self.rows = rows_of(routing)
        self.mixes = sum(len(rows) for rows in self.rows) > len(routing)
        self.caches = list(caches)

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return all(cache.is_croppable for cache in self._used())

    @property
    def is_initialized(self) -> bool:
        return any(cache.is_initialized for cache in self._used())

    @property
    def batch_size(self) -> int:
        return self.routing.shape[0]

    def __len__(self) -> int:
        return max((len(cache) for cache in self._used()), default=0)

    def _used(self) -> list[Cache]:
        return [cache for cache, rows in zip(self.caches, self.rows, strict=True) if cache is not None and len(rows)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return next((cache.get_seq_length(layer_idx) for cache in self._used()), 0)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return max((cache.get_max_length(layer_idx) for cache in self._used()), default=-1)

    def reset(self) -> None:
        for cache in self._used():
            cache.reset()

    def crop(self, tokens_to_remove: int) -> None:
        for cache in self._used():
            cache.crop(tokens_to_remove)

    def activate_past_recording(self) -> None:
        for cache in self._used():
            cache.activate_past_recording()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beams change places; those of one sample share its routing, so nobody changes the expert."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(self.batch_size, device=self.routing.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        indices = indices.to(self.routing.device)
        before, self.routing = self.rows, self.routing[indices]
        self.rows = rows_of(self.routing)
        for cache, old, new in zip(self.caches, before, self.rows, strict=True):
            if cache is not None and len(old):
                # A sample's place inside an expert's cache is its rank among the samples of that expert.
                cache.reorder_cache(torch.searchsorted(old, indices[new]))  # type: ignore[arg-type]


def rows_of(routing: Tensor) -> list[Tensor]:
    """For each expert the indices of the samples that ask it, ascending."""
    return [weights.nonzero().squeeze(-1) for weights in routing.unbind(-1)]


class Translation:
    """Between the tokenizer of a checkpoint and that of one of its experts: prompts there, answers back."""

    def __init__(self, ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> None:
        self.ours, self.theirs = ours, theirs

    def prompt(self, ids: list[int]) -> list[int]:
        """The prompt in the expert's tokens.

        What our chat template rendered is rendered by the expert's. Everything else is passed on as text, without our
        special tokens and with those that the expert's tokenizer adds by itself.
        """
        messages = self._conversation(ids)
        found = self._rendered(messages) if messages and self.theirs.chat_template else None
        found = found or list(self.theirs(_text(self.ours, ids))["input_ids"])
        begin = self.theirs.bos_token_id if self.theirs.bos_token_id is not None else self.theirs.eos_token_id
        return found or [0 if begin is None else int(begin)]

    def text(self, prompt: list[int], new: list[int]) -> str:
        """What the expert's new tokens say after its prompt."""
        return _continuation(self.theirs, prompt, new)

    def answer(self, prompt: list[int], text: str) -> list[int]:
        """Our tokens that say `text` after our prompt."""
        first: list[int] | None = None
        # Some tokenizers put a space before what they take for the beginning of a text.
        for anchor in ("", "\n", "="):
            head, whole = (self.ours(part, add_special_tokens=False)["input_ids"] for part in (anchor, anchor + text))
            tokens = list(whole[len(head) :])
            first = tokens if first is None else first
            if list(whole[: len(head)]) == list(head) and _continuation(self.ours, prompt, tokens) == text:
                return tokens
        return first or []

    def _rendered(self, messages: list[dict[str, str]]) -> list[int] | None:
        first, *others = messages
        ways = [messages]
        if first["role"] == "system" and others:
            # For templates without this role.
            ways.append([{"role": "user", "content": f"{first['content']}\n\n{others[0]['content']}"}, *others[1:]])
        return next((ids for ids in (_render(self.theirs, way, True) for way in ways) if ids), None)

    def _conversation(self, ids: list[int]) -> list[dict[str, str]] | None:
        """The messages of which our chat template makes exactly this prompt; none if there are no such."""
        text = str(self.ours.decode(ids))
        for begin, ends, alternate in self._frames:
            for end, is_open in ends:
                messages = _parsed(text, begin, end, alternate)
                if messages and _render(self.ours, messages, is_open) == ids:
                    return messages
        return None

    @cached_property
    def _frames(self) -> list[tuple[tuple[str, ...], list[tuple[str, bool]], tuple[str, str]]]:
        """What our template writes around messages: before the first ones, after the last, and between turns."""
        if not self.ours.chat_template:
            return []
        system, user, reply = ("system", "qxsystemxq"), ("user", "qxuserxq"), ("assistant", "qxassistantxq")
        between = self._around(user, reply, user)
        ends = [(around[-1], is_open) for is_open in (True, False) if (around := self._around(user, is_open=is_open))]
        begins = [tuple(around[:-1]) for turns in ([user], [system, user]) if (around := self._around(*turns))]
        if len(between) != 4 or not all(between[1:3]):
            return []
        return [(begin, ends, (between[1], between[2])) for begin in begins if all(begin[1:])]

    def _around(self, *turns: tuple[str, str], is_open: bool = False) -> list[str]:
        rendered = _render(self.ours, [{"role": role, "content": content} for role, content in turns], is_open)
        rest, parts = str(self.ours.decode(rendered or [])), []
        for _, content in turns:
            part, found, rest = rest.partition(content)
            if not found:
                return []
            parts.append(part)
        return [*parts, rest]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], is_open: bool) -> list[int] | None:
    try:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=is_open, return_dict=False)
    except Exception:
        # A template may refuse messages with an error of any kind.
        return None
    return [int(token) for token in ids]  # type: ignore[arg-type]


def _parsed(text: str, begin: tuple[str, ...], end: str, alternate: tuple[str, str]) -> list[dict[str, str]] | None:
    """The messages in a rendered text; `begin` stands before a system message, if there is one, and the first turn."""
    rest, messages = text, []
    if not (rest.startswith(begin[0]) and rest.endswith(end)):
        return None
    rest = rest[len(begin[0]) : len(rest) - len(end)]
    if len(begin) > 1:
        system, found, rest = rest.partition(begin[1])
        if not found:
            return None
        messages.append({"role": "system", "content": system})
    for role, separator in cycle(zip(("user", "assistant"), alternate, strict=True)):
        content, found, rest = rest.partition(separator)
        messages.append({"role": role, "content": content})
        if not found:
            return messages
    return None


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: list[int], new: list[int]) -> str:
    # A few tokens before show whether a space belongs to the text or to its beginning.
    tail = prompt[-8:]
    before, whole = _text(tokenizer, tail), _text(tokenizer, tail + new)
    return whole[len(before) :] if whole.startswith(before) else _text(tokenizer, new)


class TranslatedStreamer(BaseStreamer):
    """Hands on what an expert writes in the checkpoint's tokens, whole words at a time, up to one of its `ends`."""

    def __init__(
        self, streamer: Any, translation: Translation, ours: Tensor, theirs: list[int], ends: list[int]
    ) -> None:
        self.streamer, self.translation, self.theirs, self.ends = streamer, translation, theirs, ends
        self.said: list[int] = ours.tolist()
        self.new: list[int] = []
        self.sent = ""
        streamer.put(ours[None].cpu())
        self.begun = False

    def put(self, value: Tensor) -> None:
        if value.dim() > 1 and len(value) > 1:
            raise ValueError(_ONE_STREAM)
        if not self.begun:
            self.begun = True
            return
        self.new += [token for token in value.flatten().tolist() if token not in self.ends]
        text = self.translation.text(self.theirs, self.new)
        words = text[: max(text.rfind(" "), text.rfind("\n"), 0)]
        self._send(words)

    def _send(self, text: str) -> None:
        if len(text) > len(self.sent):
            tokens = self.translation.answer(self.said, text[len(self.sent) :])
            self.streamer.put(torch.tensor(tokens))
            self.said, self.sent = self.said + tokens, text

    def end(self) -> None:
        self._send(self.translation.text(self.theirs, self.new))
        self.streamer.end()


class TranslatedCriteria(StoppingCriteria):
    """Criteria that read the checkpoint's tokens, asked about what an expert has written so far."""

    def __init__(self, criteria: Any, translation: Translation, ours: Tensor, theirs: list[list[int]]) -> None:
        self.criteria, self.translation, self.ours, self.theirs = criteria, translation, ours, theirs

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        beams, width = len(input_ids) // len(self.theirs), max(map(len, self.theirs))
        finished = []
        for row, ids in enumerate(input_ids.tolist()):
            prompt, theirs = self.ours[row // beams], self.theirs[row // beams]
            answer = self.translation.answer(prompt.tolist(), self.translation.text(theirs, ids[width:]))
            whole = torch.cat([prompt, prompt.new_tensor(answer)])[None]
            finished.append(bool(torch.as_tensor(self.criteria(whole, scores, **kwargs)).all()))
        return torch.tensor(finished, device=input_ids.device)


# Settings of `generate` that speak of tokens, and those that cannot be said in an expert's own.
_TOKEN_SETTINGS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids", "sequence_bias"),
)
_UNTRANSLATED = (
    *("logits_processor", "prefix_allowed_tokens_fn", "assistant_model", "negative_prompt_ids", "custom_generate"),
    *("inputs_embeds", "past_key_values", "output_scores", "output_logits", "output_attentions"),
    *("output_hidden_states", *_TOKEN_SETTINGS[3:]),
)
_ONE_STREAM = "a streamer hears one answer at a time"
_GENERATE = tuple(inspect.signature(GenerationMixin.generate).parameters)[2:-1]


class GlueModelMixtureForCausalLM(PreTrainedModel, GenerationMixin):
    """Whole experts behind a router. Hidden states and attentions of experts are not returned: depths differ."""

    config: GlueModelMixtureConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # What an expert cannot do, the expert itself refuses.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["SampleRouter", "TokenGate"]
    _skip_keys_device_placement = ["past_key_values"]
    # A half-precision router would send borderline samples elsewhere.
    _keep_in_fp32_modules_strict = {"sample_router", "token_gate"}

    def __init__(self, config: GlueModelMixtureConfig) -> None:
        # None lets every expert choose; the superclass would fill in a choice for all.
        attention = config._attn_implementation
        super().__init__(config)
        settings = {"attn_implementation": attention, "dtype": torch.get_default_dtype()}
        self.experts = nn.ModuleList(
            AutoModelForCausalLM.from_config(expert, **settings) for expert in config.expert_configs()
        )
        # How often each expert was asked since loading; a sample counts when its routing is decided.
        self.expert_usage = [0] * len(self.experts)
        self._accepted = [frozenset(inspect.signature(expert.forward).parameters) for expert in self.experts]
        self.sample_router = None if config.token_gate else SampleRouter(config)
        self.token_gate = TokenGate(config) if config.token_gate else None
        # Loaded with the weights; only needed where an expert has a tokenizer of its own.
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.expert_tokenizers: list[PreTrainedTokenizerBase | None] = [None] * len(self.experts)
        self.supports_gradient_checkpointing = all(expert.supports_gradient_checkpointing for expert in self.experts)
        self.post_init()  # type: ignore[no-untyped-call]
        # post_init collects these from direct children only, and the experts lie one step deeper.
        for needs in ("_no_split_modules", "_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            getattr(self, needs).update(*(getattr(expert, needs) for expert in self.experts))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, SampleRouter):
            init.normal_(module.embedding, std=0.02)
            init.normal_(module.weight, std=0.02)
            init.zeros_(module.centre)
        if isinstance(module, TokenGate):
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, source: Any, *inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As for every model; beside the weights the tokenizers, where an expert has its own."""
        loaded = super().from_pretrained(source, *inputs, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if any(model.config.tokenizer_folders()):
            names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
            model.load_tokenizers(source, **{name: kwargs[name] for name in names if kwargs.get(name) is not None})
        return loaded

    def load_tokenizers(self, source: Any, subfolder: str = "", **settings: Any) -> None:
        """The checkpoint's tokenizer and the experts' own, from a folder or a repository of the Hub."""
        commit = getattr(self.config, "_commit_hash", None)
        if commit:
            # What `main` is now may be another state than that of the weights.
            settings["revision"] = commit

        def load(folder: str, **more: Any) -> PreTrainedTokenizerBase:
            place, inside = (Path(source, folder), "") if Path(source).is_dir() else (source, folder)
            more |= {"subfolder": inside, "trust_remote_code": False}
            found: Any = AutoTokenizer.from_pretrained(place, **more, **settings)
            return found  # type: ignore[no-any-return]

        self.tokenizer = load(subfolder, config=self.config)
        own = {name: load(f"{subfolder}/{name}".lstrip("/")) for name in set(self.config.tokenizer_folders()) if name}
        self.expert_tokenizers = [own[name] if name else None for name in self.config.tokenizer_folders()]

    def save_pretrained(self, save_directory: Any, *inputs: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As for every model; beside the weights the tokenizers, where an expert has its own."""
        hub = {name: kwargs.pop(name) for name in ("repo_id", "commit_message", "private") if name in kwargs}
        super().save_pretrained(save_directory, *inputs, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)
        for name, tokenizer in zip(self.config.tokenizer_folders(), self.expert_tokenizers, strict=True):
            if name and tokenizer is not None:
                tokenizer.save_pretrained(Path(save_directory, name))
        if push_to_hub:
            name = Path(save_directory).resolve().name
            given: dict[str, Any] = {"repo_id": name, "token": kwargs.get("token")}
            self.push_to_hub(**given | hub)

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError("every expert has its own embedding: experts[i].get_input_embeddings()")

    @torch.no_grad()
    def route(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The routing of prompts: samples x experts, the k largest of the softmax renormalised, ties to the first.

        With a token gate everybody is asked, with equal weights.
        """
        return self._decide(input_ids, attention_mask)[0]

    def _decide(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The routing, and a router's logits where there is one."""
        if self.sample_router is not None:
            router_logits = self.sample_router(input_ids, attention_mask)
            return self._choose(router_logits), router_logits
        self.expert_usage = [before + len(input_ids) for before in self.expert_usage]
        count = len(self.experts)
        return torch.full((len(input_ids), count), 1 / count, device=input_ids.device), None

    def _choose(self, router_logits: Tensor) -> Tensor:
        probabilities = router_logits.softmax(-1)
        order = probabilities.sort(dim=-1, descending=True, stable=True).indices
        chosen = torch.zeros_like(probabilities).scatter(-1, order[:, : self.config.experts_per_token], 1.0)
        asked = chosen.sum(0).long().tolist()
        self.expert_usage = [before + now for before, now in zip(self.expert_usage, asked, strict=True)]
        kept = probabilities * chosen
        return kept / kept.sum(-1, keepdim=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: MixtureCache | None = None,
        routing: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> GlueModelMixtureOutput | tuple[Any, ...]:
        """Run each sample through its experts; `input_ids` and `labels` are samples x tokens.

        A cache continues with the routing that filled it. Else `routing` decides, and without it the unmasked
        tokens given. Without `position_ids` the mask is counted, so that padding on the left shifts nothing.

        Raises:
            TypeError: the cache is not one that this model or its `generate` made.
            ValueError: a sample's expert has a tokenizer of its own, so that these ids mean nothing to it; or a
                routing leaves an expert out, and there is a token gate.
        """
        router_logits = None
        if past_key_values is None:
            if routing is None:
                routing, router_logits = self._decide(input_ids, attention_mask)
            past_key_values = MixtureCache(routing, [None] * len(self.experts))
        elif not isinstance(past_key_values, MixtureCache):
            raise TypeError("every expert keeps its own cache: pass one that this model returned, or none")
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        if position_ids is not None:
            position_ids = position_ids.expand(len(input_ids), -1)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        given = {name: value for name, value in inputs.items() if value is not None}
        if self.token_gate is None:
            logits = self._run_experts(given, past_key_values, use_cache, logits_to_keep)
        else:
            logits, router_logits = self._fuse(self.token_gate, given, past_key_values, use_cache, logits_to_keep)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        show = self.config.output_router_logits if output_router_logits is None else output_router_logits
        output = GlueModelMixtureOutput(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values if past_key_values.is_initialized else None,
            routing=past_key_values.routing,
            router_logits=router_logits if show else None,
        )
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    def _run_experts(
        self, inputs: dict[str, Tensor], cache: MixtureCache, use_cache: bool | None, logits_to_keep: int | Tensor
    ) -> Tensor:
        logits: Tensor | None = None
        for expert, rows in enumerate(cache.rows):
            if len(rows) == 0:
                continue
            everybody = len(rows) == len(cache.routing)
            part = inputs if everybody else {name: value[rows.to(value.device)] for name, value in inputs.items()}
            answer = self._ask(expert, part, cache, use_cache, logits_to_keep)
            if everybody and not cache.mixes:
                return answer
            if logits is None:
                logits = answer.new_full((len(cache.routing), *answer.shape[1:]), -torch.inf)
            rows, answer = rows.to(logits.device), answer.to(logits.device)
            if cache.mixes:
                weights = cache.routing[:, expert].to(logits.device)[rows]
                answer = answer.log_softmax(-1) + weights.log().to(answer.dtype)[:, None, None]
                answer = torch.logaddexp(logits[rows], answer)
            logits[rows] = answer
        assert logits is not None, "a batch has at least one sample, and a sample at least one expert"
        return logits

    def _fuse(
        self,
        gate: TokenGate,
        inputs: dict[str, Tensor],
        cache: MixtureCache,
        use_cache: bool | None,
        logits_to_keep: int | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The sum of all experts' logits, weighted for each token, and the gate's own logits."""
        if not (cache.routing > 0).all():
            raise ValueError("with a token gate every expert answers every sample: leave out routing")
        answers, states = [], []
        for index, expert in enumerate(self.experts):
            with _head_inputs(expert) as seen:
                answers.append(self._ask(index, inputs, cache, use_cache, logits_to_keep))
            states.append(self._kept(index, seen[-1], logits_to_keep))
        first = answers[0]
        gate_logits: Tensor = gate(torch.cat([state.to(states[0].device) for state in states], dim=-1))
        weights = gate_logits.softmax(-1).to(first.device).unbind(-1)
        parts = zip(weights, answers, strict=True)
        logits = sum(weight[..., None] * answer.to(first.device).float() for weight, answer in parts)
        assert isinstance(logits, Tensor), "there is at least one expert"
        return logits.to(first.dtype), gate_logits

    def _kept(self, index: int, values: Tensor, logits_to_keep: int | Tensor) -> Tensor:
        """Of samples x tokens x anything what is wanted, if the expert itself does not choose."""
        if "logits_to_keep" in self._accepted[index]:
            return values
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return values[:, kept]

    def _ask(
        self,
        index: int,
        inputs: dict[str, Tensor],
        cache: MixtureCache,
        use_cache: bool | None,
        logits_to_keep: int | Tensor,
    ) -> Tensor:
        if self.config.tokenizer_folders()[index]:
            name = (self.config.expert_names or [])[index]
            raise ValueError(
                f"a sample is routed to expert '{name}', which has a tokenizer of its own; use generate(), or "
                f"experts[{index}] with tokens of expert_tokenizers[{index}]"
            )
        expert = self.experts[index]
        settings = {
            **inputs,
            "past_key_values": cache.caches[index],
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
        }
        accepted = self._accepted[index]
        output = expert(**{name: value for name, value in settings.items() if name in accepted})
        cache.caches[index] = output.past_key_values
        logits = self._kept(index, output.logits, logits_to_keep)
        # Experts whose vocabulary is padded less never say the rows that they lack.
        missing = self.config.vocab_size - logits.shape[-1]
        return functional.pad(logits, (0, missing), value=torch.finfo(logits.dtype).min) if missing else logits

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As for every model. A prompt whose expert has a tokenizer of its own is answered in that expert's tokens.

        Limits of length then count the expert's tokens; what comes back is the prompt, padded on the left, and the
        answer in the checkpoint's. Stopping criteria and streamers see the checkpoint's tokens.

        Raises:
            ValueError: something is asked that cannot be said in the chosen expert's tokens.
        """
        kwargs |= dict(zip(_GENERATE, args, strict=False))
        input_ids = kwargs.pop("input_ids", inputs)
        plain: Any = super().generate  # type: ignore[misc]
        if not any(self.config.tokenizer_folders()) or input_ids is None or kwargs.get("past_key_values") is not None:
            return plain(input_ids, **kwargs)
        routing, mask = kwargs.pop("routing", None), kwargs.pop("attention_mask", None)
        prepare: Any = self._prepare_generation_config  # type: ignore[misc]
        settings, _ = prepare(kwargs.get("generation_config"), **_without(kwargs, _GENERATE))
        mask = _mask_of(input_ids, settings) if mask is None else mask
        routing = self.route(input_ids, mask) if routing is None else routing
        groups = self._tokenizer_groups(routing)
        kwargs["attention_mask"] = mask
        if list(groups) == [None]:
            return plain(input_ids, routing=routing, **kwargs)
        if kwargs.get("streamer") is not None and len(input_ids) > 1:
            raise ValueError(_ONE_STREAM)
        input_ids = _pad_left(input_ids, kwargs)
        answers: dict[int, list[list[int]]] = {}
        for expert, rows in groups.items():
            given = {name: _rows(value, rows, len(input_ids)) for name, value in kwargs.items()}
            if expert is None:
                given |= {"routing": routing[rows.to(routing.device)], "return_dict_in_generate": False}
                said = plain(input_ids[rows], **given)[:, input_ids.shape[1] :].tolist()
            else:
                said = self._translated(expert, input_ids[rows], given, settings)
            for place, row in enumerate(rows.tolist()):
                count = len(said) // len(rows)
                answers[row] = said[place * count : (place + 1) * count]
        sequences: Any = _joined(input_ids, [answers[row] for row in range(len(input_ids))], _padding(settings))
        return GenerateDecoderOnlyOutput(sequences=sequences) if settings.return_dict_in_generate else sequences

    def _tokenizer_groups(self, routing: Tensor) -> dict[int | None, Tensor]:
        """The rows of the samples whose experts share the checkpoint's tokenizer (None), and of every other expert."""
        chosen = routing.argmax(-1).cpu()
        own = [index for index, folder in enumerate(self.config.tokenizer_folders()) if folder]
        groups: dict[int | None, Tensor] = {None: (~torch.isin(chosen, torch.tensor(own))).nonzero().squeeze(-1)}
        groups |= {expert: (chosen == expert).nonzero().squeeze(-1) for expert in own}
        return {expert: rows for expert, rows in groups.items() if len(rows)}

    def _translated(
        self, index: int, input_ids: Tensor, kwargs: dict[str, Any], settings: GenerationConfig
    ) -> list[list[int]]:
        """What an expert with a tokenizer of its own says to these prompts, in the checkpoint's tokens."""
        theirs = self.expert_tokenizers[index]
        expert: Any = self.experts[index]
        if self.tokenizer is None or theirs is None:
            raise ValueError("the tokenizers are not here: call load_tokenizers() with the checkpoint's folder")
        self._check_translated(index, kwargs, settings)
        translation = Translation(self.tokenizer, theirs)
        mask = kwargs["attention_mask"].bool()
        own = [ids[kept] for ids, kept in zip(input_ids, mask, strict=True)]
        prompts = [translation.prompt(ids.tolist()) for ids in own]
        ends = _ends(expert.generation_config.eos_token_id) + _ends(theirs.eos_token_id)
        padded, given = _batch(prompts, theirs.pad_token_id or 0, _reading_device(expert, input_ids.device))
        config = self._settings_for(settings, kwargs, input_ids.shape[1], ends, theirs.pad_token_id or 0)
        criteria = kwargs.get("stopping_criteria")
        if criteria:
            translated = TranslatedCriteria(criteria, translation, input_ids, prompts)
            given["stopping_criteria"] = StoppingCriteriaList([translated])
        if kwargs.get("streamer") is not None:
            given["streamer"] = TranslatedStreamer(kwargs["streamer"], translation, own[0], prompts[0], ends)
        if config.stop_strings:
            given["tokenizer"] = theirs
        output = expert.generate(padded, generation_config=config, **given)
        count, answers = len(output) // len(prompts), []
        for row, tokens in enumerate(output[:, padded.shape[1] :].tolist()):
            prompt, ours = prompts[row // count], own[row // count].tolist()
            stop = next((place for place, token in enumerate(tokens) if token in ends), None)
            said = translation.answer(ours, translation.text(prompt, tokens[:stop]))
            answers.append(_until(said, _ends(settings.eos_token_id), finished=stop is not None))
        return answers

    def _check_translated(self, index: int, kwargs: dict[str, Any], settings: GenerationConfig) -> None:
        for name in _UNTRANSLATED:
            given = kwargs.get(name, getattr(settings, name, None))
            if given and given != getattr(self.generation_config, name, None):
                expert = (self.config.expert_names or [])[index]
                raise ValueError(f"{name} cannot be used: expert '{expert}', which was chosen, has its own tokenizer")

    def _settings_for(
        self, settings: GenerationConfig, kwargs: dict[str, Any], width: int, ends: list[int], padding: int
    ) -> GenerationConfig:
        config = copy.deepcopy(settings)
        givers = (kwargs.get("generation_config"), self.generation_config)
        named = [kwargs.get("max_length"), *(getattr(each, "max_length", None) for each in givers)]
        if config.max_new_tokens is None:
            # Where nobody names a length, transformers' default counts from the prompt.
            config.max_new_tokens = config.max_length - (0 if all(each is None for each in named) else width)
        if config.min_new_tokens is None and config.min_length:
            config.min_new_tokens = max(config.min_length - width, 0) or None
        for name in _TOKEN_SETTINGS:
            setattr(config, name, None)
        config.max_length = config.min_length = None
        config.eos_token_id, config.pad_token_id = ends or None, padding
        config.return_dict_in_generate = False
        return config

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Before samples become beams, `generate` decides the routing, on the prompt and once for all steps.

        Prompts that are padded on the right are padded on the left from here on: a sample then answers as it
        would alone, which transformers does not give with padding between prompt and answer.
        """
        if input_ids is not None and model_kwargs.get("past_key_values") is None:
            input_ids = _pad_left(input_ids, model_kwargs)
            if model_kwargs.get("routing") is None:
                model_kwargs["routing"] = self.route(input_ids, model_kwargs.get("attention_mask"))
        expand: Any = GenerationMixin._expand_inputs_for_generation
        return expand(self, expand_size, is_encoder_decoder, input_ids, **model_kwargs)  # type: ignore[no-any-return]

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        """Every expert prepares its own cache: depth, heads and sliding windows differ."""
        prepare: Any = GenerationMixin._prepare_cache_for_generation
        settings = (generation_mode, batch_size, max_cache_length)
        if generation_config.use_cache is False or model_kwargs.get("past_key_values") is not None:
            prepare(self, generation_config, model_kwargs, *settings)
            return
        caches = []
        for expert in self.experts:
            own: dict[str, Any] = {}
            expert._prepare_cache_for_generation(generation_config, own, *settings)  # type: ignore[operator]
            caches.append(own.get("past_key_values"))
        model_kwargs["past_key_values"] = MixtureCache(model_kwargs["routing"], caches)


@contextmanager
def _head_inputs(expert: Any) -> Iterator[list[Tensor]]:
    """What the expert's head reads inside the `with`: the last states, samples x tokens x width."""
    seen: list[Tensor] = []
    handle = expert.get_output_embeddings().register_forward_pre_hook(lambda head, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()


def _pad_left(input_ids: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
    mask = model_kwargs.get("attention_mask")
    if mask is None or mask.shape != input_ids.shape:
        return input_ids
    order = mask.long().argsort(dim=-1, stable=True)
    for name in ("attention_mask", "position_ids"):
        if model_kwargs.get(name) is not None:
            model_kwargs[name] = model_kwargs[name].gather(-1, order)
    return input_ids.gather(-1, order)


def _without(kwargs: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


def _rows(value: Any, rows: Tensor, samples: int) -> Any:
    is_batch = isinstance(value, Tensor) and value.dim() > 0 and len(value) == samples
    return value[rows.to(value.device)] if is_batch else value


def _ends(token: Any) -> list[int]:
    return list(token) if isinstance(token, list) else [] if token is None else [int(token)]


def _padding(settings: GenerationConfig) -> int:
    known = [settings.pad_token_id, *_ends(settings.eos_token_id)]
    return next((int(token) for token in known if token is not None), 0)


def _mask_of(input_ids: Tensor, settings: GenerationConfig) -> Tensor:
    """As transformers guesses it: padding is masked, unless it could be an end."""
    padding = settings.pad_token_id
    if padding is None or padding in _ends(settings.eos_token_id):
        return torch.ones_like(input_ids)
    return input_ids.ne(padding).long()


def _until(tokens: list[int], ends: list[int], *, finished: bool) -> list[int]:
    """Up to the first end; an answer that its expert ended ends with one."""
    place = next((place for place, token in enumerate(tokens) if token in ends), None)
    if place is not None:
        return tokens[: place + 1]
    return [*tokens, *ends[:1]] if finished else tokens


def _reading_device(expert: Any, otherwise: torch.device) -> torch.device:
    device: torch.device = expert.get_input_embeddings().weight.device
    # An offloaded expert brings its inputs where they belong.
    return otherwise if device.type == "meta" else device


def _batch(prompts: list[list[int]], padding: int, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
    """Prompts padded on the left, with their mask."""
    width = max(map(len, prompts))
    ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, {"attention_mask": mask}


def _joined(input_ids: Tensor, answers: list[list[list[int]]], padding: int) -> Tensor:
    """Each prompt with each of its answers, padded on the right."""
    width = max(len(answer) for several in answers for answer in several)
    rows = [
        torch.cat([prompt, prompt.new_tensor(answer + [padding] * (width - len(answer)))])
        for prompt, several in zip(input_ids, answers, strict=True)
        for answer in several
    ]
    return torch.stack(rows)


GlueModelMixtureConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
GlueModelMixtureForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]
