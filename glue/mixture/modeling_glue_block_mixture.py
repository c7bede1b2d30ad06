"""A mixture of decoder layers: every layer holds one layer of each expert, and a router picks for each sample.

This file travels with the checkpoint and needs torch and transformers, nothing else. Embedding, final norm and
head are shared; the experts' layers have one architecture. A router is linear, or two linear layers with a ReLU
between them, on the mean, over the prompt's unmasked tokens, of the states that enter its layer (Model-GLUE, arXiv
2410.05357: block level, sample input). The bottom `dense_layers` layers have no experts (hybrid); with
`decide_once` the first routed layer decides for all above it (the paper's model level over shared embeddings).

`routing` is a float tensor, samples x decisions x experts: each expert's weight for each sample, 0 for those
not asked; one decision a routed layer, or one for all. It is decided on the prompt once for a sample and kept
for the whole generation. With several experts a sample, a layer's output is the weighted mean of theirs.
"""

import copy
import inspect
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
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
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast


class GlueBlockMixtureConfig(PreTrainedConfig):
    """The configuration that all experts' layers share, and how samples are routed through them."""

    model_type = "glue_block_mixture"

    trunk: dict[str, Any] | None = None
    expert_names: list[str] | None = None
    experts_per_token: int = 1
    dense_layers: int = 0
    decide_once: bool = False
    router_inner_size: int = 0
    vocab_size: int = 0
    num_hidden_layers: int = 0
    output_router_logits: bool = False
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def trunk_config(self) -> PreTrainedConfig:
        """A fresh configuration object of the architecture."""
        return AutoConfig.for_model(**(self.trunk or {}))

    def decision_of(self, layer: int) -> int:
        """Which decision a routed layer follows."""
        return 0 if self.decide_once else layer - self.dense_layers


@dataclass
class GlueBlockMixtureOutput(CausalLMOutputWithPast):
    """`logits` are samples x tokens x vocabulary; `routing`, `router_logits` are samples x decisions x experts.

    The routers' logits are there where the routing was decided now and not given.
    """

    routing: Tensor | None = None
    router_logits: Tensor | None = None


