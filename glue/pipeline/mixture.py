"""Stage `mixture`: choose the experts, build the mixture, score it on the proxy suite."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from glue.checkpoints.manifest import publish_folder
from glue.evaluation.language_model import Encoder
from glue.mixture.assignment import select_experts
from glue.mixture.build import ExpertSource, build_mixture
from glue.mixture.router import pool_features, prototypes, read_embedding
from glue.pipeline.context import Context
from glue.pipeline.mixture_levels import write_levels
from glue.pipeline.models import mixture_member, tokenizer_of, write_merged
from glue.pipeline.outcomes import Outcomes
from glue.pipeline.scoring import suites
from glue.plans.units import scoring_memory, unit
from glue.specs.expression import Member
from glue.specs.job import JobSpec
from glue.specs.plan import ArtifactPlan, UnitOutcome, UnitRequest
from glue.specs.results import Expert, MixtureResult, Rejected, SuiteScore
from glue.specs.zoo import BASE

PROMPTS, PROXY_ITEMS = "prompts", "proxy_items"


@dataclass(frozen=True)
class _Contender:
    """A model that may become an expert: a family's merge at a location, or a rejected member's own folder."""

    name: str
    family: str
    location: str | None
    score: SuiteScore


def advance(request: UnitRequest, spec: JobSpec) -> UnitOutcome:
    """First the build, then the score, then the result; without two experts there is no mixture."""
    finished = {unit.kind: unit.result for unit in request.units}
    if "mixture.build" not in finished:
        return _plan_build(Outcomes(request.outcomes), spec)
    built = finished["mixture.build"]
    assert built is not None
    if "score.mixture" not in finished:
        memory = len(built["experts"]) * scoring_memory(Outcomes(request.outcomes).resolve())
        payload = {"location": built["location"], "digest": built["digest"], "suite": "proxy"}
        return UnitOutcome(units=(unit("score.mixture", payload, memory),))
    scored = finished["score.mixture"]
    assert scored is not None
    return UnitOutcome(MixtureResult.parse(built | {"score": scored["score"]}).as_json(), finished=True)


def _plan_build(outcomes: Outcomes, spec: JobSpec) -> UnitOutcome:
    contenders = _contenders(outcomes, spec)
    prompts = _family_prompts(contenders, outcomes, spec)
    if len(contenders) < 2:
        return _no_mixture(PROXY_ITEMS, ())
    if prompts is not None:
        experts = [_expert(contender, len(texts)) for contender, texts in zip(contenders, prompts, strict=True)]
        assignment = [place for place, texts in enumerate(prompts) for _ in texts]
        contexts: list[str] | None = [text for texts in prompts for text in texts]
        return _build_unit(experts, contenders, (), assignment, contexts)
    selection = select_experts([contender.score for contender in contenders], spec.mixture.minimum_share)
    left_out = [Rejected(name=contenders[index].name, reason=reason) for index, reason in selection.left_out]
    kept = [contenders[index] for index in selection.kept]
    if len(kept) < 2:
        return _no_mixture(PROXY_ITEMS, left_out)
    experts = [_expert(contender, support) for contender, support in zip(kept, selection.support(), strict=True)]
    return _build_unit(experts, kept, left_out, list(selection.assignment), None)


def _contenders(outcomes: Outcomes, spec: JobSpec) -> list[_Contender]:
    contenders = []
    for merge, search in zip(outcomes.merges(), outcomes.searches(), strict=True):
        contenders.append(_Contender(merge.name, merge.family, merge.location, search.winner.score))
        if spec.mixture.include_rejected:
            scores = [outcomes.baselines().of(rejected.name) for rejected in search.rejected]
            contenders += [_Contender(scored.name, merge.family, None, scored.score) for scored in scores]
    return contenders


def _family_prompts(
    contenders: Sequence[_Contender], outcomes: Outcomes, spec: JobSpec
) -> list[tuple[str, ...]] | None:
    """The prompts of each contender's members, or none unless every one of them has some."""
    own = {member.name: member.prompts for member in spec.zoo.members}
    found = []
    for contender in contenders:
        members = (contender.name,) if contender.location is None else _members(contender, outcomes)
        found.append(tuple(dict.fromkeys(prompt for name in members for prompt in own[name])))
    return found if all(found) else None


def _members(contender: _Contender, outcomes: Outcomes) -> tuple[str, ...]:
    rejected = {item.name for item in outcomes.search(contender.family).rejected}
    return tuple(n for n in outcomes.similarity().family(contender.family).members if n not in rejected)


