"""A modelling file of ours that travels with a checkpoint. Knows no particular one."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Modelling:
    """The two classes of one self-contained modelling file."""

    config: "type[PreTrainedConfig]"
    model: "type[PreTrainedModel]"

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
