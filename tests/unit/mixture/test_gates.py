"""Gate vectors: mergekit-moe's formulas, without its padding."""

from typing import Any

import pytest
import torch
from torch import Tensor

from glue.mixture.gates import ExpertPrompts, GateMode, degenerate_layers, prompt_gates, random_gates
from glue.mixture.load import load_model
from glue.specs.errors import InvalidInputError
from tests.support.models import char_tokenizer, tiny_llama

TEXTS = [ExpertPrompts(("12+3=", "9*9=")), ExpertPrompts(("def f(x):",)), ExpertPrompts(("Once upon",), ("7-2=",))]
MODES: list[GateMode] = ["hidden", "hidden_avg", "cheap_embed"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(tiny_llama(tmp_path_factory.mktemp("gates") / "base"), torch.float32, "cpu")


def states(base: Any, text: str) -> Tensor:
    """Inputs of all layers: layers x tokens x hidden."""
    ids = torch.tensor([char_tokenizer()(text)["input_ids"]])
    with torch.no_grad():
        return torch.cat(base(ids, output_hidden_states=True).hidden_states[:-1])


@pytest.mark.parametrize("mode", MODES)
def test_rows_have_unit_length(base: Any, mode: GateMode) -> None:
    gates = prompt_gates(base, char_tokenizer(), TEXTS, mode)
    assert gates.shape == (2, 3, 16)
    assert gates.dtype == torch.float32
    torch.testing.assert_close(gates.norm(dim=-1), torch.ones(2, 3))


def test_the_formula_of_the_last_token(base: Any) -> None:
    gates = prompt_gates(base, char_tokenizer(), TEXTS, "hidden")
    several = (states(base, "12+3=")[:, -1] + states(base, "9*9=")[:, -1]) / 2
    torch.testing.assert_close(gates[:, 0], torch.nn.functional.normalize(several, dim=-1))
    difference = states(base, "Once upon")[:, -1] - states(base, "7-2=")[:, -1]
    torch.testing.assert_close(gates[:, 2], torch.nn.functional.normalize(difference, dim=-1))


def test_the_formula_of_the_mean_counts_no_padding(base: Any) -> None:
    gates = prompt_gates(base, char_tokenizer(), TEXTS, "hidden_avg")
    several = (states(base, "12+3=").mean(1) + states(base, "9*9=").mean(1)) / 2
    torch.testing.assert_close(gates[:, 0], torch.nn.functional.normalize(several, dim=-1))


def test_embeddings_are_summed_and_equal_in_every_layer(base: Any) -> None:
    gates = prompt_gates(base, char_tokenizer(), TEXTS, "cheap_embed")
    assert torch.equal(gates[0], gates[1])
    summed = base.get_input_embeddings()(torch.tensor(char_tokenizer()("def f(x):")["input_ids"])).sum(0)
    torch.testing.assert_close(gates[0, 1], torch.nn.functional.normalize(summed.detach(), dim=-1))


def test_a_prompts_own_state_prefers_its_own_expert(base: Any) -> None:
    # With one positive prompt each and no negative ones: the inequality of Cauchy and Schwarz.
    texts = ["12+3=", "def f(x):", "Once upon"]
    gates = prompt_gates(base, char_tokenizer(), [ExpertPrompts((text,)) for text in texts], "hidden")
    for own, text in enumerate(texts):
        scores = torch.einsum("leh,lh->le", gates, states(base, text)[:, -1])
        assert scores.argmax(-1).tolist() == [own, own]


def test_missing_and_equal_prompts_are_told(base: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        prompt_gates(base, char_tokenizer(), [ExpertPrompts(("a",)), ExpertPrompts(())], "hidden")
    assert caught.value.problems[0].pointer == "/experts/1/positive_prompts"
    with pytest.raises(InvalidInputError, match="same prompts"):
        prompt_gates(base, char_tokenizer(), [ExpertPrompts(("a",))] * 2, "hidden")


def test_random_gates_follow_the_seed() -> None:
    assert torch.equal(random_gates(2, 3, 4, seed=1), random_gates(2, 3, 4, seed=1))
    assert not torch.equal(random_gates(2, 3, 4, seed=1), random_gates(2, 3, 4, seed=2))
    torch.manual_seed(1)
    assert torch.equal(random_gates(2, 3, 4, seed=1), torch.randn(2, 3, 4))


def test_gates_that_tell_nobody_apart_are_noticed() -> None:
    good = torch.eye(3, 8)
    alike = torch.ones(3, 8) + 0.01 * torch.eye(3, 8)
    assert degenerate_layers(torch.stack([good, alike, torch.zeros(3, 8)])) == [1, 2]
