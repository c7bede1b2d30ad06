"""Experts with tokenizers of their own: what is said is what the expert alone says, in the folder's tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from glue.checkpoints.manifest import build_manifest
from glue.mixture.load import load_model
from glue.mixture.modeling_glue_model_mixture import Translation
from glue.specs.errors import IncompatibleModelsError
from tests.support.mixtures import MixtureFolders, mix
from tests.support.models import VOCABULARY, char_tokenizer, pair_tokenizer, tiny_llama, tiny_neox, tiny_pair_neox

CHARS, PAIRS = char_tokenizer(), pair_tokenizer()
TEXTS = ["12+3=", "def f(x):\n    return x", "an answer to 42", "Who was she? ", "q", "3113 tan"]
OWN = 1
WAYS: list[Any] = [
    pytest.param({}, id="greedy"),
    pytest.param({"use_cache": False}, id="without a cache"),
    pytest.param({"do_sample": True, "top_k": 20}, id="sampling"),
    pytest.param({"num_beams": 3}, id="beams"),
    pytest.param({"num_beams": 4, "num_return_sequences": 2}, id="several beams"),
    pytest.param({"do_sample": True, "num_return_sequences": 3}, id="several samples"),
]
LENGTH: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> MixtureFolders:
    root = tmp_path_factory.mktemp("tokenizers")
    experts = [
        tiny_llama(root / "chars", seed=1),
        tiny_pair_neox(root / "pairs", seed=2),
        tiny_neox(root / "chars too", seed=3),
        tiny_pair_neox(root / "pairs too", seed=4),
    ]
    return MixtureFolders(mix(root / "mixture", experts), experts)


@pytest.fixture(scope="module")
def model(folders: MixtureFolders) -> Any:
    return load_model(folders.folder, torch.float32, "cpu")


def encoded(texts: list[str], side: str = "left") -> dict[str, Tensor]:
    return dict(char_tokenizer()(texts, padding=True, padding_side=side, return_tensors="pt"))


def sent_to(expert: int, samples: int = 1) -> Tensor:
    """A routing of all samples to one expert."""
    return torch.eye(4)[[expert] * samples]


def own_words(folders: MixtureFolders, expert: int, text: str, **settings: Any) -> list[str]:
    """What the expert alone says, with its own tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folders.experts[expert])
    return list(tokenizer.batch_decode(own_tokens(folders, expert, text, **settings), skip_special_tokens=True))


def own_tokens(folders: MixtureFolders, expert: int, text: str, **settings: Any) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folders.experts[expert])
    alone = AutoModelForCausalLM.from_pretrained(folders.experts[expert]).eval()
    given = tokenizer([text], return_tensors="pt")
    torch.manual_seed(11)
    output: Tensor = alone.generate(**given, **LENGTH | settings)
    return output[:, given["input_ids"].shape[1] :]


def words(rows: Tensor, prompts: Tensor) -> list[str]:
    return [str(text) for text in CHARS.batch_decode(rows[:, prompts.shape[1] :], skip_special_tokens=True)]


def generated(model: Any, given: dict[str, Tensor], **settings: Any) -> Tensor:
    torch.manual_seed(11)
    output: Tensor = model.generate(**given, **LENGTH | settings)
    return output


@pytest.mark.parametrize("expert", range(4))
@pytest.mark.parametrize("way", WAYS)
def test_the_text_is_the_experts(model: Any, folders: MixtureFolders, expert: int, way: dict[str, Any]) -> None:
    for text in TEXTS[:3]:
        given = encoded([text])
        output = generated(model, given, routing=sent_to(expert), **way)
        assert (output[:, : given["input_ids"].shape[1]] == given["input_ids"]).all()
        assert words(output, given["input_ids"]) == own_words(folders, expert, text, **way)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("way", [WAYS[0], WAYS[3], WAYS[4]])
def test_a_batch_of_all_experts_is_its_samples_one_by_one(model: Any, side: str, way: dict[str, Any]) -> None:
    given = encoded(TEXTS, side)
    chosen = model.route(**given).argmax(-1).tolist()
    assert set(chosen) >= {0, 1, 3}, chosen
    together = words(generated(model, given, **way), given["input_ids"])
    apart = []
    for text in TEXTS:
        alone = encoded([text])
        apart += words(generated(model, alone, **way), alone["input_ids"])
    assert together == apart


def test_prompts_come_back_padded_on_the_left(model: Any) -> None:
    given = encoded(TEXTS, "right")
    output = generated(model, given, routing=sent_to(OWN, len(TEXTS)))
    assert torch.equal(output[:, : given["input_ids"].shape[1]], encoded(TEXTS)["input_ids"])


def test_the_mask_is_found_without_being_given(model: Any) -> None:
    given = encoded(TEXTS)
    assert torch.equal(generated(model, {"input_ids": given["input_ids"]}), generated(model, given))


