"""The routers inside a loaded mixture of any level: their parameters, what they read, what they decide. Trains nothing.

Ours decide for samples, those of stock architectures for tokens. While routers are watched every expert answers,
weighted by the whole softmax: of one expert with the weight 1 no router could learn.
"""

from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from glue.mixture.modeling_glue_block_mixture import BlockMixtureLayer, BlockRouter, pool_states
from glue.mixture.modeling_glue_ffn_mixture import FfnSampleRouter, FfnTokenRouter, MlpMixture
from glue.mixture.modeling_glue_model_mixture import (
    GlueModelMixtureForCausalLM,
    SampleRouter,
    TokenGate,
    pool_features,
)

_SAMPLE_ROUTERS = (SampleRouter, BlockRouter, FfnSampleRouter)
_STOCK_ROUTER = "TopKRouter"
_SMALLEST_SIZE = 1e-8


class WatchedRouters:
    """Inside the `with`, every forward leaves each router's logits in `logits`: decisions x experts, padding left out.

    `deciding` is the mask, samples x tokens, of the tokens that routers of samples read; `real` that of the tokens
    that routers of tokens decide for. Both have to be set before a forward.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.routers = {name: module for name, module in model.named_modules() if _is_router(module)}
        self.logits: dict[str, Tensor] = {}
        self.deciding = self.real = torch.empty(0)
        self._model = model
        self._measured: dict[str, list[tuple[float, int]]] | None = None
        self._undo: list[Any] = []

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter of a router, by its name in the model."""
        return {
            f"{place}.{name}": parameter
            for place, router in self.routers.items()
            for name, parameter in router.named_parameters()
        }

    def measure(self) -> None:
        """From now on, take the sizes of what the routers read."""
        self._measured = {}

    def measured(self) -> dict[str, float]:
        """For each parameter the sum of absolute values that its rows are multiplied with, the mean since `measure`.

        A step of 1 / size in each element moves a logit by about 1, whatever the width of the model.
        """
        assert self._measured is not None, "sizes have to be measured first"
        found, self._measured = self._measured, None
        return {
            name: max(sum(total for total, _ in parts) / max(sum(count for _, count in parts), 1), _SMALLEST_SIZE)
            for name, parts in found.items()
        }

    def __enter__(self) -> Self:
        for name, router in self.routers.items():
            if isinstance(router, _SAMPLE_ROUTERS):
                self._undo.append(router.register_forward_pre_hook(self._reading).remove)
            self._undo.append(router.register_forward_hook(self._deciding(name)).remove)
        for module in self._model.modules():
            for holder, key, everybody in _choices(module):
                self._undo.append(_restoring(holder, key))
                setattr(holder, key, everybody)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:
            self._undo.pop()()

    def _reading(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0], self.deciding.to(args[0].device))

    def _deciding(self, name: str) -> Any:
        def keep(router: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(router, _SAMPLE_ROUTERS):
                self.logits[name] = output
            elif isinstance(router, FfnTokenRouter):
                self.logits[name] = output[self.real.flatten().to(output.device)]
            elif isinstance(router, TokenGate):
                self.logits[name] = output[self.real.to(output.device)]
            else:
                self.logits[name] = output[0][self.real.flatten().to(output[0].device)]
            if self._measured is not None:
                self._add_sizes(name, router, args)

        return keep

    @torch.no_grad()
    def _add_sizes(self, name: str, router: nn.Module, args: tuple[Any, ...]) -> None:
        assert self._measured is not None, "only then is this called"
        for parameter, inputs in self._inputs(router, args).items():
            amounts = inputs.float().abs().sum(-1)
            part = (float(amounts.sum()), amounts.numel())
            self._measured.setdefault(f"{name}.{parameter}", []).append(part)

    def _inputs(self, router: nn.Module, args: tuple[Any, ...]) -> dict[str, Tensor]:
        """What each of a router's parameters is multiplied with: decisions x size."""
        if not isinstance(router, (*_SAMPLE_ROUTERS, FfnTokenRouter)):
            states = args[0].reshape(-1, args[0].shape[-1])
            decided = states[self.real.flatten().to(states.device)]
            bias = {"bias": torch.ones_like(decided[:, :1])} if isinstance(router, TokenGate) else {}
            return {"weight": decided} | bias
        if isinstance(router, SampleRouter):
            features, last = pool_features(router.embedding, *args) - router.centre, "weight"
        elif isinstance(router, _SAMPLE_ROUTERS):
            features, last = pool_states(*args) - router.centre, "gate.weight"
        else:
            states = args[0].reshape(-1, args[0].shape[-1])[self.real.flatten().to(args[0].device)]
            features, last = states.float() - router.centre, "gate.weight"
        if router.inner is None:
            return {last: features}
        inner = router.inner(features).relu()
        return {"inner.weight": features, "inner.bias": torch.ones_like(features[:, :1]), last: inner}


def _is_router(module: nn.Module) -> bool:
    return isinstance(module, (*_SAMPLE_ROUTERS, FfnTokenRouter, TokenGate)) or type(module).__name__.endswith(
        _STOCK_ROUTER
    )


def _choices(module: Any) -> list[tuple[Any, str, int]]:
    """Who says how many experts are asked, under which name, and how many there are."""
    if isinstance(module, GlueModelMixtureForCausalLM):
        return [(module.config, "experts_per_token", len(module.experts))]
    if isinstance(module, (BlockMixtureLayer, MlpMixture)):
        return [(module, "experts_per_token", len(module.experts))]
    if type(module).__name__.endswith(_STOCK_ROUTER):
        return [(module, "top_k", len(module.weight))]
    return []


def _restoring(holder: Any, key: str) -> Any:
    before = getattr(holder, key)
    return lambda: setattr(holder, key, before)
