"""Passthrough: one model as it is, perhaps scaled. What stacks of slices are made of."""

from torch import Tensor

from glue.merging.blocks import Block, Kernel
from glue.merging.registry import BaseUse, NoParameters, Operands, merge_method
from glue.specs.base import Number, Spec


class Scaled(Spec):
    """What the input is multiplied with."""

    scale: Number | None = None


@merge_method("passthrough", options=NoParameters, per_input=Scaled, base=BaseUse.NONE, most=1)
def passthrough(operands: Operands[NoParameters, Scaled]) -> Kernel:
    """The input, multiplied with `scale` where it is given."""
    (source,), scale = operands.inputs, operands.each[0].scale

    def kernel(block: Block) -> Tensor:
        value = source.read(block)
        if scale == 0:
            # A product would leave negative zeros.
            return value.zero_()
        return value if scale is None or scale == 1 else value.mul_(scale)

    return kernel
