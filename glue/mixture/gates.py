"""Gate vectors for mixtures whose layers route: from prompts, or random. Knows no checkpoint, no architecture.

Source: mergekit-moe's gate modes. Ours take prompts one by one, so padding counts nowhere.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glue.specs.errors import InvalidInputError, Problem

GateMode = Literal["hidden", "hidden_avg", "cheap_embed"]

_SMALLEST_LENGTH = 1e-8


@dataclass(frozen=True)
class ExpertPrompts:
    """Texts that belong to an expert, and texts that do not."""

    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()


def prompt_gates(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[ExpertPrompts], mode: GateMode
) -> Tensor:
    """Gate vectors of unit length, layers x experts x hidden, float32, from the states of the base model.

    For each layer and expert: the mean over its positive prompts of the layer's input, minus that over its
    negative ones, normalised. A prompt's state is that of its last token (`hidden`), its tokens' mean
    (`hidden_avg`) or, the same for every layer, the sum of its token embeddings (`cheap_embed`).

    Raises:
        InvalidInputError: an expert has no positive prompt, or all experts have the same ones.
    """
    check_prompts(prompts)
    states = _cheap_states if mode == "cheap_embed" else _hidden_states(mode == "hidden_avg")
    vectors = []
    for each in prompts:
        vector = states(model, tokenizer, each.positive)
        if each.negative:
            vector = vector - states(model, tokenizer, each.negative)
        vectors.append(_unit(vector))
    return torch.stack(vectors, dim=1).float()


def random_gates(layers: int, experts: int, hidden: int, seed: int) -> Tensor:
    """Standard normal gate vectors, layers x experts x hidden; the seed decides."""
    return torch.randn(layers, experts, hidden, generator=torch.Generator().manual_seed(seed))


def uniform_gates(layers: int, experts: int, hidden: int, seed: int) -> Tensor:
    """Gate vectors as torch begins a linear layer: uniform within plus or minus one over the root of `hidden`."""
    drawn = torch.rand(layers, experts, hidden, generator=torch.Generator().manual_seed(seed))
    scale = math.sqrt(1.0 / hidden)
    return drawn * 2 * scale - scale


def degenerate_layers(gates: Tensor, threshold: float = 5.0) -> list[int]:
    """Layers whose gate vectors are too alike to tell experts apart: their condition number exceeds the threshold."""
    conditions = torch.linalg.cond(gates.double())
    return [layer for layer, condition in enumerate(conditions.tolist()) if not condition <= threshold]


def check_prompts(prompts: Sequence[ExpertPrompts]) -> None:
    """Check that prompts can tell the experts apart.

    Raises:
        InvalidInputError: an expert has no positive prompt, or all experts have the same ones.
    """
    problems = [
        Problem(f"/experts/{index}/positive_prompts", "no_prompt", "the expert has no positive prompt", "give one")
        for index, each in enumerate(prompts)
        if not each.positive
    ]
    if len(prompts) > 1 and len(set(prompts)) == 1:
        detail = "all experts have the same prompts, so no gate can tell them apart"
        problems.append(Problem("/experts", "same_prompts", detail, "give each expert prompts of its own"))
    if problems:
        raise InvalidInputError(problems[0].detail, problems)


States = Callable[[PreTrainedModel, PreTrainedTokenizerBase, Sequence[str]], Tensor]


def _hidden_states(average: bool) -> States:
    def states(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
        """The mean state over the texts: layers x hidden."""
        return torch.stack([_inputs_of_layers(model, tokenizer, text, average) for text in texts]).mean(0)

    return states


@torch.no_grad()
def _inputs_of_layers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, average: bool) -> Tensor:
    output = model(_encode(model, tokenizer, text), output_hidden_states=True, use_cache=False)
    states = torch.cat([state.double() for state in output.hidden_states[:-1]])
    return states.mean(1) if average else states[:, -1]


@torch.no_grad()
def _cheap_states(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    embedding = model.get_input_embeddings()
    summed = sum(embedding(_encode(model, tokenizer, text))[0].double().sum(0) for text in texts)
    layers: int = model.config.num_hidden_layers
    return _unit(torch.as_tensor(summed)).expand(layers, -1)


def _encode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    ids = tokenizer((tokenizer.bos_token or "") + text, add_special_tokens=False)["input_ids"]
    return torch.tensor([ids], device=model.device)


def _unit(vector: Tensor) -> Tensor:
    length: Tensor = vector.norm(dim=-1, keepdim=True)
    return vector / length.clamp(min=_SMALLEST_LENGTH)