def _expert(contender: _Contender, support: int) -> Expert:
    return Expert(name=contender.name, family=contender.family, support=support)


def _no_mixture(source: str, left_out: Sequence[Rejected]) -> UnitOutcome:
    result = MixtureResult(
        experts=(), left_out=tuple(left_out), prototypes=source, digest=None, location=None, score=None
    )
    return UnitOutcome(result.as_json(), finished=True)


def _build_unit(
    experts: Sequence[Expert],
    contenders: Sequence[_Contender],
    left_out: Sequence[Rejected],
    assignment: list[int | None] | list[int],
    contexts: list[str] | None,
) -> UnitOutcome:
    payload: dict[str, Any] = {
        "experts": [expert.as_json() for expert in experts],
        "locations": [contender.location for contender in contenders],
        "left_out": [rejected.as_json() for rejected in left_out],
        "assignment": assignment,
        # None means: the contexts of the proxy suite's items, in the suite's order.
        "contexts": contexts,
    }
    return UnitOutcome(units=(unit("mixture.build", payload),))


def build(request: UnitRequest, spec: JobSpec, context: Context) -> UnitOutcome:
    """Derive the router from the contexts, and write the mixture into the artifacts."""
    payload, folder = request.payload, context.work / "mixture"
    texts = payload["contexts"] or suites(spec, Outcomes(request.outcomes), context)["proxy"].contexts()
    sources = _sources(payload, spec, context, request.token)
    if spec.mixture.shares_layers or spec.mixture.router.type == "mlp":
        assigned = list(zip(texts, payload["assignment"], strict=True))
        own = [[text for text, expert in assigned if expert == place] for place in range(len(sources))]
        notes = write_levels(folder, sources, own, spec, request.token, context)
    else:
        notes = ()
        _write_whole(folder, sources, texts, request, spec, context)
    stock = not any(folder.glob("*.py"))
    manifest, location = publish_folder(folder, context.artifacts)
    result = {
        "experts": payload["experts"],
        "left_out": payload["left_out"],
        "prototypes": PROMPTS if payload["contexts"] else PROXY_ITEMS,
        "digest": manifest.digest,
        "location": location,
    }
    found = {"stock": stock, "remarks": list(notes)}
    return UnitOutcome(result | found, ArtifactPlan("mixture", manifest.digest, location, manifest.as_json()))


def _write_whole(
    folder: Path,
    sources: Sequence[ExpertSource],
    texts: Sequence[str],
    request: UnitRequest,
    spec: JobSpec,
    context: Context,
) -> None:
    """Whole models behind one router of prototypes, whose features are pooled as the finished model does."""
    embedding_folder = Path(spec.paths()[BASE if spec.zoo.base else spec.zoo.member_names()[0]])
    outcomes = Outcomes(request.outcomes)
    reads = mixture_member(spec, outcomes)
    context.progress(0.0, f"features of {len(texts)} contexts")
    tokenizer = tokenizer_of(reads, spec, outcomes, context)
    features = _features(texts, tokenizer, read_embedding(embedding_folder))
    build_mixture(
        folder,
        sources,
        prototypes(features, request.payload["assignment"], len(sources)),
        embedding_folder,
        Path(spec.paths()[reads]),
        top_k=min(spec.mixture.top_k, len(sources)),
        dtype=spec.output.dtype,
        shard_bytes=spec.output.shard_bytes,
        token=request.token,
        progress=context.progress,
    )


def _sources(payload: dict[str, Any], spec: JobSpec, context: Context, token: int) -> list[ExpertSource]:
    names = [str(expert["name"]) for expert in payload["experts"]]
    return [
        ExpertSource(name, context.artifacts / location if location else _own(name, spec, context, token))
        for name, location in zip(names, payload["locations"], strict=True)
    ]


def _own(member: str, spec: JobSpec, context: Context, token: int) -> Path:
    """A member's own folder; of an adapter one in which it lies merged into its model."""
    folders = spec.folders()[member]
    if len(folders) == 1:
        return Path(folders[0])
    merged = context.work / "adapters" / member
    write_merged(Member(name=member), merged, spec, context, token)
    return merged


def _features(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, embedding: Tensor) -> Tensor:
    """Pooled features, contexts x hidden float32: encoded as the scorer does, pooled as the finished model does."""
    encoder = Encoder(tokenizer)
    encoded = [torch.tensor([encoder.encode(text)]) for text in texts]
    return torch.cat([pool_features(embedding, input_ids) for input_ids in encoded])
