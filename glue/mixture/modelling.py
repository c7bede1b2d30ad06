"""The modelling files of ours that travel with checkpoints. Knows no folder."""

from glue.checkpoints.modelling import Modelling
from glue.mixture.modeling_glue_block_mixture import GlueBlockMixtureConfig, GlueBlockMixtureForCausalLM
from glue.mixture.modeling_glue_ffn_mixture import (
    GlueFfnMixtureConfig,
    GlueFfnMixtureForCausalLM,
    GlueFfnSampleMixtureConfig,
    GlueFfnSampleMixtureForCausalLM,
)
from glue.mixture.modeling_glue_model_mixture import GlueModelMixtureConfig, GlueModelMixtureForCausalLM
from glue.stacking.modelling import STACK

__all__ = ["BLOCK_LEVEL", "FFN_LEVEL", "FFN_LEVEL_SAMPLES", "MODEL_LEVEL", "Modelling", "modelling_of"]

MODEL_LEVEL = Modelling(GlueModelMixtureConfig, GlueModelMixtureForCausalLM)
BLOCK_LEVEL = Modelling(GlueBlockMixtureConfig, GlueBlockMixtureForCausalLM)
FFN_LEVEL = Modelling(GlueFfnMixtureConfig, GlueFfnMixtureForCausalLM)
FFN_LEVEL_SAMPLES = Modelling(GlueFfnSampleMixtureConfig, GlueFfnSampleMixtureForCausalLM)

_OURS = {str(each.config.model_type): each for each in (MODEL_LEVEL, BLOCK_LEVEL, FFN_LEVEL, FFN_LEVEL_SAMPLES, STACK)}


def modelling_of(model_type: object) -> Modelling | None:
    """The modelling file for a config's `model_type`; none where it is not one of ours."""
    return _OURS.get(str(model_type))
