import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from glue.checkpoints.manifest import MANIFEST_FILE, read_manifest, verify_manifest
from glue.checkpoints.reader import Checkpoint
from glue.merging.engine import evaluate, merge_into, merge_to_folder
from glue.specs.errors import DiskFullError, IncompatibleModelsError, InvalidInputError
from glue.specs.expression import Input, Member, Merge, linear
from tests.support.models import tiny_llama, tiny_neox, tiny_qwen3


def quiet(fraction: float, message: str) -> None:
    pass


def build(
    expression: Member | Merge,
    folders: dict[str, Path],
    out: Path,
    dtype: str = "float32",
    shard_bytes: int = 10**9,
    token: int = 1,
) -> Path:
    merge_to_folder(expression, folders, out, dtype=dtype, shard_bytes=shard_bytes, token=token, progress=quiet)
    return out


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    with Checkpoint.open(folder) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("zoo")
    return {name: tiny_llama(root / name, seed=seed) for seed, name in enumerate("abc")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_lone_member_is_given_back_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    source = tiny_llama(tmp_path / "a", dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    model.save_pretrained(source)
    out = build(Member(name="a"), {"a": source}, tmp_path / "out", dtype)
    expected = load_file(source / "model.safetensors")
    found = load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == getattr(torch, dtype)
        assert torch.equal(found[name], tensor)


def test_linear_is_the_weighted_mean_in_fp32(zoo: dict[str, Path], tmp_path: Path) -> None:
    out = build(linear({"a": 1.0, "b": 2.0, "c": 5.0}), zoo, tmp_path / "out")
    a, b, c = (tensors_of(zoo[name]) for name in "abc")
    for name, tensor in tensors_of(out).items():
        expected = (a[name].double() + 2 * b[name].double() + 5 * c[name].double()) / 8
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)


def test_sums_are_taken_in_fp32_whatever_is_stored(tmp_path: Path) -> None:
    folders = {}
    for seed, name in enumerate("ab"):
        model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / name, seed=seed), dtype=torch.bfloat16)
        model.save_pretrained(tmp_path / name)
        folders[name] = tmp_path / name
    out = build(linear({"a": 0.31416, "b": 0.68584}), folders, tmp_path / "out", "bfloat16")
    a, b = tensors_of(folders["a"]), tensors_of(folders["b"])
    merged = tensors_of(out)
    exact = {name: (a[name].double() * 0.31416 + b[name].double() * 0.68584).to(torch.bfloat16) for name in merged}
    # Sums in bf16 would move every third element; fp32 moves only those at the very border of rounding.
    moved = sum(int((merged[name] != exact[name]).sum()) for name in merged)
    assert moved < 0.001 * sum(tensor.numel() for tensor in merged.values())


def test_copies_of_one_model_give_it_back(zoo: dict[str, Path], tmp_path: Path) -> None:
    out = build(linear({"a": 0.2, "b": 0.3, "c": 0.5}), dict.fromkeys("abc", zoo["a"]), tmp_path / "out")
    expected = tensors_of(zoo["a"])
    for name, tensor in tensors_of(out).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weights=st.lists(st.floats(0.05, 1), min_size=3, max_size=3), order=st.permutations("abc"))
def test_order_does_not_matter_and_merges_compose(zoo: dict[str, Path], weights: list[float], order: list[str]) -> None:
    """Linear is affine: in any order, or in two stages with matching weights, it is the same model."""
    checkpoints = {name: Checkpoint.open(folder) for name, folder in zoo.items()}
    by_name = dict(zip("abc", weights, strict=True))
    name = "model.layers.1.mlp.down_proj.weight"
    straight = evaluate(linear(by_name), checkpoints, name)
    turned = evaluate(linear({each: by_name[each] for each in order}), checkpoints, name)
    torch.testing.assert_close(straight, turned, rtol=1e-5, atol=1e-6)
    pair = linear({"a": by_name["a"], "b": by_name["b"]})
    staged = Merge(
        method="linear",
        inputs=(
            Input(model=pair, parameters={"weight": by_name["a"] + by_name["b"]}),
            Input(model=Member(name="c"), parameters={"weight": by_name["c"]}),
        ),
    )
    torch.testing.assert_close(evaluate(staged, checkpoints, name), straight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [tiny_llama, tiny_qwen3, tiny_neox])
