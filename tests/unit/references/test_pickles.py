"""What pickles hold, told from a few ranges of them, with nothing in them run."""

import os
import pickle
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from glue.references.pickles import PickledTensor, pickled_tensors
from glue.specs.errors import IncompatibleModelsError


def described(path: Path) -> dict[str, PickledTensor]:
    content = path.read_bytes()
    return pickled_tensors(path.name, len(content), lambda first, last: content[first:last])


def test_names_dtypes_and_shapes_of_a_state(tmp_path: Path) -> None:
    whole = torch.zeros(6, 4)
    state = OrderedDict(
        half=torch.zeros(3, 4, dtype=torch.bfloat16),
        parameter=torch.nn.Parameter(torch.ones(5)),
        view=whole[2:4],
        again=whole,
        positions=torch.arange(7),
        scalar=torch.tensor(1.0, dtype=torch.float16),
    )
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert described(tmp_path / "pytorch_model.bin") == {
        "half": PickledTensor("BF16", (3, 4)),
        "parameter": PickledTensor("F32", (5,)),
        "view": PickledTensor("F32", (2, 4)),
        "again": PickledTensor("F32", (6, 4)),
        "positions": PickledTensor("I64", (7,)),
        "scalar": PickledTensor("F16", ()),
    }


def test_a_large_file_is_read_in_few_small_ranges(tmp_path: Path) -> None:
    torch.save({f"layers.{n}": torch.zeros(64, 1024) for n in range(200)}, tmp_path / "a.bin")
    size = (tmp_path / "a.bin").stat().st_size
    asked = []

    def read(first: int, last: int) -> bytes:
        asked.append(last - first)
        with (tmp_path / "a.bin").open("rb") as file:
            file.seek(first)
            return file.read(last - first)

    assert len(pickled_tensors("a.bin", size, read)) == 200
    assert size > 50_000_000
    assert len(asked) <= 4
    assert sum(asked) < 300_000


class Calls:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ({"w": Calls()}, "system"),
        ({"w": "text"}, "named tensors"),
        ([torch.zeros(2)], "named tensors"),
        ({"inner": {"w": torch.zeros(2)}}, "named tensors"),
    ],
)
def test_what_is_not_weights_is_refused_and_not_run(
    held: object, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(held, tmp_path / "a.bin")
    with pytest.raises(IncompatibleModelsError, match=reason):
        described(tmp_path / "a.bin")
    assert not (tmp_path / "ran").exists()


def test_names_of_builtins_are_not_looked_up_either(tmp_path: Path) -> None:
    content = b"cbuiltins\neval\n(V1/0\ntR."
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("archive/data.pkl", content)
    with pytest.raises(IncompatibleModelsError, match=r"builtins\.eval"):
        described(tmp_path / "a.bin")


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps({"w": 1})])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(IncompatibleModelsError, match="no archive"):
        described(tmp_path / "a.bin")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(100)}, tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:-40])
    with pytest.raises(IncompatibleModelsError):
        described(tmp_path / "a.bin")


def test_a_compressed_description_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 1_000_000)
    with pytest.raises(IncompatibleModelsError, match="no archive"):
        described(tmp_path / "a.bin")


def archived(description: bytes, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", description)
    return path


@pytest.mark.parametrize(
    "description",
    [
        pytest.param(b"\x80\x02}" + b"K\x01\x85" + b"2\x86" * 60 + b"K\x01s.", id="a key that takes for ever to hash"),
        pytest.param(b"\x80\x02}K\x01K\x01s.", id="a key that is no text"),
        pytest.param(b"\x80\x02\x8f(K\x01\x90.", id="a set"),
    ],
)
def test_what_torch_does_not_write_is_refused_at_once(description: bytes, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(IncompatibleModelsError, match="something else than weights"):
        described(archived(description, tmp_path / "a.bin"))
    assert time.monotonic() - began < 5


def test_a_place_in_the_memo_costs_nothing(tmp_path: Path) -> None:
    assert described(archived(b"\x80\x02}r\xff\xff\xff\xff.", tmp_path / "a.bin")) == {}


def test_what_was_checked_stays_as_it_was(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "plain.bin")
    with zipfile.ZipFile(tmp_path / "plain.bin") as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("data.pkl"))
        content = archive.read(name)
    # Behind the tensor's REDUCE: its dtype would become another.
    changed = content.replace(b"R", b"R}X\x05\x00\x00\x00dtypeX\x04\x00\x00\x00NOPEsb")
    assert described(archived(changed, tmp_path / "a.bin")) == {"w": PickledTensor("F32", (2,))}


def test_an_archive_does_not_choose_how_much_is_read(tmp_path: Path) -> None:
    size = 10**12
    end = b"PK\x05\x06" + b"\0" * 4 + (1).to_bytes(2, "little") * 2 + (2**31).to_bytes(4, "little") * 2 + b"\0\0"

    def read(first: int, last: int) -> bytes:
        assert last - first < 100_000_000
        return (b"\0" * (last - first - len(end)) + end) if last == size else b"\0" * (last - first)

    with pytest.raises(IncompatibleModelsError):
        pickled_tensors("a.bin", size, read)
