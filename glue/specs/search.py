"""How a family's best merge is searched: one model a strategy, told apart by the key `strategy`."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, model_validator

from glue.specs.base import Number, Spec

Coefficient = Annotated[Number, Field(gt=0, lt=1)]
Method = Literal["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"]

# These merge task vectors, so the zoo needs a base.
TASK_VECTOR_METHODS = ("task_arithmetic", "ties", "dare_linear", "dare_ties")

COEFFICIENTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PAPER_TRIALS = 200


class Budget(Spec):
    """When a family's search ends at the latest; what comes first counts.

    `items` counts scored items over all candidates. `hours` are the summed hours of scoring; they depend on the
    machine, so a job with them is not reproducible. `patience` is a number of generations without a better
    candidate.
    """

    trials: int = Field(default=PAPER_TRIALS, ge=1, le=100_000)
    items: int | None = Field(default=None, ge=1)
    hours: float | None = Field(default=None, gt=0)
    patience: int | None = Field(default=None, ge=1)


class Halving(Spec):
    """Score all candidates of a generation on `share` of each task's items, and the best `keep` of them on all.

    Source: one step of successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943). The others stay ranked behind
    those that were kept, and the report bounds the probability that one of them was better.
    """

    share: float = Field(default=0.25, gt=0, lt=1)
    keep: float = Field(default=0.25, gt=0, lt=1)


class StrategySpec(Spec):
    """What every strategy takes: an earlier job to start from, and whether weak candidates are dropped early."""

    warm_start: Annotated[str, Field(pattern=r"^job_[0-9A-Za-z]{1,64}$")] | None = None
    halving: Halving | None = None


class HeuristicCoefficient(StrategySpec):
    """Members by falling score, each with the best coefficient (paper, appendix A.1)."""

    strategy: Literal["heuristic_coefficient"] = "heuristic_coefficient"
    method: Literal["linear"] = "linear"
    coefficients: tuple[Coefficient, ...] = Field(default=COEFFICIENTS, min_length=1, max_length=99)


class HeuristicAverage(StrategySpec):
    """Members by falling score into a running mean, kept if not worse (paper, appendix A.1)."""

    strategy: Literal["heuristic_average"]
    method: Literal["linear"] = "linear"


class HeuristicSimilarity(StrategySpec):
    """As Heuristic-Coefficient, but next comes the member most or least similar to the current merge."""

    strategy: Literal["heuristic_similarity"]
    method: Literal["linear"] = "linear"
    coefficients: tuple[Coefficient, ...] = Field(default=COEFFICIENTS, min_length=1, max_length=99)
    order: Literal["highest", "lowest"] = "highest"


class UniformSoup(StrategySpec):
    """The mean of all members (arXiv 2203.05482)."""

    strategy: Literal["uniform_soup"]
    method: Literal["linear"] = "linear"


class GreedySoup(StrategySpec):
    """Members by falling score into a running mean, kept if strictly better (arXiv 2203.05482)."""

    strategy: Literal["greedy_soup"]
    method: Literal["linear"] = "linear"


class SampledSearch(StrategySpec):
    """What strategies over a parameter space share.

    `methods` share the budget, the best on the proxy wins. `layer_groups` above 1 gives each group of layers its
    own parameters, and embeddings, final norm and head together another set. `parametrisation` `simplex` searches
    directions and, where scale matters, one scale; `box` searches every weight from 0 to 1 by itself.
    """

    methods: tuple[Method, ...] = Field(default=("linear",), min_length=1, max_length=5)
    layer_groups: int = Field(default=1, ge=1, le=1024)
    parametrisation: Literal["simplex", "box"] = "simplex"
    budget: Budget = Budget()


class Evolutionary(SampledSearch):
    """CMA-ES over merge parameters (paper, section on evolutionary strategies; Optuna's sampler).

    `population` defaults to 4 + floor(3 ln n) for n parameters. `start` is where the first generation is centred:
    equal weights, or the result of Heuristic-Coefficient over the members that it accepted.
    """

    strategy: Literal["evolutionary"]
    population: int | None = Field(default=None, ge=2, le=1024)
    start: Literal["uniform", "heuristic"] = "uniform"
    coefficients: tuple[Coefficient, ...] = Field(default=COEFFICIENTS, min_length=1, max_length=99)

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.start == "heuristic" and self.warm_start is not None:
            raise ValueError("give either start: heuristic or warm_start, not both")
        return self


class RandomSearch(SampledSearch):
    """Independent uniform draws, for comparison; `generation` of them are scored side by side."""

    strategy: Literal["random"]
    generation: int = Field(default=16, ge=1, le=10_000)


class GridSearch(StrategySpec):
    """Every linear merge whose weights are multiples of 1/`steps` and sum to 1, for comparison."""

    strategy: Literal["grid"]
    method: Literal["linear"] = "linear"
    steps: int = Field(default=4, ge=1, le=100)


class DataFlow(StrategySpec):
    """Which layers in which order, each scaled: CMA-ES over the data-flow space (arXiv 2403.13187, section 3.2).

    The path passes `repeats` times by all layers of all members; an indicator above zero takes a layer in, a factor
    scales its input. The search starts at the best single model. Needs layers with a norm before each part.
    """

    strategy: Literal["data_flow"]
    repeats: int = Field(default=2, ge=1, le=8)
    population: int | None = Field(default=None, ge=2, le=1024)
    budget: Budget = Budget()


def takes_task_vectors(search: "SearchSpec") -> bool:
    """Whether any method of the search merges what was learned after the base, and so needs one."""
    return isinstance(search, SampledSearch) and not set(TASK_VECTOR_METHODS).isdisjoint(search.methods)


def _default_strategy(value: object) -> object:
    if isinstance(value, dict) and "strategy" not in value:
        return {"strategy": HeuristicCoefficient().strategy, **value}
    return value


SearchSpec = Annotated[
    HeuristicCoefficient
    | HeuristicAverage
    | HeuristicSimilarity
    | UniformSoup
    | GreedySoup
    | Evolutionary
    | RandomSearch
    | GridSearch
    | DataFlow,
    Discriminator("strategy"),
    BeforeValidator(_default_strategy),
]
