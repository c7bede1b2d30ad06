"""What headers and configs tell of a job before it is submitted: facts, problems, warnings, and what it may take.

The problems are those of a submission, found by the same code. Reads no weight and opens no database.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from shutil import disk_usage
from typing import Any

from glue.plans.estimates import (
    ModelSize,
    Throughputs,
    Workers,
    built_bytes,
    disk_needed,
    estimate_build,
    estimate_merge,
    estimate_stages,
)
from glue.references.folders import read_config
from glue.references.headers import folder_tensors
from glue.references.hub_cache import COMPLETE
from glue.references.licences import combine, licences_of
from glue.references.models import FoundModel
from glue.references.signature import architecture, differences, position_settings, signature_parts
from glue.specs.build import BuildRequest
from glue.specs.digests import digest_of
from glue.specs.errors import Problem
from glue.specs.job import JobRequest
from glue.specs.preflight import DiskEstimate, Finding, ModelFacts, Preflight, StageEstimate
from glue.specs.search import takes_task_vectors
from glue.specs.zoo import BASE

GIGA = 1e9


@dataclass(frozen=True)
class Room:
    """What is there for a job: free bytes of the disk (none: kept elsewhere), and each worker's classes and memory."""

    free_bytes: int | None
    workers: Sequence[tuple[Sequence[str], int]]
    on_device: bool = False


def preflight(
    kind: str,
    request: object,
    models: Sequence[FoundModel],
    problems: Sequence[Problem],
    room: Room,
    speeds: Throughputs | None = None,
) -> Preflight:
    """All that is known of a request; of one that is wrong as much as the models that can be used tell.

    Estimates are given for jobs that make a model; what other kinds need follows from the models' facts.
    """
    seen = [_look_at(model) for model in models]
    groups = _groups(seen)
    facts = [_facts(each, groups) for each in seen]
    speeds, stages, disk = speeds or Throughputs(), [], None
    # What a build says of models that are unlike, it says when it is planned.
    unlike = () if isinstance(request, BuildRequest) else _unlike(seen)
    warnings = list(chain(unlike, _contexts(seen, groups), _dtypes(seen), _licences(models, problems)))
    downloads = [each.download_bytes for each in facts]
    workers = Workers(Counter(name for classes, _ in room.workers for name in classes), room.on_device)
    if isinstance(request, BuildRequest) and seen:
        each_size = [each.size for each in seen]
        stages = estimate_build(request, each_size, downloads, workers, speeds)
        needed = sum(downloads) + built_bytes(request, each_size)
        disk = _disk(needed, needed, room)
        warnings += [*_room_is_short(disk), *_no_worker(stages, room)]
    if isinstance(request, JobRequest) and groups:
        sizes = [[one.size for one in group] for group in groups]
        stages = estimate_stages(request, sizes, downloads, workers, speeds)
        alone = [[size] for group in sizes for size in group]
        disk = _disk(disk_needed(request, sizes, downloads), disk_needed(request, alone, downloads), room)
        warnings += [*_base_differs(request, seen), *_room_is_short(disk), *_no_worker(stages, room)]
    return Preflight(
        kind=kind,
        ok=not problems,
        problems=[_finding(problem) for problem in problems],
        warnings=warnings,
        models=facts,
        stages=stages,
        disk=disk,
        download_bytes=sum(each.download_bytes for each in facts),
        seconds=round(sum(stage.seconds for stage in stages), 1) if stages else None,
        assumptions=speeds.told(room.on_device) if stages else [],
    )


def preflight_merge(
    models: Sequence[FoundModel], problems: Sequence[Problem], notes: Sequence[Finding], written: int, free: int
) -> Preflight:
    """The same of a merge file, whose result has `written` bytes; 0 where it cannot be told."""
    seen, speeds = [_look_at(model) for model in models], Throughputs()
    groups = _groups(seen)
    read = sum(each.size.bytes for each in seen)
    stages = [estimate_merge(read, written, speeds)] if written else []
    disk = _disk(written, written, Room(free, ())) if written else None
    return Preflight(
        kind="merge_file",
        ok=not problems,
        problems=[_finding(problem) for problem in problems],
        warnings=[*notes, *_contexts(seen, groups), *_licences(models, problems), *_room_is_short(disk)],
        models=[_facts(each, groups) for each in seen],
        stages=stages,
        disk=disk,
        download_bytes=0,
        seconds=stages[0].seconds if stages else None,
        assumptions=speeds.told(on_device=False)[:2] if stages else [],
    )


