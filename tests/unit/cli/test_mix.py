"""`glue mix`: a file becomes a mixture of its level, or a person is told what to mend."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from glue.checkpoints.manifest import read_manifest, verify_manifest
from glue.cli.main import app
from glue.mixture.load import load_model
from tests.support.models import char_tokenizer, tiny_llama, tiny_neox

Config = dict[str, Any]


def run(root: Path, config: Config, *options: str) -> tuple[int, str]:
    (root / "mix.yml").write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(app, ["mix", str(root / "mix.yml"), str(root / "out"), *options])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    for seed, name in enumerate(("base", "a", "b")):
        tiny_llama(tmp_path / name, seed=seed)
    tiny_neox(tmp_path / "other", seed=3)
    return tmp_path


def mixture(**changes: Any) -> Config:
    experts = [
        {"source_model": "./a", "positive_prompts": ["12+3=", "9*9="]},
        {"source_model": "./b", "positive_prompts": ["def f(x):"]},
    ]
    return {"base_model": "./base", "experts": experts} | changes


def loaded(zoo: Path) -> Any:
    verify_manifest(zoo / "out", read_manifest(zoo / "out"))
    return load_model(zoo / "out", torch.float32, "cpu")


def routing(model: Any, text: str) -> list[int]:
    ids = torch.tensor([char_tokenizer()(text)["input_ids"]])
    choice: list[int] = model.route(ids).argmax(-1).flatten().tolist()
    return choice


@pytest.mark.parametrize("mode", ["hidden", "hidden_last", "hidden_avg", "cheap_embed", "random", "uniform_random"])
def test_a_file_of_mergekits_becomes_a_mixtral(zoo: Path, mode: str) -> None:
    code, output = run(zoo, mixture(gate_mode=mode))
    assert (code, "mixed into" in output) == (0, True), output
    model = loaded(zoo)
    assert type(model).__name__ == "MixtralForCausalLM"
    assert model.config.num_experts_per_tok == 2
    assert not list(zoo.glob(".*partial"))


def test_model_level_takes_any_architecture_and_its_prompts_decide(zoo: Path) -> None:
    config = mixture(level="model")
    config["experts"][1]["source_model"] = "./other"
    assert run(zoo, config)[0] == 0
    model = loaded(zoo)
    assert model.config.expert_names == ["a", "other"]
    assert [routing(model, "12+3=") + routing(model, "def f(x):")] == [[0, 1]]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"router": {"input": "sample"}}, "GlueFfnSampleMixtureForCausalLM"),
        ({"router": {"input": "sample"}, "gate_mode": "random"}, "GlueFfnSampleMixtureForCausalLM"),
        ({"router": {"input": "sample", "type": "mlp"}}, "GlueFfnSampleMixtureForCausalLM"),
        ({"router": {"type": "mlp"}, "dense_layers": 1}, "GlueFfnMixtureForCausalLM"),
        ({"router": {"train": {"steps": 20}}}, "GlueFfnMixtureForCausalLM"),
        ({"shared_experts": [{"source_model": "./b"}]}, "GlueFfnMixtureForCausalLM"),
        ({"shared_experts": [{"source_model": "./b"}], "architecture": "DeepSeek"}, "GlueFfnMixtureForCausalLM"),
        ({"shared_experts": [{"source_model": "./b", "positive_prompts": ["x"]}]}, "Qwen2MoeForCausalLM"),
        ({"shared_experts": [{"source_model": "./b"}], "gate_mode": "random", "architecture": "qwen"}, "Qwen2Moe"),
        ({"architecture": "qwen"}, "Qwen2MoeForCausalLM"),
        ({"dense_layers": 1}, "Qwen2MoeForCausalLM"),
        ({"dense_layers": 2, "router": {"input": "sample"}}, "GlueFfnSampleMixtureForCausalLM"),
    ],
)
def test_what_no_stock_class_routes_is_stored_with_our_file(zoo: Path, changes: Config, kind: str) -> None:
    code, output = run(zoo, mixture(**changes))
    assert code == 0, output
    model = loaded(zoo)
    assert type(model).__name__.startswith(kind)
    assert ("with a modelling file of its own" in output) == kind.startswith("Glue")
    assert model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, min_new_tokens=3).shape == (1, 6)


def test_samples_with_a_prompts_own_words_go_to_its_expert(zoo: Path) -> None:
    assert run(zoo, mixture(router={"input": "sample"}, experts_per_token=1))[0] == 0
    model = loaded(zoo)
    # The first layer sees what the base saw; above, the mixture itself has changed the states.
    assert [routing(model, text)[0] for text in ("12+3=", "9*9=", "def f(x):")] == [0, 0, 1]


def test_other_architectures_are_mixed_by_our_file(zoo: Path) -> None:
    config = mixture(base_model="./other")
    for expert in config["experts"]:
        expert["source_model"] = "./other"
    code, output = run(zoo, config)
    assert (code, "no stock mixture exists for gpt_neox experts" in output) == (0, True), output
    assert type(loaded(zoo)).__name__ == "GlueFfnMixtureForCausalLM"


def test_noise_has_a_seed(zoo: Path) -> None:
    digests = []
    for seed in (1, 1, 2):
        config = mixture(seed=seed)
        config["experts"][0]["noise_scale"] = 0.01
        assert run(zoo, config)[0] == 0
        digests.append(read_manifest(zoo / "out").digest)
        (zoo / "out").rename(zoo / f"out-{len(digests)}")
    assert digests[0] == digests[1] != digests[2]


def test_block_level_routes_every_layer(zoo: Path) -> None:
    assert run(zoo, mixture(level="block", router={"type": "linear", "input": "sample"}))[0] == 0
    assert len(routing(loaded(zoo), "12+3=")) == 2


@pytest.mark.parametrize("level", ["block", "model"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_router_can_be_trained_on_the_prompts(zoo: Path, level: str, kind: str) -> None:
    router = {"type": kind, "train": {"hidden": 8, "steps": 100}}
    assert run(zoo, mixture(level=level, router=router))[0] == 0
    model = loaded(zoo)
    assert model.config.router_inner_size == (8 if kind == "mlp" else 0)
    # The first layer sees a prompt as it was pooled for training; above, the mixture itself has changed the states.
    assert [routing(model, text)[0] for text in ("12+3=", "9*9=", "def f(x):")] == [0, 0, 1]


@pytest.mark.parametrize(("level", "decisions"), [("block", 1), ("model", 1)])
def test_hybrids_keep_the_bottom_dense(zoo: Path, level: str, decisions: int) -> None:
    assert run(zoo, mixture(level=level, dense_layers=1, trunk="mean"))[0] == 0
    model = loaded(zoo)
    assert model.config.dense_layers == 1
    assert model.config.decide_once is (level == "model")
    assert len(routing(model, "12+3=")) == decisions


@pytest.mark.parametrize("level", ["ffn", "block", "model"])
def test_the_seed_decides_random_routers(zoo: Path, level: str) -> None:
    digests = []
    for options in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"]):
        assert run(zoo, mixture(level=level, gate_mode="random"), *options)[0] == 0
        digests.append(read_manifest(zoo / "out").digest)
        (zoo / "out").rename(zoo / f"out-{len(digests)}")
    assert digests[0] == digests[1] != digests[2]


def test_the_dtype_of_the_base_is_kept_or_changed(zoo: Path) -> None:
    run(zoo, mixture())
    assert json.loads((zoo / "out" / "config.json").read_text())["dtype"] == "float32"
    (zoo / "out").rename(zoo / "first")
    run(zoo, mixture(dtype="bfloat16"))
    assert json.loads((zoo / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_routers_that_tell_nobody_apart_are_told(zoo: Path) -> None:
    alike = mixture(gate_mode="cheap_embed")
    alike["experts"][0]["positive_prompts"] = ["aaaab"]
    alike["experts"][1]["positive_prompts"] = ["aaaac"]
    assert "hardly tell the experts apart" in run(zoo, alike)[1]
    (zoo / "out").rename(zoo / "first")
    same_tokens = mixture(level="model")
    same_tokens["experts"][0]["positive_prompts"] = ["ab"]
    same_tokens["experts"][1]["positive_prompts"] = ["ba"]
    assert "the router cannot choose them" in run(zoo, same_tokens)[1]


def with_text(zoo: Path, level: str, **train: Any) -> Config:
    """A mixture whose routers learn from text beside the file."""
    rows = [{"prompt": f"{number}+{number}=", "response": str(2 * number)} for number in range(20)]
    rows += [{"prompt": f"def f{number}(x):", "response": "return x"} for number in range(20)]
    (zoo / "text.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return mixture(level=level, router={"train": {"data": "text.jsonl", "steps": 6, "lr": 0.3, "batch": 40} | train})


@pytest.mark.parametrize("level", ["ffn", "block", "model"])
def test_routers_learn_from_text(zoo: Path, level: str) -> None:
    code, output = run(zoo, with_text(zoo, level))
    assert code == 0, output
    loaded(zoo)
    record = json.loads((zoo / "out" / "router_training.json").read_text())
    assert record["steps"][-1]["loss"] < record["steps"][0]["loss"]
    assert not list(zoo.glob(".*partial"))


@pytest.mark.parametrize("level", ["ffn", "block", "model"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_text_alone_is_enough(zoo: Path, level: str, kind: str) -> None:
    config = with_text(zoo, level, hidden=8)
    if level != "ffn":
        config["router"]["type"] = kind
    for expert in config["experts"]:
        del expert["positive_prompts"]
    code, output = run(zoo, config)
    assert code == 0, output
    names = load_file(zoo / "out" / "model.safetensors").keys()
    assert any("inner" in name for name in names) == (kind == "mlp" and level != "ffn")


def test_text_and_prompts_for_two_layers(zoo: Path) -> None:
    config = with_text(zoo, "model", hidden=8)
    config["router"]["type"] = "mlp"
    assert run(zoo, config)[0] == 0
    model = loaded(zoo)
    assert routing(model, "9*9=") + routing(model, "def f(x):") == [0, 1]


def test_a_killed_training_goes_on_to_the_same_bytes(zoo: Path) -> None:
    config = with_text(zoo, "block", save_every=2)
    assert run(zoo, config)[0] == 0
    whole = read_manifest(zoo / "out")
    (zoo / "out").rename(zoo / "whole")
    script = (
        "import os, signal, sys; from pathlib import Path; from glue.mixture.run import mix_file\n"
        "def kill(done, text):\n"
        "    if 'step 5' in text: os.kill(os.getpid(), signal.SIGKILL)\n"
        "import torch; torch.set_num_threads(int(sys.argv[2])); root = Path(sys.argv[1])\n"
        "mix_file(root / 'mix.yml', root / 'out', shard_bytes=4 * 10**9, seed=None, progress=kill)"
    )
    threads = str(torch.get_num_threads())
    done = subprocess.run([sys.executable, "-c", script, str(zoo), threads], capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(zoo.glob(".*partial/router_training.safetensors.state"))
    assert run(zoo, config)[0] == 0
    assert read_manifest(zoo / "out") == whole


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "1+1="}', "text.jsonl, line 41: it has no field 'response'; write"),
        ("[", "text.jsonl, line 41 is not JSON"),
    ],
)
def test_bad_text_is_told_with_its_line(zoo: Path, line: str, told: str) -> None:
    config = with_text(zoo, "model")
    with (zoo / "text.jsonl").open("a") as file:
        file.write(line)
    code, output = run(zoo, config)
    assert (code, told in output) == (1, True), output
    assert not (zoo / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"base_mode": "./base"}, "did you mean 'base_model'"),
        ({"base_model": "./nowhere"}, "nowhere is not a folder"),
        ({"base_model": "./base+./lora"}, "lora"),
        ({"experts_per_token": 3}, "there are 2 experts"),
        ({"level": "model", "gate_mode": "random", "router": {"type": "mlp"}}, "drawn or trained, not both"),
        ({"router": {"train": {"data": "nowhere.jsonl"}}}, "/router/train/data/0: nowhere.jsonl is not a file"),
        ({"level": "model", "router": {"train": {"batch": 2}}}, "batch is for training on text"),
        ({"level": "model", "router": {"train": {"data": "a", "lr": 0.1, "learning_rate": 0.1}}}, "lr"),
        ({"level": "block", "gate_mode": "random", "router": {"type": "mlp", "train": {"data": "a"}}}, "is not drawn"),
        ({"level": "block", "router": {"input": "token"}}, "level block routes"),
        ({"level": "model", "router": {"input": "token", "type": "mlp"}}, "a token gate is linear"),
        ({"level": "model", "router": {"input": "token", "train": {"steps": 5}}}, "learns from text alone"),
        ({"level": "model", "router": {"input": "token"}, "experts_per_token": 1}, "every expert answers every token"),
        ({"dense_layers": 3}, "set dense_layers to at most 2"),
        ({"level": "block", "dense_layers": 2}, "set dense_layers to at most 1"),
        ({"level": "model", "trunk": "mean"}, "nothing for trunk"),
        ({"level": "block", "shared_experts": [{"source_model": "./a"}]}, "shared_experts and architecture are for"),
        ({"architecture": "llama"}, "architecture is none of mixtral"),
        ({"architecture": "qwen3"}, "does not fit"),
        ({"architecture": "mixtral", "router": {"input": "sample"}}, "linear routers with token input"),
        ({"architecture": "mixtral", "shared_experts": [{"source_model": "./a"}]}, "has no shared experts"),
        ({"architecture": "deep", "shared_experts": [{"source_model": "./a"}] * 2}, "at most one shared expert"),
        ({"level": "model", "experts": [{"source_model": "./a", "noise_scale": 0.1}] * 2}, "or use level ffn"),
        ({"experts": [{"source_model": "./a", "noise_scale": -0.1}] * 2}, "greater than or equal to 0"),
        ({"experts": [{"source_model": "./a"}, {"source_model": "./b"}]}, "no positive prompt"),
        ({"level": "model", "experts": [{"source_model": "./a"}, {"source_model": "./b"}]}, "no positive prompt"),
        ({"experts": [{"source_model": "./a", "positive_prompts": ["x"]}] * 2}, "same prompts"),
        ({"experts": [{"source_model": "./other", "positive_prompts": ["x"]}], "experts_per_token": 1}, "differ"),
    ],
)
def test_mistakes_are_told(zoo: Path, change: Config, told: str) -> None:
    code, output = run(zoo, mixture() | change)
    assert code == 1
    assert told in output
    assert not (zoo / "out").exists()


@pytest.mark.parametrize("learns", [False, True])
def test_a_token_gate_weighs_all_experts(zoo: Path, learns: bool) -> None:
    config = with_text(zoo, "model") if learns else mixture(level="model")
    config["router"] = {"input": "token", **config.get("router", {})}
    config["experts"] = [{"source_model": expert["source_model"]} for expert in config["experts"]]
    code, output = run(zoo, config)
    assert code == 0, output
    assert ("takes the mean of all experts" in " ".join(output.split())) != learns
    model = loaded(zoo)
    assert bool(model.token_gate.weight.any()) == learns
    assert (zoo / "out" / "router_training.json").is_file() == learns


def test_negative_prompts_belong_to_ffn_level(zoo: Path) -> None:
    config = mixture()
    config["experts"][0]["negative_prompts"] = ["Once upon"]
    assert run(zoo, config)[0] == 0
    (zoo / "out").rename(zoo / "first")
    assert "negative_prompts are for linear routers" in run(zoo, config | {"level": "model"})[1]


@pytest.mark.parametrize(
    ("level", "told"), [("ffn", "the mixture reads"), ("block", "the mixture reads"), ("model", "they keep")]
)
def test_other_tokenizers_are_told(zoo: Path, level: str, told: str) -> None:
    path = zoo / "b" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer))
    found, output = run(zoo, mixture(level=level))
    assert found == 0
    # Rich wraps lines.
    assert f"b and the base have different tokenizers: {told}" in " ".join(output.split())
    names = json.loads((zoo / "out" / "config.json").read_text()).get("expert_tokenizers")
    assert names == ([None, "tokenizer_1"] if level == "model" else None)


def test_an_existing_folder_is_not_touched(zoo: Path) -> None:
    (zoo / "out").mkdir()
    code, output = run(zoo, mixture())
    assert (code, "exists already" in output) == (1, True)
    assert not list((zoo / "out").iterdir())
