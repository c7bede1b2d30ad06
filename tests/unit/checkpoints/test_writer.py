from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from transformers.modeling_utils import split_torch_state_dict_into_shards

from glue.checkpoints.shards import PlannedTensor, plan_shards
from glue.checkpoints.writer import write_checkpoint
from glue.specs.errors import DiskFullError


def quiet(fraction: float, message: str) -> None:
    pass


def plan(tensors: dict[str, torch.Tensor]) -> list[PlannedTensor]:
    return [PlannedTensor(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]


def write(folder: Path, tensors: dict[str, torch.Tensor], shard_bytes: int = 10**9, token: int = 1) -> None:
    write_checkpoint(folder, plan(tensors), tensors.__getitem__, shard_bytes=shard_bytes, token=token, progress=quiet)


def test_a_file_is_byte_for_byte_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(7).to(torch.bfloat16), "c": torch.arange(5, dtype=torch.int8)}
    write(tmp_path, tensors)
    assert (tmp_path / "model.safetensors").read_bytes() == save(tensors, {"format": "pt"})


def test_mixed_dtypes_are_aligned_and_come_back(tmp_path: Path) -> None:
    tensors = {
        "flags": torch.tensor([True, False, True]),
        "half": torch.randn(5).half(),
        "wide": torch.randn(2, 2, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
    }
    write(tmp_path, tensors)
    found = load_file(tmp_path / "model.safetensors")
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), limit=st.integers(160, 600))
def test_shards_are_cut_as_transformers_cuts_them(sizes: list[int], limit: int) -> None:
    tensors = {f"t{number}": torch.zeros(size) for number, size in enumerate(sizes)}
    expected = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=limit
    )
    shards = plan_shards(plan(tensors), limit)
    assert {shard.file: [tensor.name for tensor in shard.tensors] for shard in shards} == expected.filename_to_tensors


def test_a_wrong_shape_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="planned was"):
        write_checkpoint(
            tmp_path,
            [PlannedTensor("a", (2, 3), torch.float32)],
            lambda name: torch.zeros(3, 2),
            shard_bytes=100,
            token=1,
            progress=quiet,
        )
    assert not list(tmp_path.iterdir())


def test_complete_shards_are_not_produced_again(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.randn(10) for number in range(4)}
    write(tmp_path, tensors, shard_bytes=80)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    produced = []

    def produce(name: str) -> torch.Tensor:
        produced.append(name)
        return tensors[name]

    fractions: list[float] = []
    write_checkpoint(
        tmp_path,
        plan(tensors),
        produce,
        shard_bytes=80,
        token=2,
        progress=lambda fraction, message: fractions.append(fraction),
    )
    assert produced == ["t2", "t3"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_of_another_layout_are_removed(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.randn(10) for number in range(4)}
    write(tmp_path, tensors, shard_bytes=80)
    write(tmp_path, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_space_is_asked_for_before_anything_is_computed(small_disk: Path) -> None:
    produced: list[str] = []

    def produce(name: str) -> torch.Tensor:
        produced.append(name)
        return torch.zeros(100_000)

    with pytest.raises(DiskFullError):
        write_checkpoint(
            small_disk / "out",
            [PlannedTensor("a", (100_000,), torch.float32)],
            produce,
            shard_bytes=10**9,
            token=1,
            progress=quiet,
        )
    assert not produced
    assert not list((small_disk / "out").iterdir())
