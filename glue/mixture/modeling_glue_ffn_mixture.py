"""A mixture of MLPs inside a stock model: every layer holds the MLP of each expert, and a router weighs them.

This file travels with the checkpoint and needs torch and transformers, nothing else. Everything but the MLPs is
shared. A router is linear, or two linear layers with a ReLU between them, on what enters its layer's MLPs: on each
token (`GlueFfnMixture...`), or on the mean over the prompt's unmasked tokens (`GlueFfnSampleMixture...`), as in
Model-GLUE (arXiv 2410.05357: FFN level, token or sample input). Of the softmax over the experts the k largest are
kept and renormalised. The bottom `dense_layers` layers have no experts (hybrid). Shared experts answer every token
beside those that are chosen: as they are, or weighed by a sigmoid as in Qwen2-MoE.

With sample input, `routing` is a float tensor, samples x decisions x experts: each expert's weight for each sample
in each routed layer, 0 for those not asked. It is decided on the prompt once and kept for the whole generation.
"""

import copy
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

MLP_NAMES = ("mlp", "feed_forward", "ffn")


class GlueFfnMixtureConfig(PreTrainedConfig):
    """The configuration that all experts share, and how tokens are routed through their MLPs."""

    model_type = "glue_ffn_mixture"

    trunk: dict[str, Any] | None = None
    expert_names: list[str] | None = None
    experts_per_token: int = 2
    dense_layers: int = 0
    router_inner_size: int = 0
    shared_experts: int = 0
    shared_experts_are_gated: bool = False
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


class GlueFfnSampleMixtureConfig(GlueFfnMixtureConfig):
    """The same where a whole sample is routed."""

    model_type = "glue_ffn_sample_mixture"


@dataclass
class GlueFfnMixtureOutput(CausalLMOutputWithPast):
    """`logits` are samples x tokens x vocabulary.

    `router_logits` has for each routed layer tokens x experts (all samples' tokens, one after the other), or with
    sample input samples x experts; `routing` is samples x decisions x experts, with sample input only.
    """

    routing: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


