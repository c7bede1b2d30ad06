"""A candidate in mergekit's words; that mergekit understands them is shown by our own reader of its files."""

from pathlib import Path

import yaml

from glue.merging.mergekit_yaml import read_mergekit_file
from glue.specs.expression import ByLayer, Input, Member, Merge, linear
from glue.specs.recipes import mergekit_recipe

SOURCES = {"a": "/zoo/a", "b": "org/b", "base": "/zoo/base"}


def test_flat_merges_are_said_with_their_weights() -> None:
    assert mergekit_recipe(linear({"a": 0.3, "b": 0.7}), SOURCES, "float32") == {
        "merge_method": "linear",
        "models": [
            {"model": "/zoo/a", "parameters": {"weight": 0.3}},
            {"model": "org/b", "parameters": {"weight": 0.7}},
        ],
        "dtype": "float32",
    }


def test_a_base_and_options_are_said_and_can_be_read(tmp_path: Path) -> None:
    part = Input(model=Member(name="a"), parameters={"weight": 0.5, "density": 0.2})
    ties = Merge(method="ties", inputs=(part,), base=Member(name="base"), parameters={"normalize": False})
    recipe = mergekit_recipe(ties, SOURCES, "bfloat16")
    assert recipe is not None
    assert recipe["base_model"] == "/zoo/base"
    (tmp_path / "merge.yml").write_text(yaml.safe_dump(recipe))
    assert read_mergekit_file(tmp_path / "merge.yml").merge_method == "ties"


def test_a_single_model_is_passed_through() -> None:
    found = mergekit_recipe(Member(name="b"), SOURCES, "float32")
    assert found == {"merge_method": "passthrough", "models": [{"model": "org/b"}], "dtype": "float32"}


def test_what_mergekit_cannot_say_is_not_said() -> None:
    weight = ByLayer(layers=2, groups=(0.1, 0.2), outside=0.3)
    by_layer = Merge(method="linear", inputs=(Input(model=Member(name="a"), parameters={"weight": weight}),))
    nested = Merge(method="linear", inputs=(Input(model=linear({"a": 0.5, "b": 0.5}), parameters={"weight": 1.0}),))
    assert mergekit_recipe(by_layer, SOURCES, "float32") is None
    assert mergekit_recipe(nested, SOURCES, "float32") is None