def pool_states(states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The mean state of each sample's unmasked tokens: samples x hidden, float32.

    `states` is samples x tokens x hidden. Each sample is summed on its own, so that padding and batch mates do
    not change the sum.
    """
    masks = states.new_ones(states.shape[:2]) if attention_mask is None else attention_mask
    kept = [state[mask.bool()] for state, mask in zip(states, masks, strict=True)]
    return torch.stack([each.float().sum(0) / max(len(each), 1) for each in kept])


def rows_of(routing: Tensor) -> list[Tensor]:
    """For each expert the indices of the samples that ask it, ascending; `routing` is samples x experts."""
    return [weights.nonzero().squeeze(-1) for weights in routing.unbind(-1)]


@dataclass
class _Call:
    """One pass through the layers: the routing that was given, or the decisions so far."""

    routing: Tensor | None
    attention_mask: Tensor | None
    decisions: list[Tensor] = field(default_factory=list)
    router_logits: list[Tensor] = field(default_factory=list)


# Layers are called by the stock model, which passes on no argument of ours.
_CALL: ContextVar[_Call] = ContextVar("glue_block_mixture_call")


class BlockRouter(nn.Module):
    """Logits over the experts for whole samples: W x, or W relu(V x + b), where x is the mean state - centre."""

    centre: Tensor

    def __init__(self, hidden: int, inner: int, experts: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, inner) if inner else None
        self.gate = nn.Linear(inner or hidden, experts, bias=False)
        # A buffer: loading makes every parameter trainable, and the centre stays as it is.
        self.register_buffer("centre", torch.zeros(hidden))

    def forward(self, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Samples x experts, float32."""
        features = pool_states(states, attention_mask) - self.centre
        return torch.stack([self._logits(feature) for feature in features])

    def _logits(self, feature: Tensor) -> Tensor:
        # Of one sample, as a matrix product may round differently for another batch size; and as sums of products,
        # which autocast leaves in float32.
        if self.inner is not None:
            feature = functional.relu((self.inner.weight * feature).sum(-1) + self.inner.bias)
        return (self.gate.weight * feature).sum(-1)


class BlockMixtureLayer(nn.Module):
    """Stands where a decoder layer stood; every sample passes through the layers of its experts alone."""

    def __init__(self, config: GlueBlockMixtureConfig, layer: nn.Module, number: int, hidden: int) -> None:
        super().__init__()
        count = len(config.expert_names or [])
        self.experts = nn.ModuleList([layer, *(copy.deepcopy(layer) for _ in range(count - 1))])
        self.decision = config.decision_of(number)
        self.experts_per_token = config.experts_per_token
        # How often each expert was asked since loading; a sample counts when its routing is decided.
        self.expert_usage = [0] * count
        decides = not config.decide_once or number == config.dense_layers
        self.block_router = BlockRouter(hidden, config.router_inner_size, count) if decides else None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Samples x tokens x hidden, in and out; everything else is passed on, cut to the expert's samples."""
        routing = self._routing(hidden_states)
        rows = rows_of(routing)
        several = sum(map(len, rows)) > len(routing)
        output: Tensor | None = None
        for expert, samples in enumerate(rows):
            if len(samples) == 0:
                continue
            everybody = len(samples) == len(routing)
            answer = self._ask(expert, None if everybody else samples, hidden_states, args, kwargs)
            if everybody and not several:
                return answer
            answer, samples = answer.to(hidden_states.device), samples.to(hidden_states.device)
            if several:
                answer = answer * routing[:, expert].to(answer)[samples, None, None]
            if output is None:
                output = answer.new_zeros((len(routing), *answer.shape[1:]))
            output[samples] += answer
        assert output is not None, "a batch has at least one sample, and a sample at least one expert"
        return output

    def _routing(self, hidden_states: Tensor) -> Tensor:
        call = _CALL.get()
        if call.routing is not None:
            return call.routing[:, self.decision]
        if self.decision == len(call.decisions):
            assert self.block_router is not None, "the first layer of a decision has its router"
            call.router_logits.append(self.block_router(hidden_states, call.attention_mask))
            call.decisions.append(self._choose(call.router_logits[-1]))
        return call.decisions[self.decision]

    def _choose(self, router_logits: Tensor) -> Tensor:
        probabilities = router_logits.softmax(-1)
        order = probabilities.sort(dim=-1, descending=True, stable=True).indices
        chosen = torch.zeros_like(probabilities).scatter(-1, order[:, : self.experts_per_token], 1.0)
        asked = chosen.sum(0).long().tolist()
        self.expert_usage = [before + now for before, now in zip(self.expert_usage, asked, strict=True)]
        kept = probabilities * chosen
        return kept / kept.sum(-1, keepdim=True)

    def _ask(
        self, expert: int, samples: Tensor | None, hidden_states: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        batch = len(hidden_states)

        def cut(value: Any) -> Any:
            if isinstance(value, BlockMixtureCache):
                return value.caches[expert]
            if isinstance(value, tuple):
                return tuple(cut(part) for part in value)
            # What is one row for the whole batch is broadcast and stays.
            if samples is None or not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] != batch:
                return value
            return value[samples.to(value.device)]

        named = {name: cut(value) for name, value in kwargs.items()}
        answer: Tensor | tuple[Tensor, ...] = self.experts[expert](cut(hidden_states), *map(cut, args), **named)
        return answer[0] if isinstance(answer, tuple) else answer


class BlockMixtureCache(Cache):
    """One cache for each expert; in each layer it holds only the samples that are routed to that expert there.

    Dense layers keep all samples in the first expert's cache.
    """

    def __init__(self, config: GlueBlockMixtureConfig, caches: Sequence[Cache], routing: Tensor | None) -> None:
        super().__init__(layers=[])
        self.config = config
        self.caches = list(caches)
        self.routing = routing

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return all(cache.is_croppable for cache in self.caches)

    @property
    def is_initialized(self) -> bool:
        return any(layer.is_initialized for _, _, layer in self._filled())

    @property
    def is_sliding(self) -> list[bool]:
        return self.caches[0].is_sliding

    def __len__(self) -> int:
        return self.config.num_hidden_layers

    def rows(self, layer: int) -> list[Tensor]:
        """The samples of each expert in a layer."""
        assert self.routing is not None, "a cache is filled with a routing"
        if layer < self.config.dense_layers:
            everybody = torch.arange(len(self.routing), device=self.routing.device)
            return [everybody, *(everybody[:0] for _ in self.caches[1:])]
        return rows_of(self.routing[:, self.config.decision_of(layer)])

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Of a dense layer; an expert's layer has its own cache in hand."""
        return self.caches[0].update(key_states, value_states, layer_idx, *args, **kwargs)

    def _filled(self) -> list[tuple[int, int, Any]]:
        """Number, expert and cache of every layer that holds something."""
        return [
            (number, expert, layer)
            for expert, cache in enumerate(self.caches)
            for number, layer in enumerate(cache.layers)
            if getattr(layer, "is_initialized", False)
        ]

    def _holder(self, layer: int) -> Cache:
        holders = (self.caches[expert] for number, expert, _ in self._filled() if number == layer)
        return next(holders, self.caches[0])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._holder(layer_idx).get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._holder(layer_idx).get_mask_sizes(query_length, layer_idx)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self._holder(layer_idx or 0).get_max_length(layer_idx)

    def reset(self) -> None:
        for _, _, layer in self._filled():
            layer.reset()

    def crop(self, tokens_to_remove: int) -> None:
        for _, _, layer in self._filled():
            layer.crop(tokens_to_remove)

    def activate_past_recording(self) -> None:
        for cache in self.caches:
            cache.activate_past_recording()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beams change places; those of one sample share its routing, so nobody changes an expert."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        assert self.routing is not None, "a cache is filled with a routing"
        rows = torch.arange(len(self.routing), device=self.routing.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        assert self.routing is not None, "a cache is filled with a routing"
        indices = indices.to(self.routing.device)
        filled = self._filled()
        layers = sorted({number for number, _, _ in filled})
        before = {number: self.rows(number) for number in layers}
        self.routing = self.routing[indices]
        after = {number: self.rows(number) for number in layers}
        for number, expert, layer in filled:
            # A sample's place inside an expert's cache is its rank among the samples of that expert.
            layer.reorder_cache(torch.searchsorted(before[number][expert], indices[after[number][expert]]))


def layers_of(model: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    """Name and list of a model's decoder layers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ValueError(f"{type(model).__name__} has no list of {count} layers")


class GlueBlockMixtureForCausalLM(PreTrainedModel, GenerationMixin):
    """A stock model whose layers are mixtures. Hidden states and attentions are not returned: rows differ."""

    config: GlueBlockMixtureConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["BlockRouter"]
    _skip_keys_device_placement = ["past_key_values"]
    # A half-precision router would send borderline samples elsewhere.
    _keep_in_fp32_modules_strict = {"block_router"}

    def __init__(self, config: GlueBlockMixtureConfig) -> None:
        # None lets the architecture choose; the superclass would fill in a choice.
        attention = config._attn_implementation
        super().__init__(config)
        settings = {"attn_implementation": attention, "dtype": torch.get_default_dtype()}
        self.trunk = AutoModelForCausalLM.from_config(config.trunk_config(), **settings)
        _, layers = layers_of(self.trunk, config.num_hidden_layers)
        hidden = self.trunk.config.hidden_size
        for number in range(config.dense_layers, config.num_hidden_layers):
            layers[number] = BlockMixtureLayer(config, layers[number], number, hidden)
        self._accepted = frozenset(inspect.signature(self.trunk.forward).parameters)
        self.supports_gradient_checkpointing = self.trunk.supports_gradient_checkpointing
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.trunk.get_input_embeddings()
        return embeddings

    @property
    def expert_usage(self) -> list[list[int]]:
        """For each decision, how often each expert was asked since loading."""
        layers = [module for module in self.modules() if isinstance(module, BlockMixtureLayer)]
        return [layer.expert_usage for layer in layers if layer.block_router is not None]

    @torch.no_grad()
    def route(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The routing of prompts: samples x decisions x experts. Costs a pass through the layers."""
        output = self(input_ids, attention_mask, use_cache=False, logits_to_keep=1)
        routing: Tensor = output.routing
        return routing

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: BlockMixtureCache | None = None,
        routing: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> GlueBlockMixtureOutput | tuple[Any, ...]:
        """Run each sample through its layers; `input_ids` and `labels` are samples x tokens.

        A cache continues with the routing that filled it. Else `routing` decides, and without it the unmasked
        tokens given. Without `position_ids` the mask is counted, so that padding on the left shifts nothing.

        Raises:
            TypeError: the cache is not one that this model or its `generate` made.
        """
        if past_key_values is None and (self.trunk.config.use_cache if use_cache is None else use_cache):
            past_key_values = self._new_cache(routing)
        if past_key_values is not None and not isinstance(past_key_values, BlockMixtureCache):
            raise TypeError("every expert keeps its own cache: pass one that this model returned, or none")
        if past_key_values is not None and past_key_values.routing is not None:
            routing = past_key_values.routing
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": past_key_values is not None,
            "logits_to_keep": logits_to_keep,
        }
        call = _Call(routing, attention_mask)
        logits = self._run(inputs, call)
        routing = _stacked(call.decisions) if routing is None else routing
        if past_key_values is not None:
            past_key_values.routing = routing
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        cache = past_key_values if past_key_values is not None and past_key_values.is_initialized else None
        show = self.config.output_router_logits if output_router_logits is None else output_router_logits
        output = GlueBlockMixtureOutput(
            loss=loss,
            logits=logits,
            past_key_values=cache,
            routing=routing,
            router_logits=_stacked(call.router_logits) if show and call.router_logits else None,
        )
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    def _run(self, inputs: dict[str, Any], call: _Call) -> Tensor:
        token = _CALL.set(call)
        try:
            output = self.trunk(**{name: value for name, value in inputs.items() if name in self._accepted})
        finally:
            _CALL.reset(token)
        logits: Tensor = output.logits
        if "logits_to_keep" in self._accepted:
            return logits
        kept = inputs["logits_to_keep"]
        return logits[:, slice(-kept, None) if isinstance(kept, int) else kept]

    def _new_cache(self, routing: Tensor | None) -> BlockMixtureCache:
        caches = [DynamicCache(config=self.trunk.config) for _ in self.config.expert_names or []]
        return BlockMixtureCache(self.config, caches, routing)

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
        """One cache of the architecture's own kind for each expert."""
        prepare: Any = GenerationMixin._prepare_cache_for_generation
        settings = (generation_mode, batch_size, max_cache_length)
        if generation_config.use_cache is False or model_kwargs.get("past_key_values") is not None:
            prepare(self, generation_config, model_kwargs, *settings)
            return
        caches = []
        for _ in self.config.expert_names or []:
            own: dict[str, Any] = {}
            self.trunk._prepare_cache_for_generation(generation_config, own, *settings)
            caches.append(own["past_key_values"])
        if any(cache.is_compileable for cache in caches):
            raise ValueError("samples take different layers, so a static cache cannot hold them: use a dynamic one")
        model_kwargs["past_key_values"] = BlockMixtureCache(self.config, caches, model_kwargs["routing"])


def _stacked(decisions: Sequence[Tensor]) -> Tensor:
    """Layers may lie on several devices; the first one's is that of all decisions."""
    return torch.stack([each.to(decisions[0].device) for each in decisions], dim=1)


def _pad_left(input_ids: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
    mask = model_kwargs.get("attention_mask")
    if mask is None or mask.shape != input_ids.shape:
        return input_ids
    order = mask.long().argsort(dim=-1, stable=True)
    for name in ("attention_mask", "position_ids"):
        if model_kwargs.get(name) is not None:
            model_kwargs[name] = model_kwargs[name].gather(-1, order)
    return input_ids.gather(-1, order)


GlueBlockMixtureConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
GlueBlockMixtureForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]
