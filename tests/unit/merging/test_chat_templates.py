"""The chat template that a merge file asks for."""

from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from glue.merging.run import merge_file
from tests.support.models import tiny_llama

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
MINE, OTHER = "{% for m in messages %}<{{ m.content }}>{% endfor %}", "{{ messages | length }}"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    for seed, (name, template) in enumerate({"a": OTHER, "b": MINE, "c": MINE, "d": None}.items()):
        folder = tiny_llama(root / name, seed=seed)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    return root


def template_of(zoo: Path, out: Path, **settings: object) -> str | None:
    config = {"merge_method": "linear", "dtype": "float32", "parameters": {"weight": 1}, **settings}
    config["models"] = [{"model": str(zoo / name)} for name in "abcd"]
    file = out.with_suffix(".yml")
    file.write_text(yaml.safe_dump(config))
    merge_file(file, out, shard_bytes=10**9, seed=None, progress=lambda fraction, message: None)
    template: str | None = AutoTokenizer.from_pretrained(out).chat_template
    return template


def test_without_a_wish_it_is_the_first_models(zoo: Path, tmp_path: Path) -> None:
    assert template_of(zoo, tmp_path / "out") == OTHER


@pytest.mark.parametrize("tokenizer", [{}, {"tokenizer_source": "union"}])
def test_auto_is_the_commonest_among_the_models(zoo: Path, tmp_path: Path, tokenizer: dict[str, str]) -> None:
    assert template_of(zoo, tmp_path / "out", chat_template="auto", **tokenizer) == MINE


def test_a_template_may_be_written_out(zoo: Path, tmp_path: Path) -> None:
    assert template_of(zoo, tmp_path / "out", chat_template="{{ messages[0].role }}") == "{{ messages[0].role }}"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("chatml", "<|im_start|>user\na<|im_end|>"),
        ("alpaca", "### Instruction:\na"),
        ("llama3", "<|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>"),
        ("mistral", "[INST] a [/INST]"),
    ],
)
def test_templates_have_names(zoo: Path, tmp_path: Path, name: str, told: str) -> None:
    template_of(zoo, tmp_path / "out", chat_template=name)
    text = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(TALK, tokenize=False)
    assert told in text
    assert text.index("a") < text.rindex("b")
