"""The recipe that is given for a path through several models' layers is what mergekit builds the same model from."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from glue.merging.engine import merge_to_folder
from glue.merging.run import merge_file
from glue.specs.expression import Input, Member, Merge
from glue.specs.recipes import mergekit_recipe
from tests.support.models import tiny_llama
from tests.support.peer import is_installed, run_peer

pytestmark = pytest.mark.skipif(not is_installed(), reason="the peer is not installed; run `make peer`")

NAMES = ("ant", "bee")
PATH = (("ant", 0, 1.0), ("bee", 1, 0.75), ("bee", 0, 1.0), ("ant", 1, 1.5))


def expression() -> Merge:
    inputs = tuple(
        Input(model=Member(name=name), parameters={"layer": layer, "scale": scale}) for name, layer, scale in PATH
    )
    return Merge(method="data_flow", inputs=inputs, base=Member(name="bee"))


def test_both_build_the_same_model(tmp_path: Path) -> None:
    folders = {name: tiny_llama(tmp_path / name, seed, tie_word_embeddings=False) for seed, name in enumerate(NAMES)}
    recipe = mergekit_recipe(expression(), {name: str(folder) for name, folder in folders.items()}, "float32")
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    assert not any(run_peer([(tmp_path / "recipe.yml", tmp_path / "peer")], tmp_path).values())
    merge_to_folder(
        expression(),
        folders,
        tmp_path / "ours",
        dtype="float32",
        shard_bytes=10**9,
        token=0,
        progress=lambda fraction, message: None,
    )
    merge_file(
        tmp_path / "recipe.yml",
        tmp_path / "read",
        shard_bytes=10**9,
        seed=None,
        progress=lambda fraction, message: None,
    )
    ours, peers, read = (load_file(tmp_path / made / "model.safetensors") for made in ("ours", "peer", "read"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").state_dict().keys() >= ours.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(peers[name], tensor, rtol=1e-6, atol=1e-7, msg=name)
        torch.testing.assert_close(read[name], tensor, rtol=1e-6, atol=1e-7, msg=name)
