"""CMA-ES by Optuna's ask and tell, replayed from what was told. Knows no model.

Nothing of Optuna's state is ever stored: its storage holds pickles. A past trial is replayed with the parameters
that were stored for it; asking for it again could give other last bits on another processor.
"""

import warnings
from collections.abc import Sequence
from math import floor, log

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState, create_trial

from glue.search.space import PARAMETER_DIGITS, Dimension, Point

Told = tuple[Point, float | None]


def default_population(dimensions: int) -> int:
    """4 + floor(3 ln n), the usual population for n parameters (Hansen, The CMA Evolution Strategy)."""
    return 4 + floor(3 * log(dimensions))


def next_points(
    dimensions: Sequence[Dimension], told: Sequence[Told], count: int, population: int, seed: int, baseline: float
) -> list[dict[str, float]]:
    """The next `count` points after those that were told, in order; a failed one was told without a value.

    `baseline` is the value at the middle of the ranges, or a stand-in for it: Optuna draws at random until it
    knows one finished trial.
    """
    study = _study(dimensions, population, seed, baseline)
    for point, value in told:
        study.enqueue_trial(dict(point))
        trial = _ask(study, dimensions)
        if value is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, value)
    return [_rounded(_ask(study, dimensions).params, dimensions) for _ in range(count)]


def _ask(study: optuna.Study, dimensions: Sequence[Dimension]) -> optuna.Trial:
    trial = study.ask()
    # Optuna samples when somebody looks. A replayed trial has its parameters without being sampled, would then
    # belong to no generation, and the optimizer would never move.
    _ = trial.relative_params
    for dimension in dimensions:
        trial.suggest_float(dimension.name, dimension.low, dimension.high)
    return trial


def _study(dimensions: Sequence[Dimension], population: int, seed: int, baseline: float) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler = optuna.samplers.CmaEsSampler(seed=seed, popsize=population, warn_independent_sampling=False)
        study = optuna.create_study(direction="maximize", sampler=sampler)
    middle = {d.name: (d.low + d.high) / 2 for d in dimensions}
    study.add_trial(create_trial(params=middle, distributions=_ranges(dimensions), value=baseline))
    return study


def _ranges(dimensions: Sequence[Dimension]) -> dict[str, BaseDistribution]:
    return {d.name: FloatDistribution(d.low, d.high) for d in dimensions}


def _rounded(point: Point, dimensions: Sequence[Dimension]) -> dict[str, float]:
    return {d.name: min(d.high, max(d.low, round(point[d.name], PARAMETER_DIGITS))) for d in dimensions}
