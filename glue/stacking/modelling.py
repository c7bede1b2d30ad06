"""The modelling file of stacks of different architectures. Knows no job."""

from pathlib import Path

from glue.checkpoints.modelling import Modelling
from glue.merging.trial import run_once
from glue.references.folders import read_config
from glue.stacking.modeling_glue_stack import GlueStackConfig, GlueStackForCausalLM

STACK = Modelling(GlueStackConfig, GlueStackForCausalLM)


def run_stack_once(folder: Path) -> None:
    """Load a finished stack, by transformers alone or through our class, and let it read a few tokens.

    Raises:
        IncompatibleModelsError: tensors are missing or left over, or the logits are not finite.
    """
    ours = read_config(folder).get("model_type") == STACK.config.model_type
    run_once(folder, *([STACK.model] if ours else []))
