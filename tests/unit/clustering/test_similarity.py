"""Column cosines of whole checkpoints, against torch's own cosine over whole matrices."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity

from glue.checkpoints.reader import Checkpoint
from glue.clustering import similarity
from glue.clustering.similarity import Similarity, compare
from glue.specs.errors import IncompatibleModelsError
from tests.support.models import tiny_llama, tiny_neox, tiny_qwen3


def silent(fraction: float, text: str) -> None:
    assert 0 < fraction <= 1
    assert text


def compared(folders: list[Path], base: Path | None = None) -> Similarity:
    return compare([Checkpoint.open(folder) for folder in folders], Checkpoint.open(base) if base else None, silent)


def edited(source: Path, out: Path, change: float, only: str = "") -> Path:
    """A copy whose tensors with `only` in their name are moved by random numbers times `change`."""
    out.mkdir()
    (out / "config.json").write_bytes((source / "config.json").read_bytes())
    torch.manual_seed(7)
    tensors = load_file(source / "model.safetensors")
    moved = {name: value + change * torch.randn_like(value) for name, value in tensors.items() if only in name}
    save_file(tensors | moved, out / "model.safetensors")
    return out


def is_compared(name: str) -> bool:
    return any(part in name for part in ("self_attn", "mlp", "attention.dense", "query_key_value"))


def expected(one: Path, other: Path) -> float:
    """The paper's formula with torch's function, over all attention and MLP matrices."""
    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    names = [name for name, value in left.items() if value.ndim == 2 and is_compared(name)]
    return sum(float(cosine_similarity(left[name], right[name], dim=0).mean()) for name in names) / len(names)


@pytest.mark.parametrize("kind", [tiny_llama, tiny_neox, tiny_qwen3])
def test_all_pairs_equal_the_formula(
    kind: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks of a few rows: the running sums have to add up to the whole.
    monkeypatch.setattr(similarity, "_BLOCK_ELEMENTS", 70)
    first = kind(tmp_path / "a", seed=1)
    folders = [first, edited(first, tmp_path / "b", 0.2), kind(tmp_path / "c", seed=2)]
    found = compared(folders).overall
    for i, one in enumerate(folders):
        for j, other in enumerate(folders):
            assert found[i][j] == pytest.approx(1.0 if i == j else expected(one, other), abs=1e-6)
            assert found[i][j] == found[j][i]
    assert 0.5 < found[0][1] < 1
    assert abs(found[0][2]) < 0.3


def test_matrices_of_neox_are_found(tmp_path: Path) -> None:
    found = compared([tiny_neox(tmp_path / "a"), tiny_neox(tmp_path / "b", seed=1)])
    parts = ("attention.dense", "attention.query_key_value", "mlp.dense_4h_to_h", "mlp.dense_h_to_4h")
    assert sorted(found.matrices) == [f"gpt_neox.layers.{layer}.{part}.weight" for layer in (0, 1) for part in parts]


def test_equal_models_are_exactly_one(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    assert compared([folder, folder, folder]).overall == [[1.0] * 3] * 3


def test_values_of_matrices_and_layers_add_up(tmp_path: Path) -> None:
    found = compared([tiny_llama(tmp_path / "a"), tiny_llama(tmp_path / "b", seed=1)])
    one = [value[0][1] for name, value in found.matrices.items() if ".1." in name]
    assert found.layers()[1][0][1] == pytest.approx(sum(one) / len(one))
    assert found.overall[0][1] == pytest.approx(sum(layer[0][1] for layer in found.layers().values()) / 2)


def test_task_vectors_are_compared_with_a_base(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    tuned = edited(base, tmp_path / "tuned", 0.01)
    same_direction = edited(base, tmp_path / "further", 0.02)
    other = tiny_llama(tmp_path / "other", seed=3)
    raw, vectors = compared([tuned, same_direction, other]), compared([tuned, same_direction, other], base)
    assert vectors.overall[0][1] == pytest.approx(1, abs=1e-3)
    assert abs(vectors.overall[0][2]) < 0.3
    assert raw.overall[0][1] < vectors.overall[0][1]


def test_zero_columns_are_no_nan(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    one = edited(base, tmp_path / "one", 0.1, only="q_proj")
    other = edited(base, tmp_path / "other", 0.1, only="v_proj")
    found = compared([one, other, base, base], base)
    # Where only one of two differs from the base there is no common direction.
    assert found.overall[0][1] == 0
    assert found.overall[0][2] == 0
    assert found.overall[0][0] == 1
    # Nothing to compare at all: the same model.
    assert found.overall[2][3] == 1
    assert found.matrices["model.layers.0.mlp.up_proj.weight"][0][1] is None


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleModelsError, match="down_proj"):
        compared([tiny_llama(tmp_path / "a"), tiny_llama(tmp_path / "b", intermediate_size=48)])
    with pytest.raises(IncompatibleModelsError, match="missing"):
        compared([tiny_llama(tmp_path / "c"), tiny_neox(tmp_path / "d")])


def test_a_model_without_such_matrices_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    kept = {"model.norm.weight": load_file(folder / "model.safetensors")["model.norm.weight"]}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(IncompatibleModelsError, match="no attention"):
        compared([folder, folder])


def test_any_stored_dtype_is_read(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "a")
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors")
    assert compared([folder, half]).overall[0][1] == pytest.approx(1, abs=1e-4)
