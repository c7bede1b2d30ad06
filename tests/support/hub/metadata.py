"""What the Hub says of a README's YAML block. A model of its rules, from its documentation of model cards."""

from collections.abc import Iterator
from typing import Any

import yaml

LICENCES = frozenset(
    [
        "apache-2.0",
        "mit",
        "openrail",
        "bsl-1.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc",
        "cc0-1.0",
        "cc-by-4.0",
        "cc-by-sa-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-3.0",
        "cc-by-nc-2.0",
        "afl-3.0",
        "artistic-2.0",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "agpl-3.0",
        "lgpl",
        "lgpl-3.0",
        "llama2",
        "llama3",
        "llama3.1",
        "llama3.2",
        "llama3.3",
        "llama4",
        "gemma",
        "bigscience-openrail-m",
        "bigcode-openrail-m",
        "creativeml-openrail-m",
        "bigscience-bloom-rail-1.0",
        "unlicense",
        "unknown",
        "other",
    ]
)
RELATIONS = ("adapter", "merge", "quantized", "finetune")


def metadata_errors(content: str) -> list[str]:
    """The mistakes in the YAML block at the head of a model card; none where there is no block."""
    if not content.startswith("---\n") or "\n---" not in content[4:]:
        return []
    try:
        metadata = yaml.safe_load(content[4:].partition("\n---")[0])
    except yaml.YAMLError as error:
        return [f"the YAML cannot be read: {error}"]
    return list(_errors(metadata)) if isinstance(metadata, dict) else ["the metadata is not an object"]


def _errors(metadata: dict[str, Any]) -> Iterator[str]:
    licence, base = metadata.get("license"), metadata.get("base_model", [])
    if licence is not None and licence not in LICENCES:
        yield f'"license" must be one of the known licences, not {licence!r}'
    if licence == "other" and not metadata.get("license_name"):
        yield '"license_name" is needed with the licence "other"'
    if not _texts(base if isinstance(base, list) else [base]) or not all(
        "/" in model for model in (base if isinstance(base, list) else [base])
    ):
        yield '"base_model" must be a repository or a list of them'
    if metadata.get("base_model_relation", "merge") not in RELATIONS:
        yield f'"base_model_relation" must be one of {RELATIONS}'
    for key in ("tags", "datasets"):
        if not _texts(metadata.get(key, [])):
            yield f'"{key}" must be a list of strings'
    for index, model in enumerate(metadata.get("model-index", [])):
        yield from _index_errors(f"model-index[{index}]", model)


def _index_errors(place: str, model: dict[str, Any]) -> Iterator[str]:
    if not model.get("name"):
        yield f'"{place}.name" is required'
    if not model.get("results"):
        yield f'"{place}.results" must not be empty'
    for result in model.get("results", []):
        if not result.get("task", {}).get("type"):
            yield f'"{place}.results.task.type" is required'
        if not {"name", "type"} <= result.get("dataset", {}).keys():
            yield f'"{place}.results.dataset.name" and ".type" are required'
        for metric in result.get("metrics") or [{}]:
            if not {"type", "value"} <= metric.keys():
                yield f'"{place}.results.metrics" need a type and a value'


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
