from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from glue.evaluation import sandbox
from glue.pipeline import heard as heard_module
from glue.pipeline.context import Context
from glue.pipeline.heard import heard
from glue.sandbox.programs import Verdict
from tests.support.models import tiny_llama


def test_forward_passes_and_programs_are_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heard_module, "_TELL_SECONDS", 0)
    said: list[tuple[float, str]] = []
    context = Context(tmp_path, tmp_path, "cpu", lambda fraction, text: said.append((fraction, text)), {})
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "model"))
    tokens = torch.tensor([[1, 2, 3]])
    with heard(model, context, 0.1):
        model(tokens)
        model.generate(tokens, max_new_tokens=2, min_new_tokens=2, do_sample=False)
        monkeypatch.setattr(sandbox, "check_sandbox", lambda language: None)
        monkeypatch.setattr(sandbox, "_run", lambda *_: Verdict(True, "passed"))
        sandbox.run_program("python", "")
    passes = [(0.1, f"scoring: {count} forward passes") for count in (1, 2, 3)]
    assert said == [*passes, (0.1, "scoring: 3 forward passes, 1 programs")]
    model(tokens)
    sandbox.run_program("python", "")
    assert len(said) == 4
