"""Weights that differ by layer: every tensor is merged with the weights of its own layer group."""

from pathlib import Path

import pytest
import torch

from glue.checkpoints.reader import Checkpoint
from glue.merging.engine import evaluate
from glue.specs.errors import InvalidInputError
from glue.specs.expression import ByLayer, Input, Member, Merge, parse_expression
from tests.support.models import tiny_llama


def merge(first: float | ByLayer, second: float | ByLayer) -> Merge:
    inputs = (
        Input(model=Member(name="a"), parameters={"weight": first}),
        Input(model=Member(name="b"), parameters={"weight": second}),
    )
    return Merge(method="linear", inputs=inputs, parameters={"normalize": False})


def test_groups_of_layers_and_what_is_in_none(tmp_path: Path) -> None:
    folders = {name: tiny_llama(tmp_path / name, seed, num_hidden_layers=4) for seed, name in enumerate("ab")}
    opened = {name: Checkpoint.open(folder) for name, folder in folders.items()}
    first = ByLayer(layers=4, groups=(1.0, 0.25), outside=0.5)
    second = ByLayer(layers=4, groups=(0.0, 0.75), outside=0.5)
    expression = parse_expression(merge(first, second).as_json())
    expected = {"model.layers.0.": 1.0, "model.layers.1.": 1.0, "model.layers.2.": 0.25, "model.layers.3.": 0.25}
    for name, info in opened["a"].tensors.items():
        weight = next((weight for prefix, weight in expected.items() if name.startswith(prefix)), 0.5)
        plain = evaluate(merge(weight, 1 - weight), opened, name)
        assert torch.equal(evaluate(expression, opened, name), plain), info.name


def test_a_value_that_no_layer_may_have_is_refused(tmp_path: Path) -> None:
    opened = {name: Checkpoint.open(tiny_llama(tmp_path / name)) for name in "ab"}
    density = ByLayer(layers=2, groups=(0.5, 7.0), outside=1)
    part = Input(model=Member(name="b"), parameters={"weight": 1.0, "density": density})
    with pytest.raises(InvalidInputError, match="less than or equal to 1"):
        evaluate(Merge(method="ties", base=Member(name="a"), inputs=(part,)), opened, "model.norm.weight")
