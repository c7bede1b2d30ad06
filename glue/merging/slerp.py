"""SLERP: along the great circle from one model to another, tensor by tensor.

Source: Shoemake, Animating rotation with quaternion curves (1985), as mergekit applies it to weights: the
angle is that of the normalised tensors, the coefficients are applied to the tensors as they are. Nearly
parallel or opposite tensors are interpolated on the line.
"""

import math

from glue.merging.blocks import Kernel
from glue.merging.gram import gram, weighted_sum
from glue.merging.registry import BaseUse, NoParameters, Operands, merge_method
from glue.specs.base import Number, Spec

PARALLEL = 0.9995
TINY_NORM = 1e-8


class SlerpOptions(Spec):
    """`t` is the way from the first input, 0, to the second, 1."""

    t: Number


@merge_method(
    "slerp",
    options=SlerpOptions,
    per_input=NoParameters,
    base=BaseUse.NONE,
    fewest=2,
    most=2,
    starts_at_base=True,
)
def slerp(operands: Operands[SlerpOptions, NoParameters]) -> Kernel:
    """sin((1-t) th)/sin th x_1 + sin(t th)/sin th x_2, th the angle between x_1 and x_2."""
    products = gram(operands.inputs, None, operands.grid)
    lengths = [math.sqrt(float(products[i, i])) for i in range(2)]
    scale = math.prod(length if length > TINY_NORM else 1.0 for length in lengths)
    cosine = max(-1.0, min(1.0, float(products[0, 1]) / scale))
    return weighted_sum(operands.inputs, arc_weights(operands.options.t, cosine, PARALLEL), None, 0)


def arc_weights(t: float, cosine: float, parallel: float) -> tuple[float, float]:
    """The coefficients of both ends; those of the straight line where |cosine| is above `parallel`."""
    if abs(cosine) > parallel:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
