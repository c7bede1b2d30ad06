"""The tensors through which a layer speaks: zero them and it adds nothing to its input. Knows names, no values."""

import re
from collections.abc import Sequence

from glue.references.reading import refusal
from glue.specs.projections import ATTENTION_OUTPUTS, MLP_OUTPUTS

_ATTENTION = re.compile(
    rf"\.(self_attn|self_attention|attention|attn)\.({'|'.join(ATTENTION_OUTPUTS)})\.(weight|bias)$"
)
_MLP = re.compile(rf"\.({'|'.join(MLP_OUTPUTS)})\.(weight|bias)$")


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
