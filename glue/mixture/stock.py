"""Stock architectures whose layers hold several MLPs, and how dense models become theirs. Reads no weights.

Mixtral for Llama and Mistral, Qwen2-MoE for Qwen2, Qwen3-MoE for Qwen3: transformers, vLLM and llama.cpp load
them as they are. All route each token, by a softmax over all experts of which the k largest are renormalised.
Qwen2-MoE is also for Llama and Mistral with an expert that every token asks, weighed by a gate.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from transformers import MixtralConfig, PreTrainedConfig, Qwen2MoeConfig, Qwen3MoeConfig

from glue.checkpoints.architecture import architecture_of

# Qwen2-MoE has a shared expert that every token asks; one that nobody gave is silent, and small.
_SILENT_SIZE = 256
_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True)
class Wanted:
    """What a mixture needs of an architecture: the numbers, and whether a gate weighs shared experts."""

    experts: int
    top_k: int
    dense_layers: int = 0
    shared: int = 0
    gated: bool = False


@dataclass(frozen=True)
class StockTarget:
    """One stock architecture: its config class, the names that its config gives to our numbers, its tensor names.

    `expert`, `shared`, `gate` and `shared_gate` match stored names, with groups for layer, expert and part; `parts`
    names the dense model's part; tensors that match `silent` are zero where no model has them. `dense_layers` is the
    key that lists layers without experts, `shared_size` that of the width of a shared expert.
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
    shared_size: str | None = None
    shared: re.Pattern[str] = _NOTHING
    shared_gate: re.Pattern[str] = _NOTHING
    silent: re.Pattern[str] = _NOTHING

    def config_for(self, dense: PreTrainedConfig, wanted: Wanted, dtype: str) -> PreTrainedConfig:
        """The config of a mixture of models with the config `dense`."""
        # Qwen's mixtures read head_dim without declaring it.
        known = {field.name for field in fields(self.config)} | {"head_dim"}
        kept = {key: value for key, value in dense.to_dict().items() if key in known}
        ours: dict[str, Any] = {self.expert_count: wanted.experts, "num_experts_per_tok": wanted.top_k}
        if self.expert_size:
            ours[self.expert_size] = dense.intermediate_size
        if self.shared_size:
            ours[self.shared_size] = dense.intermediate_size if wanted.shared else _SILENT_SIZE
        if self.dense_layers:
            ours[self.dense_layers] = list(range(wanted.dense_layers))
        names = {"architectures": [self.architecture], "dtype": dtype, "transformers_version": None}
        return self.config(**{**kept, **ours, **self.settings, **names})

    def lacks(self, dense: PreTrainedConfig, tensors: Collection[str], wanted: Wanted) -> str | None:
        """Why models with this config and these tensors cannot become such a mixture; none where they can."""
        if wanted.dense_layers and self.dense_layers is None:
            return f"{self.architecture} has experts in every layer"
        if wanted.shared and self.shared_size is None:
            return f"{self.architecture} has no shared experts"
        if wanted.shared > 1:
            return f"{self.architecture} has one shared expert"
        if wanted.shared and not wanted.gated:
            return f"{self.architecture} weighs its shared expert by a gate"
        if getattr(dense, "use_sliding_window", False):
            return f"{self.architecture} slides its window in other layers than {dense.model_type}"
        if self is QWEN2_MOE and dense.model_type != "qwen2" and getattr(dense, "sliding_window", None):
            return f"{self.architecture} has no window for all layers"
        shapes = architecture_of(self.config_for(dense, wanted, "float32").to_dict()).shapes
        lost = sorted(set(tensors) - {self.source(name) or name for name in shapes})
        return f"{self.architecture} has no place for {lost[0]}" if lost else None

    def source(self, name: str) -> str | None:
        """The dense model's tensor that becomes a stored expert's; none where the name is not an expert's."""
        found = self.expert.fullmatch(name)
        if found is None:
            return None
        return f"model.layers.{found['layer']}.mlp.{self.parts[found['part']]}.weight"


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
    settings=_RENORMALISED,
    expert_count="num_experts",
    expert_size="moe_intermediate_size",
    dense_layers="mlp_only_layers",
    shared_size="shared_expert_intermediate_size",
    shared=re.compile(r"model\.layers\.(?P<layer>\d+)\.mlp\.shared_expert\.(?P<part>\w+)\.weight"),
    shared_gate=re.compile(r"model\.layers\.(?P<layer>\d+)\.mlp\.shared_expert_gate\.weight"),
    silent=re.compile(r"model\.layers\.\d+\.(mlp\.shared_expert(_gate|\.\w+)\.weight|self_attn\.[qkv]_proj\.bias)"),
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
_OF_LLAMA = (MIXTRAL, QWEN2_MOE)
_TARGETS = {"llama": _OF_LLAMA, "mistral": _OF_LLAMA, "qwen2": (QWEN2_MOE,), "qwen3": (QWEN3_MOE,)}

# mergekit-moe's names; the beginning of one is enough.
_NAMES = {"mixtral": MIXTRAL, "qwen moe": QWEN2_MOE, "qwen3 moe": QWEN3_MOE}


def targets_named(name: str) -> tuple[StockTarget, ...]:
    """The stock architectures that mergekit-moe would mean by that name."""
    return tuple(target for full, target in _NAMES.items() if full.startswith(name.lower()))


def stock_target(
    dense: PreTrainedConfig, tensors: Collection[str], wanted: Wanted, among: Collection[StockTarget] | None = None
) -> StockTarget | str:
    """The stock architecture that computes a mixture of such models, or why there is none; `among` leaves a choice."""
    candidates = [each for each in _TARGETS.get(dense.model_type, ()) if among is None or each in among]
    reasons = [(each, each.lacks(dense, tensors, wanted)) for each in candidates]
    fitting = next((each for each, reason in reasons if reason is None), None)
    if fitting is not None:
        return fitting
    told = [reason for _, reason in reasons if reason]
    return told[0] if told else f"no stock mixture exists for {dense.model_type} experts"