def test_forward_refuses_ids_that_the_expert_does_not_read(model: Any) -> None:
    ids = encoded(["12"])["input_ids"]
    with pytest.raises(ValueError, match="'pairs', which has a tokenizer of its own; use generate"):
        model(ids, routing=sent_to(OWN))
    assert model(ids, routing=sent_to(0)).logits.shape == (1, 2, len(VOCABULARY))


def test_an_answer_that_its_expert_ends_ends_in_the_folders_tokens(tmp_path: Path, folders: MixtureFolders) -> None:
    said_by = {text: own_tokens(folders, OWN, text)[0].tolist() for text in TEXTS}
    # An answer in which a token first appears after two others; now that token ends it.
    text, place = next((t, i) for t, said in said_by.items() for i in range(2, 9) if said[i] not in said[:i])
    tokens = said_by[text]
    ending = tiny_pair_neox(tmp_path / "ending", seed=2, eos_token_id=[1, tokens[place]])
    model = load_model(mix(tmp_path / "mixture", [folders.experts[0], ending]), torch.float32, "cpu")
    given = encoded([text, "2"])
    rows = generated(model, given, routing=torch.eye(2)[[1, 0]])
    new = rows[0, given["input_ids"].shape[1] :].tolist()
    said = PAIRS.decode(tokens[:place])
    assert CHARS.decode(new[: len(said)]) == said
    assert new[len(said)] == CHARS.eos_token_id
    assert set(new[len(said) + 1 :]) <= {CHARS.pad_token_id}


def test_the_folders_end_token_ends_an_answer_too(model: Any, folders: MixtureFolders) -> None:
    said = own_words(folders, OWN, TEXTS[0])[0]
    end = CHARS.convert_tokens_to_ids(said[4])
    output = generated(model, encoded([TEXTS[0]]), routing=sent_to(OWN), eos_token_id=[1, end])
    assert words(output, encoded([TEXTS[0]])["input_ids"]) == [said[: said.index(said[4]) + 1]]


def test_limits_of_the_whole_length_count_from_the_prompt(model: Any, folders: MixtureFolders) -> None:
    given = encoded([TEXTS[0]])
    limits = {"max_new_tokens": None, "max_length": given["input_ids"].shape[1] + 5}
    output = generated(model, given, routing=sent_to(OWN), **limits)
    assert words(output, given["input_ids"]) == own_words(folders, OWN, TEXTS[0], max_new_tokens=5)


def test_a_streamer_hears_the_same_text(model: Any, folders: MixtureFolders) -> None:
    given = encoded([TEXTS[2]])
    for expert in (0, OWN):
        streamer = TextIteratorStreamer(char_tokenizer(), skip_prompt=True, skip_special_tokens=True)
        generated(model, given, routing=sent_to(expert), streamer=streamer, max_new_tokens=40)
        assert "".join(streamer) == own_words(folders, expert, TEXTS[2], max_new_tokens=40)[0]


@pytest.mark.parametrize("way", [{}, {"num_return_sequences": 2, "do_sample": True}])
def test_a_streamer_hears_one_answer(model: Any, way: dict[str, Any]) -> None:
    given = encoded(TEXTS[:1] if way else TEXTS)
    chosen = {"routing": sent_to(OWN, len(given["input_ids"]))}
    with pytest.raises(ValueError, match="one answer at a time"):
        generated(model, given, streamer=TextIteratorStreamer(CHARS), **chosen, **way)


def test_without_a_length_twenty_tokens_are_written(model: Any, folders: MixtureFolders) -> None:
    given = encoded([TEXTS[0]])
    output = generated(model, given, routing=sent_to(OWN), max_new_tokens=None)
    assert words(output, given["input_ids"]) == own_words(folders, OWN, TEXTS[0], max_new_tokens=20)


class EndsWith(StoppingCriteria):
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return input_ids[:, -1] == self.token


def test_criteria_read_the_folders_tokens(model: Any, folders: MixtureFolders) -> None:
    given, said = encoded([TEXTS[0]]), own_words(folders, OWN, TEXTS[0])[0]
    # Not inside a pair, so that the expert's token ends with it.
    whole = [PAIRS.decode(token) for token in PAIRS(said, add_special_tokens=False)["input_ids"]]
    last = whole[3][-1]
    criteria = StoppingCriteriaList([EndsWith(CHARS.convert_tokens_to_ids(last))])
    output = generated(model, given, routing=sent_to(OWN), stopping_criteria=criteria)
    stopped = next(count for count in range(1, 13) if whole[count - 1].endswith(last))
    assert words(output, given["input_ids"]) == ["".join(whole[:stopped])]


def test_stop_strings_stop_every_expert(model: Any, folders: MixtureFolders) -> None:
    said = own_words(folders, OWN, TEXTS[0])[0]
    settings = {"stop_strings": [said[3:5]], "tokenizer": char_tokenizer()}
    output = generated(model, encoded([TEXTS[0]]), routing=sent_to(OWN), **settings)
    assert said[: said.index(said[3:5]) + 2] in words(output, encoded([TEXTS[0]])["input_ids"])[0]
    assert len(words(output, encoded([TEXTS[0]])["input_ids"])[0]) < len(said)


