"""The tensors through which a layer speaks: zero them and it adds nothing to its input. Knows names, no values."""

import re
from collections.abc import Sequence

from glue.references.reading import refusal

_ATTENTION = re.compile(
    r"\.(self_attn|self_attention|attention|attn)\.(o_proj|out_proj|dense|c_proj|wo)\.(weight|bias)$"
)
_MLP = re.compile(r"\.(down_proj|dense_4h_to_h|fc2|c_proj|fc_out|w2)\.(weight|bias)$")


def output_projections(layer: Sequence[str]) -> frozenset[str]:
    """Of the names of a layer's tensors those that end its attention and its MLP, biases included.

    Raises:
        IncompatibleModelsError: they are not to be found among the names.
    """
    attention = {name for name in layer if _ATTENTION.search(name)}
    mlp = {name for name in layer if _MLP.search(name)} - attention
    if not attention or not mlp:
        lacking = "MLP" if attention else "attention"
        fix = "use depth_upscale or copy_top, or a model with output projections by usual names"
        raise refusal("output_projection", f"no output projection of the {lacking} is known by its name", fix)
    return frozenset(attention | mlp)
