"""Stage `resolve`: look into every entry's folder, from headers and configs, and name its content."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from glue.checkpoints.architecture import architecture_of, stored_tensors
from glue.checkpoints.content import adapter_digest, content_digest
from glue.checkpoints.guarded import convert_in_a_process
from glue.pipeline.context import Context
from glue.plans.model_glue import inspect_units
from glue.references.adapters import check_adapter
from glue.references.folders import folder_commit, read_config
from glue.references.headers import TensorInfo, folder_tensors
from glue.references.hub_datasets import download_data
from glue.references.hub_download import download
from glue.references.signature import signature, tokenizer_digest
from glue.specs.digests import digest_of
from glue.specs.errors import InvalidInputError, Problem
from glue.specs.job import JobSpec, ResolvedAdapter, ResolvedModel
from glue.specs.kinds import ModelJobSpec
from glue.specs.plan import UnitOutcome, UnitRequest
from glue.specs.results import InspectedModel, ResolveResult


def inspect(request: UnitRequest, spec: ModelJobSpec, context: Context) -> UnitOutcome:
    """One entry's folder: complete, a causal language model, and unchanged since submission.

    Raises:
        InvalidInputError: the folder changed since the job was submitted.
        IncompatibleModelsError: tensors are missing or of the wrong shape.
    """
    name = str(request.payload["name"])
    model = next(model for model in spec.models if model.name == name)
    context.progress(0.0, f"{name}: headers and config")
    for part in (model, model.adapter):
        if part is not None:
            _check_unchanged(name, part)
    folder = Path(model.path)
    config, tensors = read_config(folder), folder_tensors(folder)
    stored = stored_tensors(architecture_of(config), tensors, name)
    if model.adapter is not None:
        check_adapter(Path(model.adapter.path), tensors)
    context.progress(0.2, f"{name}: content")
    return UnitOutcome(_inspected(model, config, stored).as_json())


def _check_unchanged(name: str, part: ResolvedModel | ResolvedAdapter) -> None:
    # What came from the Hub was checked file by file as it arrived.
    if part.repo is None and folder_commit(Path(part.path)) != part.commit:
        raise InvalidInputError(
            f"the model '{name}' changed since the job was submitted",
            [Problem("/zoo", "model_changed", f"the folder of '{name}' has other content", "submit the job again")],
        )


def _content(model: ResolvedModel) -> str:
    content = content_digest(Path(model.path))
    return content if model.adapter is None else digest_of([content, adapter_digest(Path(model.adapter.path))])


def _inspected(model: ResolvedModel, config: dict[str, Any], tensors: Mapping[str, TensorInfo]) -> InspectedModel:
    settings = AutoConfig.for_model(**config).get_text_config()
    embedding = max(tensors.values(), key=lambda info: info.shape[0] if len(info.shape) == 2 else 0)
    return InspectedModel(
        name=model.name,
        content=_content(model),
        signature=signature(config, tensors),
        tokenizer=tokenizer_digest(Path(model.path)),
        architecture=str(config["architectures"][0]),
        dtype=embedding.dtype,
        parameters=sum(prod(info.shape) for info in tensors.values()),
        hidden_size=int(settings.hidden_size),
        layers=int(settings.num_hidden_layers),
        vocabulary=int(settings.vocab_size),
        tied=bool(settings.tie_word_embeddings),
    )


def fetch(request: UnitRequest, spec: ModelJobSpec, context: Context) -> UnitOutcome:
    """One entry from the Hub into the folder that the job knows it by; what is there already is not fetched again.

    Raises:
        GlueError: as `glue.references.hub_download.download`.
    """
    payload = request.payload
    repo, commit = str(payload["repo"]), str(payload["commit"])
    folder = download(repo, commit, context.hub_access(), context.progress, convert_in_a_process)
    return UnitOutcome({"name": payload["name"], "files": len(list(folder.iterdir()))})


def fetch_data(request: UnitRequest, spec: ModelJobSpec, context: Context) -> UnitOutcome:
    """Files of a data set from the Hub; what is there already is not fetched again.

    Raises:
        GlueError: as `glue.references.hub_datasets.download_data`.
    """
    payload = request.payload
    repo, paths = str(payload["repo"]), [str(path) for path in payload["paths"]]
    download_data(repo, str(payload["commit"]), paths, context.hub_access(), context.progress)
    return UnitOutcome({"name": repo, "files": len(paths)})


def advance(request: UnitRequest, spec: JobSpec) -> UnitOutcome:
    """Look into what was fetched; then group the members by signature, rows and tokenizer, in zoo order."""
    inspected = [unit for unit in request.units if unit.kind == "resolve.inspect"]
    if not inspected:
        return UnitOutcome(units=inspect_units(spec))
    models = tuple(InspectedModel.parse(unit.result) for unit in inspected)
    members = [model for model in models if model.name in spec.zoo.member_names()]
    groups: dict[tuple[str, int, str], list[str]] = {}
    for member in members:
        # One tokenizer, but embeddings padded to other sizes: a search merges into one resident model.
        groups.setdefault((member.signature, member.vocabulary, member.tokenizer), []).append(member.name)
    result = ResolveResult(models=models, groups=tuple(tuple(group) for group in groups.values()))
    return UnitOutcome(result.as_json(), finished=True)
