"""Tensor names and the layers they belong to, read off the names alone. Knows no list of architectures."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from glue.specs.errors import IncompatibleModelsError

# The first number between dots counts layers; a second one, such as an expert's, is part of the layer.
_IN_A_LAYER = re.compile(r"^(?P<stack>.*?\.)(?P<index>\d+)(?P<rest>\..+)$")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class LayerName:
    """A tensor's name taken apart: `stack` + index + `rest`."""

    stack: str
    index: int
    rest: str

    def at(self, index: int) -> str:
        """The name of the same tensor in another layer."""
        return f"{self.stack}{index}{self.rest}"


def layer_name(name: str) -> LayerName | None:
    """The parts of a name in a layer; none for a tensor outside the layers."""
    found = _IN_A_LAYER.match(name)
    return LayerName(found["stack"], int(found["index"]), found["rest"]) if found else None


def layer_count(config: Mapping[str, Any]) -> int:
    """The number of layers that a config names.

    Raises:
        IncompatibleModelsError: it names none.
    """
    key = count_key(config)
    if key is None:
        raise IncompatibleModelsError("the config does not say how many layers there are; such models cannot be sliced")
    return int(config[key])


def with_layers(config: Mapping[str, Any], layers: Iterable[int]) -> dict[str, Any]:
    """The config of a model made of these layers of the config's model, one entry a layer in lists of that length."""
    chosen = list(layers)
    count = layer_count(config)
    picked = {
        key: [value[layer] for layer in chosen] for key, value in config.items() if is_by_layer(key, value, count)
    }
    return {**config, **picked, str(count_key(config)): len(chosen)}


def is_by_layer(key: str, value: Any, count: int) -> bool:
    """Whether a config's entry lists something for each of `count` layers."""
    lists_others = key == "architectures" or key.endswith(("_token_id", "_token_ids"))
    return isinstance(value, list) and len(value) == count and not lists_others


def count_key(config: Mapping[str, Any]) -> str | None:
    """The key under which a config names its number of layers."""
    return next((key for key in _LAYER_COUNTS if isinstance(config.get(key), int)), None)
