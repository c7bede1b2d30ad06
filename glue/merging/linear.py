"""Linear merge: the weighted sum of the models.

Source: Model soups (arXiv 2203.05482): theta = sum_i alpha_i theta_i / sum_i alpha_i.
"""

from glue.merging.blocks import Kernel
from glue.merging.gram import weighted_sum
from glue.merging.registry import BaseUse, Operands, merge_method
from glue.specs.base import Number, Spec
from glue.specs.errors import InvalidInputError


class LinearOptions(Spec):
    """`normalize` divides by the sum of the weights."""

    normalize: bool = True


class Weighted(Spec):
    """The weight of one input."""

    weight: Number


@merge_method("linear", options=LinearOptions, per_input=Weighted, base=BaseUse.NONE)
def linear(operands: Operands[LinearOptions, Weighted]) -> Kernel:
    """sum_i w_i x_i, divided by sum_i w_i where `normalize` is set.

    Raises:
        InvalidInputError: the weights to be normalised sum to zero.
    """
    weights = [parameters.weight for parameters in operands.each]
    if operands.options.normalize:
        weights = normalized(weights)
    return weighted_sum(operands.inputs, weights, None, 0)


def normalized(weights: list[float]) -> list[float]:
    """The weights divided by their sum, in double precision.

    Raises:
        InvalidInputError: they sum to zero.
    """
    total = sum(weights)
    if abs(total) < 1e-8:
        raise InvalidInputError("the weights sum to zero and cannot be normalised; set normalize: false")
    return [weight / total for weight in weights]
