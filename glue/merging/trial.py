"""A finished model loaded by transformers and run once, as a last check. Knows nothing of how it was made."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from glue.specs.errors import IncompatibleModelsError

TOKENS = 8


def run_once(folder: Path, kind: Any = AutoModelForCausalLM) -> None:
    """Load the model by the class `kind` and let it read a few tokens.

    Raises:
        IncompatibleModelsError: tensors are missing or left over, or the logits are not finite.
    """
    settings = {"trust_remote_code": False} if kind is AutoModelForCausalLM else {}
    model, loading = kind.from_pretrained(folder, output_loading_info=True, **settings)
    wrong = {key: value for key, value in loading.items() if value}
    if wrong:
        raise IncompatibleModelsError(f"transformers does not load the result as it should: {wrong}")
    ids = torch.arange(TOKENS).unsqueeze(0) % model.config.vocab_size
    with torch.no_grad():
        logits = model.eval()(ids).logits
    if not logits.isfinite().all():
        raise IncompatibleModelsError("the result's logits are not finite")
