"""The projections through which a layer adds to the residual stream, by the names that architectures give them."""

ATTENTION_OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense", "wo")
MLP_OUTPUTS = ("down_proj", "dense_4h_to_h", "fc_out", "fc2", "c_proj", "w2")

_OUTPUTS = frozenset(ATTENTION_OUTPUTS + MLP_OUTPUTS)


def is_output(tensor: str) -> bool:
    """Whether a tensor of a layer is an output projection's, its bias included."""
    return tensor.split(".")[-2] in _OUTPUTS


def output_filters() -> tuple[str, ...]:
    """Parts of names by which mergekit tells these tensors from a layer's others."""
    # `dense` alone is also a part of the name of GPT-NeoX's first feed-forward projection.
    return tuple(f"attention.{name}." if name == "dense" else f".{name}." for name in sorted(_OUTPUTS))