@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_holds_what_transformers_would_save_and_loads_without_a_word(
    kind: Callable[..., Path], tied: bool, tmp_path: Path
) -> None:
    folders = {name: kind(tmp_path / name, seed=seed, tie_word_embeddings=tied) for seed, name in enumerate("ab")}
    out = build(linear({"a": 0.5, "b": 0.5}), folders, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    found = load_file(out / "model.safetensors")
    assert found.keys() == again.keys()
    assert all(torch.equal(found[name], again[name]) for name in again)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert (
        AutoTokenizer.from_pretrained(out)("a1").input_ids
        == AutoTokenizer.from_pretrained(folders["a"])("a1").input_ids
    )


def test_a_tied_head_that_was_stored_beside_is_left_out(zoo: dict[str, Path], tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "a")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    out = build(linear({"a": 0.5, "b": 0.5}), {"a": source, "b": zoo["b"]}, tmp_path / "out")
    assert "lm_head.weight" not in tensors_of(out)


def test_the_config_says_the_dtype_that_is_stored(zoo: dict[str, Path], tmp_path: Path) -> None:
    out = build(linear({"a": 0.5, "b": 0.5}), zoo, tmp_path / "out", "bfloat16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_sharding_does_not_change_the_tensors(zoo: dict[str, Path], tmp_path: Path) -> None:
    expression = linear({"a": 0.5, "b": 0.25, "c": 0.25})
    whole = build(expression, zoo, tmp_path / "whole")
    sharded = build(expression, zoo, tmp_path / "sharded", shard_bytes=4000)
    assert len(list(sharded.glob("model-*.safetensors"))) > 3
    one, many = tensors_of(whole), tensors_of(sharded)
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    assert not any(AutoModelForCausalLM.from_pretrained(sharded, output_loading_info=True)[1].values())


def test_merging_into_a_resident_model_gives_the_bits_that_the_folder_holds(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    expression = linear({"a": 0.123, "b": 0.456, "c": 0.421})
    out = build(expression, zoo, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(zoo["b"], dtype=torch.float32)
    checkpoints = {name: Checkpoint.open(folder) for name, folder in zoo.items()}
    merge_into(expression, checkpoints, model)
    resident = model.state_dict()
    for name, tensor in tensors_of(out).items():
        assert torch.equal(tensor, resident[name])
        assert torch.equal(tensor, evaluate(expression, checkpoints, name))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_two_runs_give_the_same_bytes_and_the_manifest_is_right(zoo: dict[str, Path], tmp_path: Path) -> None:
    expression = linear({"a": 0.5, "b": 0.3, "c": 0.2})
    one = build(expression, zoo, tmp_path / "one", shard_bytes=4000, token=1)
    two = build(expression, zoo, tmp_path / "two", shard_bytes=4000, token=2)
    assert bytes_of(one) == bytes_of(two)
    verify_manifest(one, read_manifest(two))


def test_a_finished_folder_is_left_as_it_is(zoo: dict[str, Path], tmp_path: Path) -> None:
    out = build(linear({"a": 0.5, "b": 0.5}), zoo, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    build(linear({"a": 0.5, "b": 0.5}), zoo, out, token=2)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_half_written_or_damaged_shard_is_written_again(zoo: dict[str, Path], tmp_path: Path) -> None:
    expression = linear({"a": 0.5, "b": 0.3, "c": 0.2})
    expected = bytes_of(build(expression, zoo, tmp_path / "whole", shard_bytes=4000))
    out = build(expression, zoo, tmp_path / "out", shard_bytes=4000)
    (out / MANIFEST_FILE).unlink()
    shards = sorted(out.glob("model-*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    shards[1].write_bytes(b"\0" * shards[1].stat().st_size)
    shards[2].unlink()
    (out / "model-00009-of-00009.safetensors.tmp.7").write_bytes(b"left over")
    build(expression, zoo, out, shard_bytes=4000, token=8)
    assert bytes_of(out) == expected


def test_models_that_do_not_fit_are_an_error(zoo: dict[str, Path], tmp_path: Path) -> None:
    wide = tiny_llama(tmp_path / "wide", intermediate_size=48)
    other = tiny_qwen3(tmp_path / "other")
    for stranger in (wide, other):
        with pytest.raises(IncompatibleModelsError) as caught:
            build(linear({"a": 0.5, "x": 0.5}), {"a": zoo["a"], "x": stranger}, tmp_path / "out")
        assert caught.value.problems
    assert not (tmp_path / "out").exists()


def test_a_missing_tensor_is_an_error(zoo: dict[str, Path], tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "broken")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(IncompatibleModelsError, match=r"model\.norm\.weight is missing"):
        build(linear({"a": 0.5, "b": 0.5}), {"a": zoo["a"], "b": source}, tmp_path / "out")


def test_values_that_are_not_finite_are_an_error(zoo: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(IncompatibleModelsError, match="infinities"):
        build(linear({"a": 1e6, "b": 1 - 1e6}), zoo, tmp_path / "out", "float16")
    assert not list((tmp_path / "out").glob("*.safetensors*"))


def test_unknown_methods_and_parameters_are_named(zoo: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="linear"):
        build(Merge(method="liner", inputs=(Input(model=Member(name="a")),)), zoo, tmp_path / "out")
    wrong = Merge(method="linear", inputs=(Input(model=Member(name="a"), parameters={"wieght": 1}),))
    with pytest.raises(InvalidInputError, match="weight"):
        build(wrong, zoo, tmp_path / "out")


def test_a_full_disk_is_told_and_leaves_nothing_that_looks_finished(
    zoo: dict[str, Path], tmp_path: Path, small_disk: Path
) -> None:
    expression = linear({"a": 0.5, "b": 0.5})
    with pytest.raises(DiskFullError):
        build(expression, zoo, small_disk / "out", shard_bytes=4000)
    assert not (small_disk / "out" / MANIFEST_FILE).exists()
    with pytest.raises(IncompatibleModelsError):
        Checkpoint.open(small_disk / "out")
    assert not list((small_disk / "out").glob("*.tmp.*"))


KILLED = """
import sys
from pathlib import Path
import torch
from glue.merging.engine import merge_to_folder
from glue.specs.expression import parse_expression
import json
def progress(fraction, message):
    print(fraction, flush=True)
    if fraction >= float(sys.argv[4]):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
merge_to_folder(parse_expression(json.loads(sys.argv[1])), {k: Path(v) for k, v in json.loads(sys.argv[2]).items()},
    Path(sys.argv[3]), dtype="float32", shard_bytes=4000, token=5, progress=progress)
"""


def test_a_killed_run_goes_on_where_it_was(zoo: dict[str, Path], tmp_path: Path) -> None:
    expression = linear({"a": 0.5, "b": 0.3, "c": 0.2})
    expected = bytes_of(build(expression, zoo, tmp_path / "whole", shard_bytes=4000))
    arguments = [
        json.dumps(expression.as_json()),
        json.dumps({k: str(v) for k, v in zoo.items()}),
        str(tmp_path / "out"),
    ]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments, "0.6"], stdout=subprocess.PIPE, check=False, cwd=Path.cwd()
    )
    assert killed.returncode == -9
    done = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert 0 < len(done) < len(list((tmp_path / "whole").glob("*.safetensors")))
    stamps = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done}
    fractions = []
    merge_to_folder(
        expression, zoo, tmp_path / "out", dtype="float32", shard_bytes=4000, token=6,
        progress=lambda fraction, message: fractions.append(fraction),
    )  # fmt: skip
    assert bytes_of(tmp_path / "out") == expected
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in done} == stamps
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
