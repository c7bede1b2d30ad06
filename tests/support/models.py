"""Tiny random models, saved as complete folders in milliseconds; knows nothing of our engine."""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
VOCABULARY = [PAD, EOS, UNKNOWN, "\n", *sorted(string.ascii_letters + string.digits + string.punctuation + " ")]


def char_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character of printable ASCII and newline; decoding an encoded text gives it back."""
    words = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """The same characters and many pairs of them, with a begin token in front: other ids, other lengths."""
    first = VOCABULARY[:2:-1]
    merges = [(one, other) for one in "aeiou0123 " for other in "nrst0123"]
    words = ["<s>", "</s>", *first, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def tiny_pair_neox(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A GPT-NeoX of the pair tokenizer."""
    tokenizer = pair_tokenizer()
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    tiny_neox(folder, seed, **{"vocab_size": len(tokenizer), **tokens, **config})
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Save the character tokenizer into `folder` and return it."""
    tokenizer = char_tokenizer()
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_llama(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A Llama of two layers and width 16, tied embeddings unless `config` says otherwise."""
    return _save(folder, seed, LlamaForCausalLM, LlamaConfig(**_shape(config, tie_word_embeddings=True)))


def tiny_neox(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A GPT-NeoX of two layers and width 16, untied embeddings unless `config` says otherwise."""
    shape = _shape(config, tie_word_embeddings=False)
    shape.pop("num_key_value_heads")
    return _save(folder, seed, GPTNeoXForCausalLM, GPTNeoXConfig(**shape))


def tiny_qwen3(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A Qwen3 of two layers and width 16, tied embeddings unless `config` says otherwise."""
    shape = _shape(config, tie_word_embeddings=True, head_dim=8)
    return _save(folder, seed, Qwen3ForCausalLM, Qwen3Config(**shape))


def _shape(config: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": VOCABULARY.index(PAD),
        "eos_token_id": VOCABULARY.index(EOS),
        "bos_token_id": None,
        # Random models of the usual deviation of 0.02 answer alike; these disagree.
        "initializer_range": 0.3,
        **defaults,
        **config,
    }


def _save(folder: Path, seed: int, kind: type[PreTrainedModel], config: PreTrainedConfig) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    model.save_pretrained(folder)
    tiny_tokenizer(folder)
    return folder
