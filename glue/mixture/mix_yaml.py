"""mergekit-moe's configuration files, with our levels and routers, as checked values. Knows no tensor.

Format: mergekit 0.1.5, `moe/config.py`. What this program does not support is refused with the reason, never
skipped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from glue.merging.mergekit_yaml import ModelReference
from glue.merging.model_source import ModelSource
from glue.specs.base import Number, Spec, read_yaml

Level = Literal["ffn", "block", "model"]
# mergekit-moe's own names, in lower case; the beginning of one is enough.
ARCHITECTURES = ("mixtral", "deepseek moe", "qwen moe", "qwen3 moe")
StoredDtype = Literal["float32", "bfloat16", "float16"]


class MixExpert(Spec):
    """One expert: a model's folder, with an adapter or not, or a merge that is never stored; and its prompts.

    `noise_scale` is the deviation of noise on its MLPs' weights, `residual_scale` a factor for what they answer.
    """

    source_model: ModelSource
    positive_prompts: tuple[str, ...] = ()
    negative_prompts: tuple[str, ...] = ()
    noise_scale: Number | None = Field(default=None, ge=0)
    residual_scale: Number | None = None

    @property
    def is_changed(self) -> bool:
        """Whether its MLPs get noise or a factor."""
        return self.noise_scale not in (None, 0) or self.residual_scale not in (None, 1)

    @model_validator(mode="before")
    @classmethod
    def _no_prompts_are_none(cls, value: Any) -> Any:
        return _without_empty(value, "positive_prompts", "negative_prompts")


class MixTraining(Spec):
    """How a router learns; `hidden` is the width between the layers of type mlp.

    Without `data` it learns whose prompt is whose. With `data`, files of text beside the mixture file or data sets of
    the Hub (`hf://org/name@revision`, of which a split and a subset are taken), it learns from the language-model
    loss, beginning with what gate_mode or the prompts give; everything that follows `data` is for that. A learning
    rate is then about how far a step moves a logit. `lr` is another name of `learning_rate`.
    """

    hidden: int = Field(default=64, ge=1, le=65536)
    steps: int = Field(default=300, ge=1, le=100_000)
    learning_rate: Number | None = Field(default=None, gt=0, le=10)
    data: tuple[str, ...] = ()
    split: str = "train"
    subset: str | None = None
    batch: int = Field(default=8, ge=1, le=65536)
    accumulate: int = Field(default=1, ge=1, le=65536)
    length: int = Field(default=512, ge=2, le=1_000_000)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Number = Field(default=0.1, ge=0, le=1)
    balance: Number = Field(default=0.01, ge=0, le=100)
    precision: Literal["float32", "bfloat16"] = "float32"
    save_every: int = Field(default=50, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "lr" in value and "learning_rate" not in value:
            value = {("learning_rate" if key == "lr" else key): inner for key, inner in value.items()}
        return value | {"data": [value["data"]]} if isinstance(value.get("data"), str) else value

    @model_validator(mode="after")
    def _settings_have_data(self) -> Self:
        alone = {"hidden", "steps", "learning_rate", "data"}
        unused = sorted(self.model_fields_set - alone)
        if unused and not self.data:
            raise ValueError(f"{unused[0]} is for training on text; name the files in data, or leave it out")
        return self

    @property
    def rate(self) -> float:
        """The learning rate, or what is usual for this form of training."""
        return self.learning_rate or (0.1 if self.data else 0.01)


class MixRouter(Spec):
    """FFN level asks for each token, the other levels once for a sample. Type mlp is trained, linear can be.

    With input `token` at level model all experts answer, and a gate weighs their logits at each token.
    """

    type: Literal["linear", "mlp"] = "linear"
    input: Literal["token", "sample"] | None = None
    train: MixTraining | None = None

    @property
    def training(self) -> MixTraining | None:
        """How it is trained; none where prototypes make it."""
        return self.train or (MixTraining() if self.type == "mlp" else None)


class MixFile(Spec):
    """A mixture as a user writes it.

    `trunk` says where everything that is not an expert's comes from: the base, or the experts' mean.
    `dense_layers` bottom layers have no experts. Routers come from the prompts (`hidden`, `hidden_last`: a
    prompt's last token, `hidden_avg`: its mean, `cheap_embed`: its embeddings) or are drawn with the seed;
    a router with sample input pools prompts as it will pool samples, whatever the mode. `shared_experts` answer every
    token beside those that are chosen, weighed by a gate if they have prompts; `architecture` is the beginning of
    one of mergekit-moe's names.
    """

    base_model: ModelSource
    experts: tuple[MixExpert, ...] = Field(min_length=1, max_length=256)
    shared_experts: tuple[MixExpert, ...] = Field(default=(), max_length=256)
    architecture: str | None = None
    gate_mode: Literal["hidden", "hidden_last", "hidden_avg", "cheap_embed", "random", "uniform_random"] = "hidden"
    dtype: StoredDtype | None = None
    experts_per_token: int | None = Field(default=None, ge=1)
    level: Level = "ffn"
    router: MixRouter = MixRouter()
    trunk: Literal["base", "mean"] = "base"
    dense_layers: int = Field(default=0, ge=0)
    seed: int | None = Field(default=None, ge=0, lt=2**32)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_none(cls, value: Any) -> Any:
        return _without_empty(value, "shared_experts", "architecture")

    @model_validator(mode="after")
    def _only_mlps_are_changed_or_shared(self) -> Self:
        if self.level != "ffn":
            if self.shared_experts or self.architecture:
                raise ValueError("shared_experts and architecture are for level ffn; leave them out")
            if any(expert.is_changed for expert in self.experts):
                raise ValueError("noise_scale and residual_scale change MLPs: leave them out, or use level ffn")
        with_prompts = [bool(expert.positive_prompts) for expert in self.shared_experts]
        if any(with_prompts) and not all(with_prompts):
            raise ValueError("give prompts to all shared_experts, so that a gate weighs them, or to none")
        return self

    @model_validator(mode="after")
    def _architecture_is_known(self) -> Self:
        if self.architecture is None:
            return self
        if not any(name.startswith(self.architecture.lower()) for name in ARCHITECTURES):
            raise ValueError(f"architecture is none of {', '.join(ARCHITECTURES)}; leave it out to have it chosen")
        if self.routes_samples or self.router.type == "mlp":
            raise ValueError("architecture is for linear routers with token input; leave it out")
        if self.is_deepseek and (len(self.shared_experts) > 1 or any(e.positive_prompts for e in self.shared_experts)):
            raise ValueError("DeepSeek MoE has at most one shared expert, and no gate for it: leave out its prompts")
        return self

    @model_validator(mode="after")
    def _fits_its_level(self) -> Self:
        if self.fuses:
            self._fits_a_gate()
        elif self.level != "ffn" and self.router.input == "token":
            raise ValueError(f"level {self.level} routes samples; set router.input to sample or leave it out")
        if self.draws_gates and self.router.training and not self.texts:
            raise ValueError("a router is drawn or trained, not both; leave out gate_mode or router.type and train")
        if self.draws_gates and self.router.type == "mlp":
            raise ValueError("a router of type mlp is not drawn: it learns from prompts, text, or both")
        if self.level == "model" and not self.dense_layers and self.trunk == "mean":
            raise ValueError("level model shares no weights, so there is nothing for trunk: mean")
        if self.top_k > len(self.experts):
            raise ValueError(f"experts_per_token is {self.top_k}, but there are {len(self.experts)} experts")
        return self

    def _fits_a_gate(self) -> None:
        if self.dense_layers or self.router.type == "mlp" or self.draws_gates:
            raise ValueError(
                "a token gate is linear, over whole models, and begins with their mean: leave out "
                "dense_layers, router.type and gate_mode"
            )
        if self.router.training and not self.texts:
            raise ValueError("a token gate learns from text alone; name it in router.train.data")
        if self.experts_per_token not in (None, len(self.experts)):
            raise ValueError("with a token gate every expert answers every token; leave out experts_per_token")

    @model_validator(mode="after")
    def _prompts_fit_the_router(self) -> Self:
        if self.draws_gates:
            return self
        opposed = self.routes_samples or self.router.type == "mlp" or (self.router.train and not self.texts)
        if opposed and any(expert.negative_prompts for expert in self.experts):
            raise ValueError(
                "negative_prompts are for linear routers of level ffn with token input; others oppose the experts to "
                "each other"
            )
        return self

    def sources(self) -> tuple[ModelSource, ...]:
        """The base, the experts and the shared experts, in order."""
        return (self.base_model, *(each.source_model for each in (*self.experts, *self.shared_experts)))

    def references(self) -> Iterator[ModelReference]:
        """Every folder that it stands on."""
        return (reference for source in self.sources() for reference in source.references())

    @property
    def routes_samples(self) -> bool:
        """Whether a router decides for whole samples; without a word level ffn routes tokens, the others samples."""
        return (self.router.input or ("token" if self.level == "ffn" else "sample")) == "sample"

    @property
    def is_deepseek(self) -> bool:
        """Whether DeepSeek MoE is asked for."""
        return self.architecture is not None and "deepseek moe".startswith(self.architecture.lower())

    @property
    def texts(self) -> tuple[str, ...]:
        """The files that routers learn from with the language-model loss."""
        return self.router.train.data if self.router.train else ()

    @property
    def fuses(self) -> bool:
        """Whether a gate weighs all experts' logits at each token."""
        return self.level == "model" and self.router.input == "token"

    @property
    def draws_gates(self) -> bool:
        """Whether routers are random instead of made from prompts."""
        return self.gate_mode in {"random", "uniform_random"}

    @property
    def top_k(self) -> int:
        """How many experts are asked: mergekit's two of each token, one for a sample, all by a gate."""
        if self.fuses:
            return len(self.experts)
        return self.experts_per_token or (1 if self.routes_samples else 2)


def read_mix_file(path: Path) -> MixFile:
    """The checked configuration file.

    Raises:
        InvalidInputError: it cannot be read, or something in it is wrong; with one problem for each mistake.
    """
    return MixFile.parse(read_yaml(path))


def _without_empty(value: Any, *keys: str) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: inner for key, inner in value.items() if key not in keys or inner}
