"""The mixture of a job in any form but whole models behind prototypes: said as a mixture file, and built as one."""

from collections.abc import Sequence
from pathlib import Path

from glue.merging.mergekit_yaml import ModelReference
from glue.mixture.build import ExpertSource
from glue.mixture.mix_yaml import MixExpert, MixFile, MixRouter
from glue.mixture.run import write_mix
from glue.pipeline.context import Context
from glue.specs.job import JobSpec
from glue.specs.zoo import BASE


def write_levels(
    folder: Path,
    experts: Sequence[ExpertSource],
    texts: Sequence[Sequence[str]],
    spec: JobSpec,
    token: int,
    context: Context,
) -> tuple[str, ...]:
    """Write the mixture whose experts are the best on these texts; gives notes for whoever uses it.

    What is not an expert's is the base's; without a base it is the mean of all experts.

    Raises:
        IncompatibleModelsError: the experts are not of one shape, or the result would not be finite.
        DiskFullError: there is no space; nothing that looks finished is left.
    """
    own = spec.mixture
    top_k = min(own.top_k, len(experts))
    base = spec.paths()[BASE] if spec.zoo.base else str(experts[0].folder)
    file = MixFile(
        base_model=_reference(base),
        experts=tuple(
            MixExpert(source_model=_reference(str(expert.folder)), positive_prompts=tuple(each))
            for expert, each in zip(experts, texts, strict=True)
        ),
        level=own.level,
        router=MixRouter(type=own.router.type, input=own.router.input),
        experts_per_token=top_k,
        dense_layers=own.dense_layers,
        trunk="base" if spec.zoo.base or not own.shares_layers else "mean",
        dtype=spec.output.dtype,
        seed=spec.seed,
    )
    notes = write_mix(
        file,
        lambda reference: (Path(reference.model),),
        folder,
        names=[expert.name for expert in experts],
        shard_bytes=spec.output.shard_bytes,
        seed=spec.seed,
        token=token,
        progress=context.progress,
    )
    fewer = (f"top_k is {own.top_k}, and all {top_k} experts are asked",) if top_k < own.top_k else ()
    return (*notes, *fewer)


def _reference(folder: str) -> ModelReference:
    return ModelReference.model_validate({"model": folder})
