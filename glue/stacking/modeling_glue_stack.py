"""A stack of parts: layers of different architectures and one width, one on top of the other.

This file travels with the checkpoint and needs torch and transformers, nothing else. Each part is a stock model
with some of its layers: the first keeps its embedding, the last its norm and head, those between neither. What
one part gives is what the next one takes for embeddings (Model-GLUE, arXiv 2410.05357, appendix: stacking).
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast


class GlueStackConfig(PreTrainedConfig):
    """The configuration of each part, from bottom to top, with the number of layers that it has in the stack."""

    model_type = "glue_stack"

    parts: list[dict[str, Any]] | None = None
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def part_configs(self) -> list[PreTrainedConfig]:
        """A fresh configuration object for each part."""
        return [AutoConfig.for_model(**part) for part in self.parts or []]


def final_norm(model: PreTrainedModel) -> str:
    """The name of an inner model's last norm: what has parameters beside the embedding and the layers.

    Raises:
        ValueError: there is more than one such module, or none.
    """
    embedding = model.get_input_embeddings()
    layers = [child for child in model.children() if isinstance(child, nn.ModuleList)]
    others = [
        name
        for name, child in model.named_children()
        if child is not embedding and child not in layers and any(True for _ in child.parameters())
    ]
    if len(others) != 1 or len(layers) != 1:
        raise ValueError(f"{type(model).__name__} has more than an embedding, layers and a norm")
    return others[0]


def headless(config: PreTrainedConfig, settings: dict[str, Any]) -> PreTrainedModel:
    """The stock model of a part without its last norm and head."""
    model: PreTrainedModel = AutoModel.from_config(config, **settings)
    setattr(model, final_norm(model), nn.Identity())
    return model


class GlueStackForCausalLM(PreTrainedModel, GenerationMixin):
    """Parts in turn. All layers keep their keys and values in one cache."""

    config: GlueStackConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: GlueStackConfig) -> None:
        # None lets each architecture choose; the superclass would fill in a choice.
        attention = config._attn_implementation
        super().__init__(config)
        settings = {"attn_implementation": attention, "dtype": torch.get_default_dtype()}
        *lower, top = config.part_configs()
        models = [headless(part, settings) for part in lower]
        models.append(AutoModelForCausalLM.from_config(top, **settings))
        for model in models[1:]:
            # They are given states; a weight here would be stored and never read.
            model.set_input_embeddings(nn.Identity())
        self.parts = nn.ModuleList(models)
        self._part_configs = [model.config for model in models]
        self._accepted = [frozenset(inspect.signature(model.forward).parameters) for model in models]
        self._no_split_modules = sorted({name for model in models for name in model._no_split_modules or ()})
        self.supports_gradient_checkpointing = all(model.supports_gradient_checkpointing for model in models)
        self.post_init()  # type: ignore[no-untyped-call]

    def get_input_embeddings(self) -> nn.Module:
        # It stays inside its model, which alone knows how to set up what it scales its rows with.
        bottom: Any = self.parts[0]
        embeddings: nn.Module = bottom.get_input_embeddings()
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Run the parts in turn; `input_ids` and `labels` are samples x tokens.

        Without `position_ids` the mask is counted, so that padding on the left shifts nothing.
        """
        states: Tensor = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is None and (use_cache is None or use_cache):
            past_key_values = self._new_cache()
        if past_key_values is not None and not past_key_values.layers:
            past_key_values.layers.extend(self._new_cache().layers)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -states.shape[1] :]
        inputs = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": past_key_values is not None,
            "logits_to_keep": logits_to_keep,
        }
        logits = self._through_parts(states, inputs, past_key_values)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()

    def _through_parts(self, states: Tensor, inputs: dict[str, Any], cache: Cache | None) -> Tensor:
        first = 0
        for part, accepted, settings in zip(self.parts, self._accepted, self._part_configs, strict=True):
            last = first + settings.num_hidden_layers
            # A part counts its layers from 0 and takes the length of its first one for that of the cache.
            view = None if cache is None else Cache(layers=cache.layers[first:last])
            named = {name: value for name, value in inputs.items() if name in accepted}
            states = part(inputs_embeds=states, past_key_values=view, **named)[0]
            first = last
        kept = inputs["logits_to_keep"]
        if "logits_to_keep" in self._accepted[-1]:
            return states
        return states[:, slice(-kept, None) if isinstance(kept, int) else kept]

    def _new_cache(self) -> Cache:
        return Cache(layers=[layer for part in self._part_configs for layer in DynamicCache(config=part).layers])

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        """One cache with the layers of all parts, each of its architecture's own kind."""
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            if generation_config.cache_implementation not in (None, "dynamic", "dynamic_full"):
                raise ValueError("the parts have caches of different kinds: use a dynamic one")
            model_kwargs["past_key_values"] = self._new_cache()
            return
        prepare: Any = GenerationMixin._prepare_cache_for_generation
        prepare(self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length)


GlueStackConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
GlueStackForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]
