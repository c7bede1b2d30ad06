"""`python -m benchmarks.heuristic_first ZOO`: trials that CMA-ES needs, alone and after the heuristic.

On the small zoo, whose four members of one ancestor count as one family, so that there is something to search. It
prints Markdown.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from examples.small_zoo.build import build_zoo
from glue.checkpoints.reader import Checkpoint
from glue.evaluation.scorer import Scorer
from glue.evaluation.suite import load_suite
from glue.merging.engine import merge_into
from glue.mixture.load import load_model
from glue.pipeline.models import load_tokenizer
from glue.search.history import Observed, Strategy
from glue.search.replay import Ended, Generation, Known, replay
from glue.search.sampled import Facts
from glue.search.strategies import strategy_of
from glue.specs.expression import Candidate, Expression, Member, expression_digest
from glue.specs.search import Evolutionary
from glue.specs.suite import SuiteSpec

MEMBERS = ("math-a", "math-b", "code-a", "facts-a")
STARTS = {"CMA-ES alone": "uniform", "heuristic, then CMA-ES": "heuristic"}
Score = Callable[[Expression], float]


def main() -> None:
    """Search, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", type=Path, help="the folder of the small zoo; it is trained there if it is missing")
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    score = scorer_of(build_zoo(given.zoo))
    singles = [observed(Candidate(name=name, expression=Member(name=name)), score) for name in MEMBERS]
    layers = 4
    traces = {
        (label, seed): trace(strategy(start, given.trials, Facts(layers, seed)), singles, score)
        for seed in range(given.seeds)
        for label, start in STARTS.items()
    }
    report(traces, singles, given.seeds, given.trials)


def scorer_of(zoo: Path) -> Score:
    """The mean proxy accuracy of a merge, computed once for each."""
    tasks = [{"task": f"small_{domain}", "limit": 100} for domain in ("math", "code", "facts")]
    scorer = Scorer(load_suite(SuiteSpec.parse({"include_path": str(zoo / "tasks"), "tasks": tasks})), "cpu")
    checkpoints = {name: Checkpoint.open(zoo / "models" / name) for name in MEMBERS}
    model = load_model(zoo / "models" / MEMBERS[0], torch.float32, "cpu")
    tokenizer = load_tokenizer(zoo / "models" / MEMBERS[0])
    known: dict[str, float] = {}

    def score(expression: Expression) -> float:
        digest = expression_digest(expression)
        if digest not in known:
            merge_into(expression, checkpoints, model)
            known[digest] = scorer.score(model, tokenizer).mean
        return known[digest]

    return score


def strategy(start: str, trials: int, facts: Facts) -> Strategy:
    """Evolutionary search from that start."""
    spec = {"strategy": "evolutionary", "start": start, "budget": {"trials": trials}}
    return strategy_of(Evolutionary.parse(spec), facts)


def trace(search: Strategy, singles: list[Observed], score: Score) -> list[float]:
    """The scores of a search's trials, in the order of its candidates."""
    recorded: list[Generation] = []
    scored = {expression_digest(each.candidate.expression): each for each in singles}
    while True:
        step = replay(search, singles, recorded, Known(scored, {}))
        if isinstance(step, Ended):
            return [each.mean or 0.0 for generation in step.generations for each in generation]
        recorded += step.proposed
        for candidate in step.candidates:
            scored[expression_digest(candidate.expression)] = observed(candidate, score)


def observed(candidate: Candidate, score: Score) -> Observed:
    """The candidate with its score."""
    return Observed(candidate, score(candidate.expression))


def report(traces: dict[tuple[str, int], list[float]], singles: list[Observed], seeds: int, trials: int) -> None:
    """How many trials each search took to reach scores between the best single model and the best merge of all."""
    single = max(each.mean or 0.0 for each in singles)
    best = max(max(found) for found in traces.values())
    targets = [single + share * (best - single) for share in (0.5, 0.8, 0.95)]
    print(f"best single model {single:.4f}, best merge of all searches {best:.4f}, {trials} trials each\n")
    print("| seed | search |" + "".join(f" trials to {target:.4f} |" for target in targets) + " best |")
    print("|---|---|" + "---|" * (len(targets) + 1))
    for seed in range(seeds):
        for label in STARTS:
            found = traces[label, seed]
            cells = "".join(f" {reached(found, target)} |" for target in targets)
            print(f"| {seed} | {label} |{cells} {max(found):.4f} |")


def reached(found: list[float], target: float) -> str:
    """The number of trials until the target, or a dash."""
    numbers: Iterator[int] = (number for number, mean in enumerate(found, 1) if mean >= target)
    return str(next(numbers, "-"))


if __name__ == "__main__":
    main()
