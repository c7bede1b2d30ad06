"""The modelling files of ours that travel with checkpoints, one a level. Knows no folder."""

import inspect
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from glue.mixture.modeling_glue_block_mixture import GlueBlockMixtureConfig, GlueBlockMixtureForCausalLM
from glue.mixture.modeling_glue_model_mixture import GlueModelMixtureConfig, GlueModelMixtureForCausalLM


@dataclass(frozen=True)
class Modelling:
    """The two classes of one self-contained modelling file."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]

    @property
    def file(self) -> str:
        """The file's name, here and in a checkpoint."""
        return f"{self._module}.py"

    def source(self) -> bytes:
        """The file as it travels."""
        return Path(inspect.getfile(self.model)).read_bytes()

    def auto_map(self) -> dict[str, str]:
        """Where transformers finds the classes in a checkpoint's folder."""
        return {
            "AutoConfig": f"{self._module}.{self.config.__name__}",
            "AutoModelForCausalLM": f"{self._module}.{self.model.__name__}",
        }

    @property
    def _module(self) -> str:
        return self.model.__module__.rsplit(".", 1)[-1]


MODEL_LEVEL = Modelling(GlueModelMixtureConfig, GlueModelMixtureForCausalLM)
BLOCK_LEVEL = Modelling(GlueBlockMixtureConfig, GlueBlockMixtureForCausalLM)

_OURS = {str(each.config.model_type): each for each in (MODEL_LEVEL, BLOCK_LEVEL)}


def modelling_of(model_type: object) -> Modelling | None:
    """The modelling file for a config's `model_type`; none where it is not one of ours."""
    return _OURS.get(str(model_type))
