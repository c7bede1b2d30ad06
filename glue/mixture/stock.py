"""Stock architectures whose layers hold several MLPs, and how dense models become theirs. Reads no weights.

Mixtral for Llama and Mistral, Qwen2-MoE for Qwen2, Qwen3-MoE for Qwen3: transformers, vLLM and llama.cpp load
them as they are. All route each token, by a softmax over all experts of which the k largest are renormalised.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from transformers import MixtralConfig, PreTrainedConfig, Qwen2MoeConfig, Qwen3MoeConfig

from glue.references.reading import refusal

# Qwen2-MoE has a shared expert that every token asks; ours is silent, and as small as common kernels like.
_SILENT_SIZE = 256


@dataclass(frozen=True)
class StockTarget:
    """One stock architecture: its config class, the names that its config gives to our numbers, its tensor names.

    `expert` and `gate` match stored names, with groups for layer, expert and part; `parts` names the dense
    model's part; tensors that match `silent` are zero. `dense_layers` is the key that lists layers without experts.
    """

    config: type[PreTrainedConfig]
    architecture: str
    expert: re.Pattern[str]
    gate: re.Pattern[str]
    parts: Mapping[str, str]
    settings: Mapping[str, Any]
    expert_count: str
    expert_size: str | None = None
    dense_layers: str | None = None
    silent: re.Pattern[str] = re.compile(r"(?!)")

    def config_for(
        self, dense: PreTrainedConfig, experts: int, top_k: int, dense_layers: int, dtype: str
    ) -> PreTrainedConfig:
        """The config of a mixture of models with the config `dense`; the bottom `dense_layers` have no experts.

        Raises:
            IncompatibleModelsError: the architecture has experts in every layer.
        """
        if dense_layers and self.dense_layers is None:
            fix = "use level block, or Qwen models"
            raise refusal("dense_layers", f"{self.architecture} has experts in every layer", fix)
        # Qwen's mixtures read head_dim without declaring it.
        known = {field.name for field in fields(self.config)} | {"head_dim"}
        kept = {key: value for key, value in dense.to_dict().items() if key in known}
        size = {self.expert_size: dense.intermediate_size} if self.expert_size else {}
        counts = {self.expert_count: experts, "num_experts_per_tok": top_k}
        bottom = {self.dense_layers: list(range(dense_layers))} if self.dense_layers else {}
        names = {"architectures": [self.architecture], "dtype": dtype, "transformers_version": None}
        return self.config(**{**kept, **size, **counts, **self.settings, **bottom, **names})


_PARTS = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
_QWEN_EXPERT = re.compile(r"model\.layers\.(?P<layer>\d+)\.mlp\.experts\.(?P<expert>\d+)\.(?P<part>\w+)\.weight")
_QWEN_GATE = re.compile(r"model\.layers\.(?P<layer>\d+)\.mlp\.gate\.weight")
_RENORMALISED: Mapping[str, Any] = {"norm_topk_prob": True, "decoder_sparse_step": 1}

MIXTRAL = StockTarget(
    config=MixtralConfig,
    architecture="MixtralForCausalLM",
    expert=re.compile(
        r"model\.layers\.(?P<layer>\d+)\.block_sparse_moe\.experts\.(?P<expert>\d+)\.(?P<part>\w+)\.weight"
    ),
    gate=re.compile(r"model\.layers\.(?P<layer>\d+)\.block_sparse_moe\.gate\.weight"),
    parts={"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"},
    settings={},
    expert_count="num_local_experts",
)
QWEN2_MOE = StockTarget(
    config=Qwen2MoeConfig,
    architecture="Qwen2MoeForCausalLM",
    expert=_QWEN_EXPERT,
    gate=_QWEN_GATE,
    parts=_PARTS,
    settings={**_RENORMALISED, "shared_expert_intermediate_size": _SILENT_SIZE},
    expert_count="num_experts",
    expert_size="moe_intermediate_size",
    dense_layers="mlp_only_layers",
    silent=re.compile(r"model\.layers\.\d+\.mlp\.shared_expert(_gate|\.\w+)\.weight"),
)
QWEN3_MOE = StockTarget(
    config=Qwen3MoeConfig,
    architecture="Qwen3MoeForCausalLM",
    expert=_QWEN_EXPERT,
    gate=_QWEN_GATE,
    parts=_PARTS,
    settings=_RENORMALISED,
    expert_count="num_experts",
    expert_size="moe_intermediate_size",
    dense_layers="mlp_only_layers",
)
_TARGETS = {"llama": MIXTRAL, "mistral": MIXTRAL, "qwen2": QWEN2_MOE, "qwen3": QWEN3_MOE}


def stock_target(dense: PreTrainedConfig) -> StockTarget:
    """The stock architecture for experts with this config.

    Raises:
        IncompatibleModelsError: there is none that computes the same.
    """
    target = _TARGETS.get(dense.model_type)
    if target is None:
        fix = f"use experts of one of {', '.join(_TARGETS)}, or level model"
        raise refusal("no_stock_mixture", f"no stock mixture exists for {dense.model_type} experts", fix)
    if getattr(dense, "use_sliding_window", False):
        detail = f"the stock mixture for {dense.model_type} slides its window in other layers"
        raise refusal("sliding_window", detail, "use experts without use_sliding_window, or level model")
    return target
