"""One model of a zoo: found, pinned and looked into as far as its config and headers tell."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glue.references.adapters import base_of, check_adapter, is_adapter
from glue.references.findings import Findings
from glue.references.folders import folder_commit, read_config, resolve_folder
from glue.references.headers import TensorInfo, folder_tensors
from glue.references.hub_access import HubAccess
from glue.references.hub_download import model_folder
from glue.references.hub_headers import headers_of
from glue.references.hub_names import hub_reference, is_hub_source, split_adapter
from glue.references.licences import licence_of_folder
from glue.references.reading import refusal
from glue.references.signature import architecture, has_chat_template, tokenizer_digest
from glue.specs.errors import IncompatibleModelsError, InvalidInputError, Problem
from glue.specs.job import JobRequest
from glue.specs.zoo import BASE, ZooSpec

# How quantised matrices are stored. Masks that older releases saved have more dimensions, position numbers are I64.
_PACKED = {"I8", "U8", "I16", "U16", "I32", "U32", "F8_E4M3", "F8_E5M2", "F8_E8M0"}
_PACKED_DIMENSIONS = (2, 3)
_NAME_BOTH = "write the source as model+adapter"
_OTHER_INPUTS = ("vision_config", "audio_config", "speech_config", "image_token_id", "image_token_index")


# Headers are small and many: one after the other, sixteen models would take a minute of waiting.
_THREADS = 8


@dataclass(frozen=True)
class FoundAdapter:
    """The adapter of a zoo entry, with what `FoundModel` says of a model."""

    folder: Path
    headers: Path
    commit: str
    repo: str | None
    licence: str | None


@dataclass(frozen=True)
class FoundModel:
    """A zoo entry's folder, its commit and its tokenizer's digest; of one on the Hub also its repository.

    `folder` is where the job finds it; `headers`, which may be another, is where it can be looked into now. Of an
    entry that is an adapter they are those of the model that it lies on.
    """

    name: str
    pointer: str
    folder: Path
    headers: Path
    commit: str
    tokenizer: str
    repo: str | None = None
    licence: str | None = None
    adapter: FoundAdapter | None = None


@dataclass(frozen=True)
class _Place:
    """Where a source lies: its folder now and in the job, its commit, its repository; the same of its adapter."""

    folder: Path
    headers: Path
    commit: str | None
    repo: str | None
    licence: str | None
    adapter: "_Place | None" = None

    def found_adapter(self) -> FoundAdapter | None:
        if self.adapter is None:
            return None
        place = self.adapter
        commit = place.commit or folder_commit(place.headers)
        return FoundAdapter(place.folder, place.headers, commit, place.repo, place.licence)


def find_models(
    zoo: ZooSpec, roots: Sequence[Path], findings: Findings, hub: HubAccess | None = None
) -> list[FoundModel]:
    """Every entry of the zoo that can be used, the base first; what is wrong with the others goes to `findings`.

    Raises:
        HubUnavailableError: the Hub does not answer.
    """
    members = {member.name: f"/members/{number}/source" for number, member in enumerate(zoo.members)}
    return find_sources(zoo.sources(), {BASE: "/base/source"} | members, roots, findings, hub)


def find_sources(
    sources: Mapping[str, str],
    pointers: Mapping[str, str],
    roots: Sequence[Path],
    findings: Findings,
    hub: HubAccess | None = None,
) -> list[FoundModel]:
    """The models of these names and sources that can be used; `pointers` say where the user named each.

    Raises:
        HubUnavailableError: the Hub does not answer.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        places = {name: pool.submit(_place, source, roots, hub) for name, source in sources.items()}
        found = [_find(name, pointers[name], place.result, findings) for name, place in places.items()]
    return [model for model in found if model is not None]


def _place(source: str, roots: Sequence[Path], hub: HubAccess | None) -> _Place:
    model, adapter = split_adapter(source)
    place = _place_of(model, roots, hub)
    if adapter is not None:
        return replace(place, adapter=_place_of(adapter, roots, hub))
    if is_adapter(place.headers):
        return replace(_place_of(_trained_on(place), roots, hub), adapter=place)
    return place


def _trained_on(adapter: _Place) -> str:
    """The source of the model that an adapter names; what came from elsewhere cannot name a folder of ours."""
    named = base_of(adapter.headers)
    if named is None:
        raise refusal("adapter", "the adapter does not say which model it was trained on", _NAME_BOTH)
    if not is_hub_source(named) and (adapter.repo is not None or not named.startswith("/")):
        detail = f"the adapter was trained on {named[:200]!r}, which is no repository of the Hub"
        raise refusal("adapter", detail, _NAME_BOTH)
    return named


def _place_of(source: str, roots: Sequence[Path], hub: HubAccess | None) -> _Place:
    if not is_hub_source(source):
        folder = resolve_folder(source, roots)
        return _Place(folder, folder, None, None, licence_of_folder(folder))
    if hub is None:
        detail = "models of the Hub cannot be used here"
        raise InvalidInputError(detail, [Problem("", "no_hub", detail, "give local folders")])
    reference = hub_reference(source)
    model, headers = headers_of(reference, hub)
    return _Place(model_folder(reference, model.commit, hub), headers, model.commit, model.repo, model.licence)