def pool_states(states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The mean state of each sample's unmasked tokens: samples x hidden, float32.

    `states` is samples x tokens x hidden. Each sample is summed on its own, so that padding and batch mates do
    not change the sum.
    """
    masks = states.new_ones(states.shape[:2]) if attention_mask is None else attention_mask.to(states.device)
    kept = [state[mask.bool()] for state, mask in zip(states, masks, strict=True)]
    return torch.stack([each.float().sum(0) / max(len(each), 1) for each in kept])


@dataclass
class _Call:
    """One pass through the layers: the mask of the tokens given, a routing that was given, the logits so far."""

    attention_mask: Tensor | None
    routing: Tensor | None = None
    router_logits: dict[int, Tensor] = field(default_factory=dict)
    decisions: dict[int, Tensor] = field(default_factory=dict)


# MLPs are called by the stock layers, which pass on no argument of ours.
_CALL: ContextVar[_Call] = ContextVar("glue_ffn_mixture_call")


def _inside(call: _Call, function: Callable[..., Any], *args: Any) -> Any:
    token = _CALL.set(call)
    try:
        return function(*args)
    finally:
        _CALL.reset(token)


class FfnTokenRouter(nn.Module):
    """Logits over the experts: W x, or W relu(V x + b), where x is what is routed - centre, in float32."""

    centre: Tensor

    def __init__(self, hidden: int, inner: int, experts: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, inner) if inner else None
        self.gate = nn.Linear(inner or hidden, experts, bias=False)
        # A buffer: loading makes every parameter trainable, and the centre stays as it is.
        self.register_buffer("centre", torch.zeros(hidden))

    def forward(self, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Samples x tokens x hidden to tokens x experts, one sample's tokens after the other's."""
        with torch.autocast(states.device.type, enabled=False):
            features = states.reshape(-1, states.shape[-1]).float() - self.centre
            logits: Tensor = self.gate(features if self.inner is None else functional.relu(self.inner(features)))
            return logits


class FfnSampleRouter(FfnTokenRouter):
    """The same for whole samples, on the mean state of their unmasked tokens."""

    def forward(self, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Samples x tokens x hidden to samples x experts."""
        features = pool_states(states, attention_mask) - self.centre
        return torch.stack([self._logits(feature) for feature in features])

    def _logits(self, feature: Tensor) -> Tensor:
        # Of one sample, as a matrix product may round differently for another batch size; and as sums of products,
        # which autocast leaves in float32.
        if self.inner is not None:
            feature = functional.relu((self.inner.weight * feature).sum(-1) + self.inner.bias)
        return (self.gate.weight * feature).sum(-1)


class MlpMixture(nn.Module):
    """Stands where an MLP stood; tokens pass through the MLPs of their experts alone."""

    def __init__(self, config: GlueFfnMixtureConfig, mlp: nn.Module, hidden: int, decision: int) -> None:
        super().__init__()
        count = len(config.expert_names or [])
        self.routes_samples = isinstance(config, GlueFfnSampleMixtureConfig)
        self.decision = decision
        self.experts_per_token = config.experts_per_token
        # How often each expert was asked since loading: by unmasked tokens, or by samples when they are routed.
        self.expert_usage = [0] * count
        shared = [copy.deepcopy(mlp) for _ in range(config.shared_experts)]
        self.experts = nn.ModuleList([mlp, *(copy.deepcopy(mlp) for _ in range(count - 1))])
        self.shared_experts = nn.ModuleList(shared)
        gated = config.shared_experts and config.shared_experts_are_gated
        self.shared_gate = nn.Linear(hidden, config.shared_experts, bias=False) if gated else None
        router = FfnSampleRouter if self.routes_samples else FfnTokenRouter
        self.ffn_router = router(hidden, config.router_inner_size, count)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Samples x tokens x hidden, in and out."""
        weights = self._weights(hidden_states)
        rows = hidden_states if self.routes_samples else hidden_states.reshape(1, -1, hidden_states.shape[-1])[0]
        answer = self._mixed(rows, weights.to(rows.device)).reshape(hidden_states.shape)
        for index, expert in enumerate(self.shared_experts):
            shared = expert(hidden_states)
            if self.shared_gate is not None:
                shared = self.shared_gate(hidden_states)[..., index : index + 1].sigmoid() * shared
            answer = answer + shared
        return answer

    def _mixed(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean of the experts' answers to each row, a token or a sample's tokens."""
        answer: Tensor | None = None
        for expert, asked in enumerate(weights.unbind(-1)):
            chosen = asked.nonzero().squeeze(-1)
            if len(chosen) == 0:
                continue
            everybody = len(chosen) == len(rows)
            part = self.experts[expert](rows if everybody else rows[chosen])
            if everybody and self.experts_per_token == 1:
                return part  # type: ignore[no-any-return]
            share = asked[chosen].to(part.dtype).reshape(-1, *[1] * (part.ndim - 1))
            if answer is None:
                answer = part.new_zeros(rows.shape)
            answer = answer.index_add(0, chosen, part * share)
        assert answer is not None, "a batch has at least one token, and a token at least one expert"
        return answer

    def _weights(self, hidden_states: Tensor) -> Tensor:
        """Each row's weight for each expert: rows x experts."""
        call = _CALL.get()
        if call.routing is not None:
            return call.routing[:, self.decision]
        logits = self.ffn_router(hidden_states, call.attention_mask)
        # Once more in the backward pass, where layers are computed again instead of kept.
        again = self.decision in call.decisions
        call.router_logits[self.decision] = logits
        call.decisions[self.decision] = self._chosen(logits, None if again else call.attention_mask, count=not again)
        return call.decisions[self.decision]

    def _chosen(self, router_logits: Tensor, attention_mask: Tensor | None, *, count: bool) -> Tensor:
        probabilities = router_logits.softmax(-1)
        order = probabilities.sort(dim=-1, descending=True, stable=True).indices
        chosen = torch.zeros_like(probabilities).scatter(-1, order[:, : self.experts_per_token], 1.0)
        if count:
            real = chosen
            if attention_mask is not None and not self.routes_samples:
                real = chosen * attention_mask.to(chosen).reshape(-1, 1)
            asked = real.sum(0).long().tolist()
            self.expert_usage = [before + now for before, now in zip(self.expert_usage, asked, strict=True)]
        kept = probabilities * chosen
        return kept / kept.sum(-1, keepdim=True)


def layers_of(model: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    """Name and list of a model's decoder layers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ValueError(f"{type(model).__name__} has no list of {count} layers")


def mlp_name(layer: nn.Module) -> str:
    """The name of a decoder layer's MLP, which takes states and nothing else."""
    for name in MLP_NAMES:
        mlp = getattr(layer, name, None)
        if isinstance(mlp, nn.Module):
            required = inspect.signature(mlp.forward).parameters.values()
            if sum(each.default is each.empty for each in required) == 1:
                return name
    raise ValueError(f"{type(layer).__name__} has no MLP that takes states alone")


class GlueFfnMixtureForCausalLM(PreTrainedModel, GenerationMixin):
    """A stock model whose MLPs are mixtures, with the stock model's own cache. Tokens are routed."""

    config: GlueFfnMixtureConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["MlpMixture"]
    _skip_keys_device_placement = ["past_key_values"]
    # A half-precision router would send borderline tokens elsewhere.
    _keep_in_fp32_modules_strict = {"ffn_router"}

    def __init__(self, config: GlueFfnMixtureConfig) -> None:
        # None lets the architecture choose; the superclass would fill in a choice.
        attention = config._attn_implementation
        super().__init__(config)
        settings = {"attn_implementation": attention, "dtype": torch.get_default_dtype()}
        self.trunk = AutoModelForCausalLM.from_config(config.trunk_config(), **settings)
        _, layers = layers_of(self.trunk, config.num_hidden_layers)
        hidden = self.trunk.config.hidden_size
        for decision, layer in enumerate(list(layers)[config.dense_layers :]):
            name = mlp_name(layer)
            setattr(layer, name, MlpMixture(config, getattr(layer, name), hidden, decision))
        parameters = inspect.signature(self.trunk.forward).parameters
        self._accepted = frozenset(parameters)
        self._takes_more = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        self.supports_gradient_checkpointing = self.trunk.supports_gradient_checkpointing
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.trunk.get_input_embeddings()
        return embeddings

    @property
    def expert_usage(self) -> list[list[int]]:
        """For each routed layer, how often each expert was asked since loading."""
        return [module.expert_usage for module in self.modules() if isinstance(module, MlpMixture)]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        routing: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> GlueFfnMixtureOutput | tuple[Any, ...]:
        """Run each token through its experts; `input_ids` and `labels` are samples x tokens.

        Without `position_ids` the mask is counted, so that padding on the left shifts nothing. With sample input
        `routing` decides, else a cache continues with the routing that filled it, else the unmasked tokens given
        decide.

        Raises:
            ValueError: a routing is given where tokens are routed, or a cache holds tokens and nobody knows how they
                were routed.
        """
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
            "logits_to_keep": logits_to_keep,
        }
        call = _Call(_mask_of(input_ids, attention_mask), self._routing(routing, past_key_values))
        output = self._run(call, {name: value for name, value in inputs.items() if value is not None})
        loss = None
        if labels is not None:
            vocabulary = self.config.vocab_size
            loss = self.loss_function(logits=output.logits, labels=labels, vocab_size=vocabulary, **kwargs)
        shown = self.config.output_router_logits if output_router_logits is None else output_router_logits
        answer = GlueFfnMixtureOutput(
            loss=loss,
            logits=output.logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            routing=self._remembered(call, input_ids, output.past_key_values),
            router_logits=tuple(call.router_logits.values()) if shown else None,
        )
        wanted = self.config.return_dict if return_dict is None else return_dict
        return answer if wanted else answer.to_tuple()

    def _routing(self, routing: Tensor | None, past_key_values: Cache | None) -> Tensor | None:
        if routing is not None:
            raise ValueError("every token is routed by itself: routing= is for mixtures with sample input")
        return None

    def _remembered(self, call: _Call, input_ids: Tensor, past_key_values: Cache | None) -> Tensor | None:
        return None

    def _run(self, call: _Call, inputs: dict[str, Any]) -> Any:
        given = {name: value for name, value in inputs.items() if self._takes_more or name in self._accepted}
        if "logits_to_keep" not in self._accepted:
            given.pop("logits_to_keep", None)
        output = _inside(call, partial(self.trunk, **given))
        if "logits_to_keep" not in self._accepted:
            kept = inputs["logits_to_keep"]
            output.logits = output.logits[:, slice(-kept, None) if isinstance(kept, int) else kept]
        return output

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, *args: Any, **kwargs: Any
    ) -> None:
        # The backward pass computes layers again when the forward pass is over: each then finds its call again.
        def remembering(function: Callable[..., Any], *inputs: Any) -> Any:
            return gradient_checkpointing_func(partial(_inside, _CALL.get(), function), *inputs)

        super()._set_gradient_checkpointing(enable, remembering, *args, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *settings: Any, **named: Any
    ) -> Any:
        """The architecture prepares its own kind of cache."""
        return self.trunk._prepare_cache_for_generation(generation_config, model_kwargs, *settings, **named)


class GlueFfnSampleMixtureForCausalLM(GlueFfnMixtureForCausalLM):
    """The same where whole samples are routed, once for a sample in each layer. A cache remembers the routing."""

    config: GlueFfnSampleMixtureConfig

    @torch.no_grad()
    def route(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The routing of prompts: samples x decisions x experts. Costs a pass through the layers."""
        output = self(input_ids, attention_mask, use_cache=False, logits_to_keep=1)
        routing: Tensor = output.routing
        return routing

    def _routing(self, routing: Tensor | None, past_key_values: Cache | None) -> Tensor | None:
        if routing is None and past_key_values is not None:
            routing = getattr(past_key_values, "routing", None)
            if routing is None and past_key_values.get_seq_length() > 0:
                raise ValueError("this cache does not know its routing: pass routing=, as the first call gave it")
        return routing

    def _remembered(self, call: _Call, input_ids: Tensor, past_key_values: Cache | None) -> Tensor:
        decided = [decision.to(input_ids.device) for decision in call.decisions.values()]
        none = input_ids.new_zeros((len(input_ids), 0, len(self.config.expert_names or [])), dtype=torch.float32)
        routing = call.routing
        if routing is None:
            routing = torch.stack(decided, dim=1) if decided else none
        if past_key_values is not None:
            past_key_values.routing = routing  # type: ignore[attr-defined]
        return routing

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


def _mask_of(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """The part of a mask that speaks of the tokens given; none where a mask says more than which are padding."""
    if attention_mask is None or attention_mask.ndim != 2:
        return None
    return attention_mask[:, -input_ids.shape[1] :]


def _pad_left(input_ids: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
    mask = model_kwargs.get("attention_mask")
    if mask is None or mask.shape != input_ids.shape:
        return input_ids
    order = mask.long().argsort(dim=-1, stable=True)
    for name in ("attention_mask", "position_ids"):
        if model_kwargs.get(name) is not None:
            model_kwargs[name] = model_kwargs[name].gather(-1, order)
    return input_ids.gather(-1, order)


GlueFfnMixtureConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
GlueFfnMixtureForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]
GlueFfnSampleMixtureConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
GlueFfnSampleMixtureForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]
