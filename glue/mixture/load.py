"""Loading a model that we or others saved, without ever running code that came with it. Knows no job."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from glue.mixture.modelling import Modelling, modelling_of
from glue.references.folders import read_config
from glue.references.reading import refusal


def load_model(folder: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The causal language model of a folder, in evaluation mode on the device.

    A mixture of ours, recognised by its config and by the sha256 of its modelling file, is loaded through the
    class of this package, never through its file. Everything else has to be a stock architecture. Weights are
    read from safetensors only, and every one of the model's has to be there.

    Raises:
        IncompatibleModelsError: a mixture's modelling file is not ours, no stock architecture fits, or weights
            are missing, unexpected or of the wrong shape.
    """
    modelling = modelling_of(read_config(folder).get("model_type"))
    if modelling is None:
        return _load(AutoModelForCausalLM, folder, dtype, device, trust_remote_code=False)
    _check_modelling_files(folder, modelling)
    return _load(modelling.model, folder, dtype, device)


def empty_model(config: Mapping[str, Any], folder: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A stock model of that config whose weights are still to be filled, generating as the folder's model does."""
    settings = CONFIG_MAPPING[str(config["model_type"])].from_dict(dict(config))
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    empty: PreTrainedModel = model.to(device).eval()
    return empty


def _check_modelling_files(folder: Path, modelling: Modelling) -> None:
    expected = {modelling.file: hashlib.sha256(modelling.source()).hexdigest()}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.py")}
    if found != expected:
        strange = sorted(dict(found.items() ^ expected.items()))[0]
        detail = f"{strange} in {folder.name} is not the modelling file that this version writes"
        raise refusal("modelling_file", detail, "pull the mixture again, or build it again from its report")


def _load(kind: Any, folder: Path, dtype: torch.dtype, device: str, **settings: Any) -> PreTrainedModel:
    # Mismatched sizes are ignored only to be found and told below, with their names.
    settings |= {"use_safetensors": True, "local_files_only": True, "ignore_mismatched_sizes": True}
    try:
        model, findings = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **settings)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        fix = "use a complete causal language model that transformers loads without remote code"
        raise refusal("not_loadable", f"{folder.name} cannot be loaded: {error}", fix) from error
    _check_findings(folder, findings)
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def _check_findings(folder: Path, findings: dict[str, Any]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if findings[kind]:
            first = min(str(key) for key in findings[kind])
            detail = f"{folder.name} has {len(findings[kind])} {kind.replace('_', ' ')}, the first is {first}"
            raise refusal(kind, detail, "save the whole model again with save_pretrained()")
