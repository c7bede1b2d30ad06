"""What a task file may say: lm-eval's YAML without anything that runs code or reaches beyond the folder."""

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from glue.sandbox.programs import Language
from glue.specs.base import Spec
from glue.specs.errors import Problem

REFUSED = {
    "class": "it names a Python class",
    "custom_dataset": "it names a Python function",
    "process_docs": "it names a Python function; prepare the items in the data files",
    "process_results": "it names a Python function; use metric_list and filter_list",
    "unsafe_code": "it runs code that a model wrote",
    "use_prompt": "it reads prompts from elsewhere; write them in doc_to_text",
    "doc_to_image": "models here read text",
    "doc_to_audio": "models here read text",
    "group": "name the group's tasks in the suite",
    "task_list": "write one file a task",
    "repeats": "generation is greedy, so each repeat would be equal",
}

Metric = Literal[
    "acc",
    "acc_norm",
    "acc_bytes",
    "acc_mutual_info",
    "exact_match",
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
]
METRICS: dict[str, tuple[Metric, ...]] = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"),
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "generate_until": ("exact_match",),
}
FilterFunction = Literal[
    "take_first",
    "regex",
    "regex_pos",
    "multi_choice_regex",
    "remove_whitespace",
    "lowercase",
    "uppercase",
    "map",
    "format_span",
]
Template = str


def refusals(keys: Iterable[str]) -> list[Problem]:
    """A problem for each key that lm-eval knows and we refuse, with the reason."""
    return [
        Problem(f"/{key}", "refused_key", f"the key '{key}' is refused: {REFUSED[key]}", "remove it")
        for key in keys
        if key in REFUSED
    ]


class _Extensible(Spec):
    """An entry whose further keys are arguments of the function that it names: plain data."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, JsonValue]


class MetricEntry(_Extensible):
    """One metric; the first one of a task is its score unless the suite names another."""

    metric: Metric
    aggregation: Literal["mean", "perplexity", "weighted_perplexity", "bits_per_byte"] | None = None
    higher_is_better: bool | None = None
    hf_evaluate: Literal[False] = False


class FilterStep(_Extensible):
    """One function of a filter."""

    function: FilterFunction


class FilterEntry(Spec):
    """One named filter over the answers; the first one of a task is used."""

    name: str
    filter: list[FilterStep] = Field(min_length=1)


class GenerationSettings(Spec):
    """Greedy generation until a stop string, or until `max_gen_toks` tokens."""

    until: str | list[str] | None = None
    max_gen_toks: int | None = Field(default=None, ge=1)
    do_sample: Literal[False] = False
    temperature: float = Field(default=0.0, ge=0, le=0)


class ShotSettings(Spec):
    """How few-shot examples are drawn and rendered."""

    sampler: Literal["default", "first_n"] = "default"
    split: str | None = None
    samples: list[dict[str, JsonValue]] | None = None
    doc_to_text: Template | None = None
    doc_to_choice: Template | list[str] | dict[str, str] | None = None
    doc_to_target: Template | int | None = None
    gen_prefix: Template | None = None
    fewshot_delimiter: str | None = None
    target_delimiter: str | None = None


class CodeSettings(Spec):
    """How a written program is judged: `program` is rendered with the item's fields and `answer`, the model's text,
    and runs in the sandbox; it passes when it ends without an error within `seconds`.
    """

    language: Language
    program: Template
    seconds: float = Field(default=10.0, gt=0, le=60)


class DataFiles(Spec):
    """The data of each split: absolute paths, already shown to be inside the task folder."""

    data_files: dict[str, list[str]] = Field(min_length=1)


class TaskFile(Spec):
    """One task. Keys and meanings are those of lm-eval; templates are plain Jinja."""

    task: str
    task_alias: str | None = None
    tag: str | list[str] | None = None
    dataset_path: Literal["json", "csv", "parquet"]
    dataset_kwargs: DataFiles
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None
    output_type: Literal["multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until"]
    doc_to_text: Template | int = ""
    doc_to_target: Template | int | list[str] | list[int]
    doc_to_choice: Template | list[str] | dict[str, str] | None = None
    description: Template = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    gen_prefix: Template | None = None
    fewshot_config: ShotSettings | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    metric_list: list[MetricEntry] | None = Field(default=None, min_length=1)
    filter_list: list[FilterEntry] | None = Field(default=None, min_length=1)
    generation_kwargs: GenerationSettings | None = None
    code: CodeSettings | None = None
    # Ours: what an item is known by, where its prompt is not written by its own template alone.
    identity: Template | None = None
    should_decontaminate: bool = False
    doc_to_decontamination_query: Template | None = None
    metadata: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        if self.output_type == "multiple_choice" and self.doc_to_choice is None:
            raise ValueError("multiple_choice needs doc_to_choice: the answers to choose from")
        possible = METRICS[self.output_type]
        wrong = [entry.metric for entry in self.metric_list or () if entry.metric not in possible]
        if wrong:
            raise ValueError(f"{self.output_type} has no metric {', '.join(wrong)}; it has: {', '.join(possible)}")
        return self

    @model_validator(mode="after")
    def _programs_are_written(self) -> Self:
        if self.code is not None and (self.output_type != "generate_until" or self.metric_list is not None):
            raise ValueError("a task with code is of output_type generate_until, and its one metric is pass_at_1")
        return self

    @model_validator(mode="after")
    def _has_something_to_evaluate(self) -> Self:
        splits = [self.training_split, self.fewshot_split, self.evaluated_split]
        splits += [self.fewshot_config.split if self.fewshot_config else None]
        unknown = sorted({split for split in splits if split and split not in self.dataset_kwargs.data_files})
        if unknown:
            raise ValueError(f"dataset_kwargs.data_files has no file for the split {', '.join(unknown)}")
        return self

    @property
    def evaluated_split(self) -> str:
        """The split whose items are scored.

        Raises:
            ValueError: the file names none.
        """
        split = self.test_split or self.validation_split
        if split is None:
            raise ValueError("name the split to evaluate as test_split, with its file in dataset_kwargs.data_files")
        return split

    def used_splits(self) -> set[str]:
        """The splits that lm-eval reads: those to score and those to draw examples from."""
        shots = self.fewshot_config.split if self.fewshot_config else None
        named = {self.training_split, self.validation_split, self.test_split, self.fewshot_split, shots}
        return {split for split in named if split is not None}

    def config(self) -> dict[str, Any]:
        """What the file says, in the form that lm-eval's `TaskConfig` takes."""
        return self.model_dump(exclude_unset=True, exclude={"code", "identity"})