@dataclass(frozen=True)
class _Seen:
    model: FoundModel
    config: Mapping[str, Any]
    parts: Mapping[str, Any]
    signature: str
    size: ModelSize
    dtype: str

    @property
    def vocabulary(self) -> Any:
        return self.config.get("vocab_size")


def _look_at(model: FoundModel) -> _Seen:
    config, tensors = read_config(model.headers), folder_tensors(model.headers)
    by_dtype: Counter[str] = Counter()
    for info in tensors.values():
        by_dtype[info.dtype] += prod(info.shape)
    parts = signature_parts(config, tensors)
    size = ModelSize(sum(by_dtype.values()), sum(info.end - info.start for info in tensors.values()))
    return _Seen(model, config, parts, digest_of(parts), size, max(by_dtype, key=by_dtype.__getitem__))


def _groups(seen: Sequence[_Seen]) -> list[list[_Seen]]:
    """The members that can be merged with each other, as the stage `resolve` will find them."""
    groups: dict[tuple[str, Any, str], list[_Seen]] = {}
    for each in seen:
        if each.model.name != BASE:
            groups.setdefault((each.signature, each.vocabulary, each.model.tokenizer), []).append(each)
    return list(groups.values())


def _facts(seen: _Seen, groups: Sequence[Sequence[_Seen]]) -> ModelFacts:
    model = seen.model
    rope = position_settings(seen.config)
    return ModelFacts(
        name=model.name,
        source=_source(model),
        commit=model.commit,
        architecture=architecture(seen.config),
        parameters=seen.size.parameters,
        bytes=seen.size.bytes,
        dtype=seen.dtype,
        context=_context(seen),
        rope={key: value for key, value in (rope.get("rope") or {}).items() if value is not None},
        tokenizer=model.tokenizer,
        signature=seen.signature,
        group=next((number for number, group in enumerate(groups, 1) if seen in group), None),
        licence=model.licence,
        download_bytes=_to_download(model),
    )


def _source(model: FoundModel) -> str:
    parts = [part for part in (model, model.adapter) if part is not None]
    return "+".join(part.repo or str(part.folder) for part in parts)


def _to_download(model: FoundModel) -> int:
    """The bytes of a model of the Hub that was not fetched whole; its headers lie over holes of the weights' size."""
    missing = [
        part
        for part in (model, model.adapter)
        if part is not None and part.repo is not None and not (part.folder / COMPLETE).is_file()
    ]
    return sum(path.stat().st_size for part in missing for path in part.headers.iterdir() if path.is_file())


def _context(seen: _Seen) -> int | None:
    found = seen.config.get("max_position_embeddings") or seen.config.get("n_positions")
    return found if isinstance(found, int) else None


def _unlike(seen: Sequence[_Seen]) -> Iterator[Finding]:
    """Members that cannot be merged with the first one, and why."""
    members = [each for each in seen if each.model.name != BASE]
    for each in members[1:]:
        first = members[0]
        found = list(differences(first.parts, each.parts))
        if each.vocabulary != first.vocabulary:
            found.append(f"{first.vocabulary} and {each.vocabulary} rows of vocabulary")
        if each.model.tokenizer != first.model.tokenizer:
            found.append("their tokenizers")
        if found:
            detail = f"{each.model.name} and {first.model.name} differ in {'; '.join(found[:4])}"
            fix = "they are not merged with each other, and may become experts of one mixture"
            yield Finding(pointer=each.model.pointer, code="other_signature", detail=detail, fix=fix)


