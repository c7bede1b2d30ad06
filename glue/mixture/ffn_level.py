"""Level `ffn` of a mixture file: as which architecture it is stored, how shared experts are asked. Reads no text."""

from glue.mixture.ffn import fitting_target
from glue.mixture.mix_yaml import MixFile
from glue.mixture.sources import ExpertSource
from glue.mixture.stock import QWEN2_MOE, StockTarget, Wanted, targets_named
from glue.references.reading import refusal

_DEEPSEEK = "deepseek moe"


def stored_as(file: MixFile, trunk: ExpertSource) -> StockTarget | str:
    """The stock architecture in which the mixture is stored; else our modelling file is, and this is the reason.

    Raises:
        IncompatibleModelsError: the file names an architecture, and it does not fit.
    """
    if reason := _routed_by_us(file):
        return reason
    if file.architecture and _DEEPSEEK.startswith(file.architecture.lower()):
        return "transformers has no class of its own for DeepSeek MoE"
    gated = shared_are_gated(file, trunk)
    wanted = Wanted(len(file.experts), file.top_k, file.dense_layers, len(file.shared_experts), gated)
    among = targets_named(file.architecture) if file.architecture else None
    found = fitting_target(trunk, wanted, among)
    if isinstance(found, str) and file.architecture:
        raise refusal("architecture", f"{found}, so {file.architecture} does not fit", "leave out architecture")
    return found


def shared_are_gated(file: MixFile, trunk: ExpertSource) -> bool:
    """Whether shared experts are weighed: with prompts, or where gates are drawn and the architecture needs one."""
    if not file.shared_experts:
        return False
    if any(each.positive_prompts for each in file.shared_experts):
        return True
    if not file.draws_gates or len(file.shared_experts) > 1:
        return False
    wanted = Wanted(len(file.experts), file.top_k, file.dense_layers, 1, gated=True)
    named = targets_named(file.architecture) if file.architecture else ()
    # mergekit-moe stores Llama and Mistral with a shared expert as DeepSeek MoE, unless somebody asks for Qwen.
    with trunk.opened() as checkpoint:
        is_qwen = checkpoint.config.get("model_type") == "qwen2"
    return (is_qwen or QWEN2_MOE in named) and fitting_target(trunk, wanted, (QWEN2_MOE,)) is QWEN2_MOE


def _routed_by_us(file: MixFile) -> str | None:
    if file.routes_samples:
        return "stock architectures route tokens, not samples"
    if file.router.type == "mlp":
        return "stock architectures have routers of one layer"
    if file.router.train and not file.texts:
        return "routers of stock architectures have no centre, and routers trained on prompts do"
    return None
