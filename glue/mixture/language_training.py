"""Routers trained with the language-model loss while everything else is frozen. Knows no folder of a mixture.

Source: Model-GLUE, arXiv 2410.05357 (router only, language-model loss, cosine schedule); the balancing term is that
of Switch Transformers, arXiv 2101.03961, section 2.2. What is trained is saved every few steps together with the
optimizer's state, so that a run that was killed ends in the same bytes.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from glue.checkpoints.disk import write_whole
from glue.checkpoints.writer import Progress
from glue.mixture.training import WEIGHT_DECAY
from glue.mixture.training_text import Example
from glue.mixture.watched_routers import WatchedRouters

Schedule = Literal["cosine", "linear", "constant"]

_NO_TARGET = -100
_MOST_RECORDS = 100
_MOMENTS = ("exp_avg", "exp_avg_sq")
# The share of the steps, at the end, over which it is counted who is asked.
_LATE = 0.1


@dataclass(frozen=True)
class LanguageTraining:
    """How routers learn: AdamW, each of `steps` from `accumulate` batches of `batch` examples.

    `learning_rate` is about how far a step moves a logit, whatever the width of the model and the size of its
    states; it rises over the share `warmup` of the steps, then falls to 0 or stays. `balance` weighs the
    load-balancing term. With `autocast` everything but the routers computes in bfloat16.
    """

    steps: int
    learning_rate: float
    batch: int
    accumulate: int
    schedule: Schedule
    warmup: float
    balance: float
    autocast: bool
    save_every: int
    seed: int

    @property
    def examples(self) -> int:
        """How many examples all steps together take."""
        return self.steps * self.accumulate * self.batch

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        done = (step - rising) / max(self.steps - rising, 1)
        falling = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
        return self.learning_rate * falling[self.schedule]


@dataclass(frozen=True)
class Record:
    """A step as it went: the mean loss of a token in nats, and the balancing term (1 where all are asked alike)."""

    step: int
    loss: float
    balance: float


@dataclass(frozen=True)
class Trained:
    """Some of the steps, the first and the last included; `shares` says of each router, by its name, how often it
    preferred each expert in the last tenth of the steps."""

    records: tuple[Record, ...]
    shares: dict[str, tuple[float, ...]]


def train_routers(
    model: PreTrainedModel,
    examples: Sequence[Example],
    training: LanguageTraining,
    state: Path,
    token: int,
    progress: Progress,
) -> Trained:
    """Train the routers of a mixture in place, in float32; everything else stays as it is.

    `state` is the file that a killed run goes on from. Equal inputs give equal bits on the same device and number of
    threads, killed or not.

    Raises:
        ValueError: the model has no router.
        DiskFullError: there is no space for the state.
    """
    watched = WatchedRouters(model)
    if not watched.routers:
        raise ValueError(f"{type(model).__name__} has no router to train")
    model.requires_grad_(False).eval()
    for parameter in watched.parameters.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    with watched:
        return _Run(model, watched, examples, training, state, token).go_on(progress)


def balancing_term(router_logits: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Experts times the sum over experts of share times mean probability, as a mean over routers.

    `router_logits` has decisions x experts for each router, `shares` is routers x experts: how often each expert is
    preferred. 1 where all are preferred alike, and the number of experts where one has everything.
    """
    terms = [
        logits.shape[-1] * (share.to(logits.device) * logits.float().softmax(-1).mean(0)).sum()
        for logits, share in zip(router_logits, shares, strict=True)
    ]
    return torch.stack([term.to(terms[0].device) for term in terms]).mean()