def check_tokenizers(models: Sequence[FoundModel], request: JobRequest, findings: Findings) -> None:
    """Experts of several tokenizers have nothing in common but a router: no layers, and no answer."""
    others = [model.name for model in models if model.tokenizer != models[0].tokenizer]
    mixture = request.mixture
    wrong = "level" if mixture.shares_layers else "top_k" if mixture.top_k > 1 else None
    if others and wrong:
        detail = f"{', '.join(others)} and {models[0].name} have different tokenizers, so one whole model has to answer"
        fix = "set level to model without dense_layers, and top_k to 1; or leave them out"
        refused = InvalidInputError(detail, [Problem("", "tokenizer_differs", detail, fix)])
        findings.add(refused, f"/mixture/{wrong}", "tokenizers")


def check_chats(models: Sequence[FoundModel], request: JobRequest, findings: Findings) -> None:
    """A suite's chats are rendered by the template of each tokenizer, that of the first member that has it."""
    members = [model for model in models if model.name != BASE]
    firsts = {model.tokenizer: model for model in reversed([*members, *models])}
    without = [model.name for model in firsts.values() if not has_chat_template(model.headers)]
    for name, suite in (("proxy", request.proxy), ("report", request.report)):
        if suite.chat_template and without:
            detail = f"chats need a template, and the tokenizer of {', '.join(sorted(without))} has none"
            fix = "set it to false, or put a chat template beside the tokenizer"
            refused = InvalidInputError(detail, [Problem("", "no_chat_template", detail, fix)])
            findings.add(refused, f"/{name}/chat_template", "tokenizers")


def find_folder(name: str, pointer: str, folder: Path, findings: Findings) -> FoundModel | None:
    """A model in a folder that the caller may read; what is wrong with it goes to `findings`."""
    place = _Place(folder, folder, None, None, licence_of_folder(folder))
    return _find(name, pointer, lambda: place, findings)


def _find(name: str, pointer: str, found: Callable[[], _Place], findings: Findings) -> FoundModel | None:
    before = len(findings.problems)
    commit = tokenizer = ""
    with findings.at(pointer, name):
        place = found()
        with findings.at(pointer, name):
            check_config(read_config(place.headers))
        with findings.at(pointer, name):
            check_tensors(folder_tensors(place.headers))
        with findings.at(pointer, name):
            tokenizer = tokenizer_digest(place.headers)
        if place.adapter is not None:
            with findings.at(pointer, name):
                check_adapter(place.adapter.headers, folder_tensors(place.headers))
        commit = place.commit or folder_commit(place.headers)
    if len(findings.problems) > before:
        return None
    return FoundModel(
        name, pointer, place.folder, place.headers, commit, tokenizer, place.repo, place.licence, place.found_adapter()
    )


def check_config(config: Mapping[str, Any]) -> None:
    """The config is that of a whole, unquantised causal language model of a stock architecture.

    Raises:
        IncompatibleModelsError: with one problem for each reason why not.
    """
    problems = list(_config_problems(config))
    if problems:
        raise IncompatibleModelsError(problems[0].detail, problems)


def check_tensors(tensors: Mapping[str, TensorInfo]) -> None:
    """The weights are floating point numbers.

    Raises:
        IncompatibleModelsError: there are none, or the matrices are quantised.
    """
    if not tensors:
        raise refusal("no_weights", "its weight files hold no tensors", "save the model again")
    quantised = [info for info in tensors.values() if info.dtype in _PACKED and len(info.shape) in _PACKED_DIMENSIONS]
    if quantised:
        detail = f"tensor {quantised[0].name[:200]!r} is stored as {quantised[0].dtype}, so the model is quantised"
        raise refusal("quantised", detail, "give the original model in 16 or 32 bit")


def _config_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    name = architecture(config)
    if config.get("auto_map"):
        fix = "use a model whose architecture transformers knows; code that came with a model is never run"
        yield Problem("", "custom_code", "its config asks for code of its own (auto_map)", fix)
    if config.get("quantization_config"):
        yield Problem(
            "", "quantised", "its config says that it is quantised", "give the original model in 16 or 32 bit"
        )
    if any(config.get(key) is not None for key in _OTHER_INPUTS):
        fix = "use its language model alone, saved as a causal language model"
        yield Problem("", "not_text_only", "it reads images or sound beside text", fix)
    if not name:
        fix = "save the model with save_pretrained(), which names the class"
        yield Problem("", "no_architecture", "its config names no architecture", fix)
    elif config.get("is_encoder_decoder") or not name.endswith(("ForCausalLM", "LMHeadModel")):
        yield Problem("", "not_causal", f"{name[:100]} is not a causal language model", "use decoder-only models")
    size = config.get("vocab_size")
    if type(size) is not int or size < 1:
        yield Problem("", "no_vocabulary", "its config has no vocab_size", "save the model with save_pretrained()")