@pytest.mark.parametrize(
    "settings",
    [{"bad_words_ids": [[5]]}, {"output_scores": True, "return_dict_in_generate": True}, {"suppress_tokens": [4]}],
)
def test_what_cannot_be_translated_is_refused(model: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} cannot be used: expert 'pairs'"):
        generated(model, encoded(["12"]), routing=sent_to(OWN), **settings)
    generated(model, encoded(["12"]), routing=sent_to(0), **settings)


def test_a_dictionary_holds_the_sequences(model: Any) -> None:
    given = encoded(TEXTS)
    output: Any = generated(model, given, return_dict_in_generate=True)
    assert torch.equal(output.sequences, generated(model, given))


def test_tokenizers_travel_with_the_checkpoint(model: Any, folders: MixtureFolders, tmp_path: Path) -> None:
    files = {file.path for file in build_manifest(folders.folder).files}
    assert {"tokenizer_1/tokenizer.json", "tokenizer_1/tokenizer_config.json"} <= files
    assert not any(name.startswith("tokenizer_3") for name in files), "equal tokenizers are stored once"
    model.save_pretrained(tmp_path / "saved")
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    given = encoded(TEXTS)
    assert torch.equal(generated(again, given), generated(model, given))
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "saved", trust_remote_code=True)("12+")["input_ids"]
        == CHARS("12+")["input_ids"]
    )


def test_without_tokenizers_it_says_how_to_load_them(model: Any, folders: MixtureFolders) -> None:
    bare: Any = type(model)(model.config)
    with pytest.raises(ValueError, match="call load_tokenizers"):
        generated(bare, encoded(["12"]), routing=sent_to(OWN))
    bare.load_state_dict(model.state_dict())
    bare.load_tokenizers(folders.folder)
    given = {**encoded(["12"]), "routing": sent_to(OWN)}
    assert torch.equal(generated(bare.eval(), given, pad_token_id=0), generated(model, given))


def test_experts_on_the_disk_answer_in_their_own_tokens(model: Any, folders: MixtureFolders, tmp_path: Path) -> None:
    places = {"sample_router": "cpu", "experts.0": "cpu"} | dict.fromkeys(("experts.1", "experts.2"), "disk")
    places["experts.3"] = "disk"
    placed = type(model).from_pretrained(folders.folder, device_map=places, offload_folder=tmp_path)
    given = encoded(TEXTS)
    assert torch.equal(generated(placed, given), generated(model, given))


def test_everybody_who_answers_is_counted(folders: MixtureFolders) -> None:
    model: Any = load_model(folders.folder, torch.float32, "cpu")
    given = encoded(TEXTS)
    chosen = model.route(**given).sum(0).long().tolist()
    generated(model, given, num_beams=2)
    assert model.expert_usage == [2 * count for count in chosen]


def test_probabilities_of_several_tokenizers_are_not_mixed(folders: MixtureFolders, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleModelsError, match="let one expert answer a sample"):
        mix(tmp_path / "mixture", folders.experts, top_k=2)


def test_an_expert_has_a_row_for_every_token_of_its_own(folders: MixtureFolders, tmp_path: Path) -> None:
    small = tiny_pair_neox(tmp_path / "small", vocab_size=len(PAIRS) - 1)
    with pytest.raises(IncompatibleModelsError, match=f"small has {len(PAIRS) - 1} rows"):
        mix(tmp_path / "mixture", [folders.experts[0], small])


CHATML = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '</>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
INSTRUCT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[I]' + message['content'] + '[/I]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
CHATS = [
    [{"role": "user", "content": "12+3="}],
    [
        {"role": "user", "content": "Hi\nyou"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "who?"},
    ],
    [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "who?"}],
]


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("chat", CHATS)
def test_a_chat_is_rendered_by_the_experts_template(chat: list[dict[str, str]], is_open: bool) -> None:
    ours, theirs = char_tokenizer(), pair_tokenizer()
    ours.chat_template, theirs.chat_template = CHATML, INSTRUCT
    ids = ours.apply_chat_template(chat, add_generation_prompt=is_open, return_dict=False)
    if chat[0]["role"] == "system":
        chat = [{"role": "user", "content": "Be kind\n\nwho?"}]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert Translation(ours, theirs).prompt(list(ids)) == expected


@pytest.mark.parametrize("templates", [(CHATML, None), (None, INSTRUCT), (CHATML, INSTRUCT)])
def test_what_is_no_chat_is_passed_on_as_text(templates: tuple[str | None, str | None]) -> None:
    ours, theirs = char_tokenizer(), pair_tokenizer()
    ours.chat_template, theirs.chat_template = templates
    text = "<user>12</> and more"
    assert Translation(ours, theirs).prompt(ours(text)["input_ids"]) == theirs(text)["input_ids"]


def test_an_empty_prompt_begins_with_the_experts_begin() -> None:
    assert Translation(char_tokenizer(), pair_tokenizer()).prompt([]) == [0]
