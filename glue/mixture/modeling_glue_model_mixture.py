"""A mixture of whole causal language models: a router reads the prompt and picks the expert that answers it.

This file travels with the checkpoint and needs torch and transformers, nothing else. Every expert keeps its own
architecture, configuration, embedding, final norm and head; all share one tokenizer. The router is linear, or two
linear layers with a ReLU between them, on the mean embedding of the prompt's unmasked tokens (Model-GLUE, arXiv
2410.05357: model level, sample input), so routing depends neither on padding nor on the other samples of a batch.
It is decided once for a sample and kept for the whole generation.

`routing` is a float tensor, samples x experts: each expert's weight for each sample, 0 for those not asked. With
one expert a sample the logits are exactly that expert's. With several they are the logarithm of the weighted
mean of the experts' probabilities.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast


class GlueModelMixtureConfig(PreTrainedConfig):
    """The experts' own configurations, in order, and the router's shape; without an inner size it is linear."""

    model_type = "glue_model_mixture"

    experts: list[dict[str, Any]] | None = None
    expert_names: list[str] | None = None
    experts_per_token: int = 1
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


@dataclass
class GlueModelMixtureOutput(CausalLMOutputWithPast):
    """`logits` are samples x tokens x vocabulary; `routing` and `router_logits` are samples x experts."""

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
    _no_split_modules = ["SampleRouter"]
    _skip_keys_device_placement = ["past_key_values"]
    # A half-precision router would send borderline samples elsewhere.
    _keep_in_fp32_modules_strict = {"sample_router"}

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
        self.sample_router = SampleRouter(config)
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

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError("every expert has its own embedding: experts[i].get_input_embeddings()")

    @torch.no_grad()
    def route(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The routing of prompts: samples x experts, the k largest of the softmax renormalised, ties to the first."""
        return self._choose(self.sample_router(input_ids, attention_mask))

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
        """
        router_logits = None
        if past_key_values is None:
            if routing is None:
                router_logits = self.sample_router(input_ids, attention_mask)
                routing = self._choose(router_logits)
            past_key_values = MixtureCache(routing, [None] * len(self.experts))
        elif not isinstance(past_key_values, MixtureCache):
            raise TypeError("every expert keeps its own cache: pass one that this model returned, or none")
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        if position_ids is not None:
            position_ids = position_ids.expand(len(input_ids), -1)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        given = {name: value for name, value in inputs.items() if value is not None}
        logits = self._run_experts(given, past_key_values, use_cache, logits_to_keep)
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

    def _ask(
        self,
        index: int,
        inputs: dict[str, Tensor],
        cache: MixtureCache,
        use_cache: bool | None,
        logits_to_keep: int | Tensor,
    ) -> Tensor:
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
        logits = output.logits
        if "logits_to_keep" not in accepted:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = logits[:, kept]
        # Experts whose vocabulary is padded less never say the rows that they lack.
        missing = self.config.vocab_size - logits.shape[-1]
        return functional.pad(logits, (0, missing), value=torch.finfo(logits.dtype).min) if missing else logits

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


def _pad_left(input_ids: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
    mask = model_kwargs.get("attention_mask")
    if mask is None or mask.shape != input_ids.shape:
        return input_ids
    order = mask.long().argsort(dim=-1, stable=True)
    for name in ("attention_mask", "position_ids"):
        if model_kwargs.get(name) is not None:
            model_kwargs[name] = model_kwargs[name].gather(-1, order)
    return input_ids.gather(-1, order)


GlueModelMixtureConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
GlueModelMixtureForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]