class _Run:
    """One training run: what is trained, how far it is, and what was seen on the way.

    The balancing term takes its shares from the step before: it is then a sum over examples, and accumulated
    batches give what one large batch gives.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        watched: WatchedRouters,
        examples: Sequence[Example],
        training: LanguageTraining,
        state: Path,
        token: int,
    ) -> None:
        self._model, self._watched, self._examples, self._training = model, watched, examples, training
        self._state, self._token = state, token
        self._parameters = watched.parameters
        self._optimizer = torch.optim.AdamW([{"params": [each]} for each in self._parameters.values()])
        self._step = 0
        self._sizes: dict[str, float] = {}
        self._shares = self._late = torch.empty(0)
        self._records: list[Record] = []

    def go_on(self, progress: Progress) -> Trained:
        if self._state.is_file():
            self._restore()
        else:
            self._begin()
        steps, every = self._training.steps, max(self._training.steps // _MOST_RECORDS, 1)
        while self._step < steps:
            record = self._train_step()
            if record.step % every == 0 or record.step == steps - 1:
                self._records.append(record)
            self._step += 1
            if self._step % self._training.save_every == 0 or self._step == steps:
                self._save()
            progress(self._step / steps, f"router, step {self._step} of {steps}: loss {record.loss:.4f}")
        shares = self._late / self._late.sum(-1, keepdim=True)
        named = zip(self._watched.routers, shares.tolist(), strict=True)
        rounded = {name: tuple(round(share, 4) for share in each) for name, each in named}
        return Trained(tuple(self._records), rounded)

    @torch.no_grad()
    def _begin(self) -> None:
        """Look at the first step's examples without learning from them: sizes of inputs, and who is preferred."""
        self._watched.measure()
        counts = []
        for batch in self._batches(0):
            self._loss(batch)
            counts.append(self._counts())
        self._sizes = self._watched.measured()
        self._shares = _shares(counts)
        self._late = torch.zeros_like(self._shares)

    @torch.enable_grad()
    def _train_step(self) -> Record:
        self._set_rates(self._training.rate(self._step))
        self._optimizer.zero_grad()
        batches = self._batches(self._step)
        targets = sum(example.targets for batch in batches for example in batch)
        loss, balance, counts = 0.0, 0.0, []
        for batch in batches:
            part = self._loss(batch) / targets
            term = balancing_term(list(self._watched.logits.values()), self._shares) / len(batches)
            (part + self._training.balance * term.to(part.device)).backward()  # type: ignore[no-untyped-call]
            loss, balance = loss + float(part.detach()), balance + float(term.detach())
            counts.append(self._counts())
        self._optimizer.step()
        self._shares = _shares(counts)
        if self._step >= self._training.steps - max(round(_LATE * self._training.steps), 1):
            self._late += torch.stack(counts).sum(0)
        return Record(self._step, round(loss, 6), round(balance, 6))

    def _set_rates(self, rate: float) -> None:
        for name, group in zip(self._parameters, self._optimizer.param_groups, strict=True):
            group["lr"] = rate / self._sizes[name]
            # Decay is relative to the weight, so it must not grow with the rate of small inputs.
            group["weight_decay"] = WEIGHT_DECAY * self._sizes[name]

    def _batches(self, step: int) -> list[list[Example]]:
        """The batches of a step, from an endless row of epochs, each in an order of its own."""
        size = self._training.batch
        first = step * self._training.accumulate
        return [
            [self._example(place) for place in range(number * size, (number + 1) * size)]
            for number in range(first, first + self._training.accumulate)
        ]

    def _example(self, place: int) -> Example:
        epoch, inside = divmod(place, len(self._examples))
        order = torch.Generator().manual_seed(self._training.seed + epoch)
        return self._examples[int(torch.randperm(len(self._examples), generator=order)[inside])]

    def _loss(self, batch: Sequence[Example]) -> Tensor:
        """The summed loss of the batch's targets; the routers' logits are left with those who watch them."""
        device = self._model.device
        ids, labels, real, deciding = (part.to(device) for part in _padded(batch))
        self._watched.real, self._watched.deciding = real, deciding
        with torch.autocast(device.type, torch.bfloat16, enabled=self._training.autocast):
            output = self._model(input_ids=ids, attention_mask=real.long(), use_cache=False)
        logits = output.logits[:, :-1].float().flatten(0, 1)
        return cross_entropy(logits, labels[:, 1:].flatten().to(logits.device), reduction="sum")

    def _counts(self) -> Tensor:
        """How often each router preferred each expert in the last forward: routers x experts."""
        logits = list(self._watched.logits.values())
        counts = [torch.bincount(each.argmax(-1), minlength=each.shape[-1]) for each in logits]
        return torch.stack([count.float().cpu() for count in counts])

    def _restore(self) -> None:
        with safe_open(self._state, "pt") as file:
            saved = json.loads(file.metadata()["training"])
            self._step, self._sizes = saved["step"], saved["sizes"]
            self._records = [Record(**record) for record in saved["records"]]
            self._shares, self._late = file.get_tensor("shares"), file.get_tensor("late")
            for name, parameter in self._parameters.items():
                parameter.data.copy_(file.get_tensor(name))
                moments = {moment: file.get_tensor(f"{moment}:{name}").to(parameter.device) for moment in _MOMENTS}
                self._optimizer.state[parameter] = {"step": torch.tensor(float(self._step)), **moments}

    def _save(self) -> None:
        tensors = {"shares": self._shares, "late": self._late}
        for name, parameter in self._parameters.items():
            moments: dict[str, Any] = self._optimizer.state[parameter]
            tensors[name] = parameter.detach().cpu().contiguous()
            tensors |= {f"{moment}:{name}": moments[moment].cpu().contiguous() for moment in _MOMENTS}
        saved = {"step": self._step, "sizes": self._sizes, "records": [asdict(record) for record in self._records]}
        write_whole(self._state, save(tensors, metadata={"training": json.dumps(saved)}), self._token)


def _shares(counts: Sequence[Tensor]) -> Tensor:
    total = torch.stack(list(counts)).sum(0)
    return total / total.sum(-1, keepdim=True)


def _padded(batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids padded on the right, labels of the targets alone, the mask of real tokens and that of deciding ones."""
    length = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    labels = torch.full_like(ids, _NO_TARGET)
    real, deciding = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, example in enumerate(batch):
        end = len(example.ids)
        ids[row, :end] = torch.tensor(example.ids)
        labels[row, example.prompt : end] = ids[row, example.prompt : end]
        real[row, :end] = True
        deciding[row, : example.deciding] = True
    return ids, labels, real, deciding