def _contexts(seen: Sequence[_Seen], groups: Sequence[Sequence[_Seen]]) -> Iterator[Finding]:
    for group in groups:
        lengths = {each.model.name: _context(each) for each in group}
        for each in group[1:]:
            if lengths[each.model.name] != lengths[group[0].model.name]:
                detail = (
                    f"{each.model.name} has a context of {lengths[each.model.name]} tokens, "
                    f"{group[0].model.name} one of {lengths[group[0].model.name]}"
                )
                fix = "a merge says what its first member's config says; check that long texts still work"
                yield Finding(pointer=each.model.pointer, code="context_differs", detail=detail, fix=fix)


def _dtypes(seen: Sequence[_Seen]) -> Iterator[Finding]:
    dtypes = sorted({each.dtype for each in seen})
    if len(dtypes) > 1:
        detail = f"the models are stored in {', '.join(dtypes)}"
        fix = "nothing to do: sums are taken in fp32, and `output.dtype` says what is stored"
        yield Finding(pointer="", code="dtypes_differ", detail=detail, fix=fix)


def _licences(models: Sequence[FoundModel], problems: Sequence[Problem]) -> Iterator[Finding]:
    """What licences say, where the models say something of them and it was not refused already."""
    licences = licences_of(models)
    if not any(licences.values()):
        return
    combined = combine(licences)
    if not any(problem.code == "licences_conflict" for problem in problems):
        for conflict in combined.conflicts:
            fix = "leave members out before you pass the result on; publishing it asks for `publish.licence`"
            yield Finding(pointer="/members", code="licences_conflict", detail=conflict, fix=fix)
    for note in combined.notes:
        yield Finding(pointer="/members", code="licence", detail=note, fix="read the models' licences")


def _base_differs(request: JobRequest, seen: Sequence[_Seen]) -> Iterator[Finding]:
    base = next((each for each in seen if each.model.name == BASE), None)
    if base is None or not (request.clustering.weights == "task_vector" or takes_task_vectors(request.search)):
        return
    for each in seen:
        found = list(differences(base.parts, each.parts))
        if each.model.tokenizer != base.model.tokenizer:
            found.append("their tokenizers")
        if found:
            detail = f"{each.model.name} has no task vector: it and the base differ in {'; '.join(found[:4])}"
            fix = "give the model that it was fine-tuned from as the base, or leave it out"
            yield Finding(pointer=each.model.pointer, code="base_differs", detail=detail, fix=fix)


def _disk(needed: int, most: int, room: Room) -> DiskEstimate:
    return DiskEstimate(needed_bytes=needed, at_most_bytes=max(needed, most), free_bytes=room.free_bytes)


def _room_is_short(disk: DiskEstimate | None) -> Iterator[Finding]:
    if disk is not None and disk.free_bytes is not None and disk.needed_bytes > disk.free_bytes:
        detail = f"it needs {disk.needed_bytes / GIGA:.1f} GB of disk, and {disk.free_bytes / GIGA:.1f} GB are free"
        fix = "free disk, store bfloat16 (`output.dtype`), or leave members out"
        yield Finding(pointer="/output", code="disk_short", detail=detail, fix=fix)


def _no_worker(stages: Iterable[StageEstimate], room: Room) -> Iterator[Finding]:
    """Stages whose units no worker could claim as things are."""
    for stage in stages:
        able = [memory for classes, memory in room.workers if stage.worker_class in classes]
        if not stage.units or any(memory >= stage.device_bytes for memory in able):
            continue
        needs = f"a worker of class {stage.worker_class} with {stage.device_bytes / GIGA:.1f} GB"
        largest = f"the largest has {max(able) / GIGA:.1f} GB" if able else "there is none"
        detail = f"the stage {stage.stage} needs {needs}, and {largest}"
        yield Finding(pointer="", code="no_worker", detail=detail, fix="start one; until then its units wait")


def _finding(problem: Problem) -> Finding:
    return Finding(pointer=problem.pointer, code=problem.code, detail=problem.detail, fix=problem.fix)


def free_bytes(folder: Path) -> int:
    """What the disk under a folder, which need not exist yet, has free."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return disk_usage(existing).free
