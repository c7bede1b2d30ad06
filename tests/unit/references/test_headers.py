"""Safetensors headers as the reader sees them: whole files pass, anything else is refused with a reason."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glue.references.headers import MAX_HEADER_BYTES, folder_tensors, read_header
from glue.specs.errors import IncompatibleModelsError
from tests.support.model_folders import write_safetensors

TWO_TENSORS = {"a.weight": ("F32", (2, 3)), "b.weight": ("BF16", (4,))}


def test_a_file_of_the_safetensors_library_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file(
        {"x": torch.arange(6.0).reshape(2, 3), "y": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "f", {"k": "v"}
    )
    header = read_header(tmp_path / "f")
    content = (tmp_path / "f").read_bytes()
    x = header.tensors["x"]
    assert (x.dtype, x.shape, x.end - x.start) == ("F32", (2, 3), 24)
    assert torch.frombuffer(bytearray(content[x.start : x.end]), dtype=torch.float32).tolist() == [0, 1, 2, 3, 4, 5]
    assert header.tensors["y"].dtype == "BF16"
    assert header.metadata == {"k": "v"}


def test_tensors_come_with_absolute_byte_ranges(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", TWO_TENSORS)
    tensors = folder_tensors(tmp_path)
    assert set(tensors) == set(TWO_TENSORS)
    assert max(tensor.end for tensor in tensors.values()) == (tmp_path / "model.safetensors").stat().st_size


@given(st.binary(max_size=300))
def test_any_bytes_are_either_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    path.write_bytes(content)
    with suppress(IncompatibleModelsError):
        read_header(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=3))
def test_any_json_is_either_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * 8)
    with suppress(IncompatibleModelsError):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "data_bytes"),
    [
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 8),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 2),
        ({"a": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]}}, 4),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, 4),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, 4),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, 4),
        ({"a": {"dtype": "F32", "shape": [2**80], "data_offsets": [0, 4]}}, 4),
        (
            {
                "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            },
            4,
        ),
    ],
)
def test_wrong_headers_are_refused(tmp_path: Path, header: dict[str, object], data_bytes: int) -> None:
    raw = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * data_bytes)
    with pytest.raises(IncompatibleModelsError) as error:
        folder_tensors(tmp_path)
    assert error.value.problems[0].code == "corrupt"
    assert error.value.problems[0].fix


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_a_huge_header_is_not_even_read(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(IncompatibleModelsError, match="not a complete safetensors file"):
        read_header(path)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    for raw in (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":' + b"[" * 100 + b"]" * 100 + b"}"):
        (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
        with pytest.raises(IncompatibleModelsError, match="deep"):
            folder_tensors(tmp_path)


def test_a_name_that_appears_twice_is_refused(tmp_path: Path) -> None:
    entry = b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    raw = b"{" + entry + b"," + entry + b"}"
    (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    with pytest.raises(IncompatibleModelsError, match="twice"):
        folder_tensors(tmp_path)


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(IncompatibleModelsError, match="not a regular file"):
        folder_tensors(tmp_path)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("pytorch_model.bin", "not_safetensors"),
        ("m.pt", "not_safetensors"),
        ("m.gguf", "not_safetensors"),
        ("x.txt", "no_weights"),
    ],
)
def test_other_weight_formats_are_refused_by_name(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(IncompatibleModelsError) as error:
        folder_tensors(tmp_path)
    assert error.value.problems[0].code == code


class TestShards:
    def write(self, folder: Path, weight_map: dict[str, str]) -> None:
        write_safetensors(folder / "one.safetensors", {"a": ("F32", (2,))})
        write_safetensors(folder / "two.safetensors", {"b": ("F32", (3,))})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def test_all_shards_are_one_model(self, tmp_path: Path) -> None:
        self.write(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
        assert {name: info.file.name for name, info in folder_tensors(tmp_path).items()} == {
            "a": "one.safetensors",
            "b": "two.safetensors",
        }

    def test_a_missing_shard_is_named(self, tmp_path: Path) -> None:
        self.write(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
        (tmp_path / "two.safetensors").unlink()
        with pytest.raises(IncompatibleModelsError, match=r"1 of 2 shards are missing, the first is two\.safetensors"):
            folder_tensors(tmp_path)

    @pytest.mark.parametrize(
        "weight_map",
        [
            {"a": "one.safetensors"} | {"c": "two.safetensors"},
            {"a": "one.safetensors", "b": "one.safetensors"},
            {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"},
        ],
    )
    def test_an_index_that_disagrees_is_refused(self, tmp_path: Path, weight_map: dict[str, str]) -> None:
        self.write(tmp_path, weight_map)
        with pytest.raises(IncompatibleModelsError, match="disagree"):
            folder_tensors(tmp_path)

    @pytest.mark.parametrize(
        "shard", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", 3, "x\0.safetensors"]
    )
    def test_an_index_cannot_leave_its_folder(self, tmp_path: Path, shard: object) -> None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(IncompatibleModelsError, match="not a safetensors file of this folder"):
            folder_tensors(tmp_path)
