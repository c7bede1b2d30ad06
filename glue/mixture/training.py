"""Routers trained to predict the best expert from pooled features: the cheap, supervised form. Knows no model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from glue.mixture.router import InnerLayer, RouterWeights, prototypes, stacked

WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class RouterTraining:
    """How a router is trained: AdamW over all contexts at once, the learning rate falling as a cosine to 0.

    `inner_size` is the width of the inner layer; 0 trains a linear router.
    """

    inner_size: int = 64
    steps: int = 300
    learning_rate: float = 0.01
    seed: int = 0


def train_router(
    features: Tensor, assignment: Sequence[int | None], experts: int, training: RouterTraining
) -> RouterWeights:
    """A router that gives each context to its expert.

    `features` is contexts x hidden, as `pool_features` gives them; `assignment` names the best expert of each
    context, contexts without one are left aside. Every expert counts the same, however many contexts it has.
    The centre is that of the prototypes; equal inputs and seeds give equal routers.

    Raises:
        ValueError: lengths differ, or an expert has no context.
    """
    centre = prototypes(features, assignment, experts).centre
    kept = [index for index, expert in enumerate(assignment) if expert is not None]
    labels = torch.tensor([expert for expert in assignment if expert is not None])
    inputs = features[kept].double() - centre.double()
    # Mean embeddings are tiny and differ by less: trained at unit size, the size then goes into the first layer.
    size = inputs.square().mean().sqrt().clamp(min=1e-8)
    network = _network(features.shape[1], experts, training)
    _fit(network, inputs / size, labels, experts, training)
    return _weights(network, centre, float(size))


def train_layer_routers(
    states: Tensor, assignment: Sequence[int | None], experts: int, training: RouterTraining
) -> RouterWeights:
    """The same for routers in layers: `states` is contexts x layers x hidden.

    Raises:
        ValueError: lengths differ, or an expert has no context.
    """
    return stacked([train_router(layer, assignment, experts, training) for layer in states.unbind(1)])


def untrained_router(features: Tensor, experts: int, training: RouterTraining) -> RouterWeights:
    """Where learning from text begins without prompts: layers drawn with the seed, over features around their mean.

    `features` is contexts x hidden, as `pool_features` gives them.
    """
    centre = features.double().mean(0)
    size = (features.double() - centre).square().mean().sqrt().clamp(min=1e-8)
    return _weights(_network(features.shape[1], experts, training), centre.float(), float(size))


def untrained_layer_routers(states: Tensor, experts: int, training: RouterTraining) -> RouterWeights:
    """The same for routers in layers: `states` is contexts x layers x hidden."""
    return stacked([untrained_router(layer, experts, training) for layer in states.unbind(1)])


def _network(hidden: int, experts: int, training: RouterTraining) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        last = nn.Linear(training.inner_size or hidden, experts, bias=False)
        layers = [nn.Linear(hidden, training.inner_size), nn.ReLU(), last] if training.inner_size else [last]
    return nn.Sequential(*layers).double()


@torch.enable_grad()
def _fit(network: nn.Module, inputs: Tensor, labels: Tensor, experts: int, training: RouterTraining) -> None:
    counts = torch.bincount(labels, minlength=experts).double()
    balance = len(labels) / (experts * counts)
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.learning_rate, weight_decay=WEIGHT_DECAY)
    for step in range(training.steps):
        rate = training.learning_rate * 0.5 * (1 + math.cos(math.pi * step / training.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss: Tensor = cross_entropy(network(inputs), labels, weight=balance)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _weights(network: nn.Sequential, centre: Tensor, size: float) -> RouterWeights:
    values = [parameter.detach() for parameter in network.parameters()]
    if len(values) == 1:
        return RouterWeights((values[0] / size).float(), centre)
    inner, bias, last = values
    return RouterWeights(last.float(), centre, InnerLayer((inner / size).float(), bias.float()))
