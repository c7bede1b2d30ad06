"""The whole chain without database, broker or processes: the plain version that the service is compared with."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glue.pipeline.context import Context
from glue.pipeline.registry import run
from glue.plans.model_glue import stages_at_submission, stages_unlocked
from glue.plans.units import WORKER_CLASSES
from glue.references.hub_access import HubAccess
from glue.specs.digests import digest_of
from glue.specs.errors import GlueError
from glue.specs.kinds import ModelJobSpec
from glue.specs.plan import (
    ADVANCE,
    ADVANCE_POSITION,
    FinishedUnit,
    StageOutcome,
    StagePlan,
    UnitOutcome,
    UnitPlan,
    UnitRequest,
    WorkerClass,
)


@dataclass
class InProcess:
    """Runs a job's stages one after the other; `outcomes` grows as they finish."""

    spec: ModelJobSpec
    home: Path
    outcomes: list[StageOutcome] = field(default_factory=list)
    cache: dict[Any, Any] = field(default_factory=dict)
    token: int = 0
    hub: HubAccess | None = None

    def run(self) -> dict[str, Any]:
        """Run to the end, from behind the stages that have outcomes; gives the last stage's result."""
        if self.outcomes:
            ready = list(stages_unlocked(self.spec, self.outcomes))
        else:
            ready = [plan for plan in stages_at_submission(self.spec) if plan.ready]
        while ready:
            for plan in ready:
                self.outcomes.append(StageOutcome(plan.name, plan.family, self._stage(plan)))
            ready = list(stages_unlocked(self.spec, self.outcomes))
        return self.outcomes[-1].result

    def outcome(self, name: str, family: str = "") -> dict[str, Any]:
        """The result of a finished stage."""
        return next(o.result for o in self.outcomes if (o.name, o.family) == (name, family))

    def _stage(self, plan: StagePlan) -> dict[str, Any]:
        finished: list[FinishedUnit] = []
        advances: list[dict[str, Any]] = []
        units, generation = plan.units, 0
        while True:
            finished += [self._unit(plan, unit, generation, position) for position, unit in enumerate(units)]
            advanced = self._advance(plan, generation, finished, advances)
            if advanced.finished:
                return advanced.result
            advances.append(advanced.result)
            units, generation = advanced.units, generation + 1

    def _unit(self, plan: StagePlan, unit: UnitPlan, generation: int, position: int) -> FinishedUnit:
        try:
            outcome = self._run(plan, unit.kind, unit.payload, generation, position)
        except GlueError as error:
            if plan.name != "search":
                raise
            return FinishedUnit(generation, position, unit.kind, unit.payload, None, error.as_json())
        return FinishedUnit(generation, position, unit.kind, unit.payload, outcome.result, None)

    def _advance(
        self, plan: StagePlan, generation: int, finished: list[FinishedUnit], advances: list[dict[str, Any]]
    ) -> UnitOutcome:
        return self._run(plan, ADVANCE, {}, generation, ADVANCE_POSITION, tuple(finished), tuple(advances))

    def _run(
        self,
        plan: StagePlan,
        kind: str,
        payload: dict[str, Any],
        generation: int,
        position: int,
        units: tuple[FinishedUnit, ...] = (),
        advances: tuple[dict[str, Any], ...] = (),
    ) -> UnitOutcome:
        self.token += 1
        request = UnitRequest(
            unit_id=f"unit_{self.token}",
            job_id="job_in_process",
            stage=plan.name,
            family=plan.family,
            kind=kind,
            generation=generation,
            position=position,
            token=self.token,
            digest=digest_of([kind, payload]),
            spec=self.spec.as_json(),
            payload=payload,
            outcomes=tuple(self.outcomes),
            units=units,
            advances=advances,
        )
        context = Context(
            artifacts=self.home / "artifacts",
            work=self.home / "work" / request.unit_id / request.digest,
            device="cpu",
            progress=lambda fraction, message: None,
            cache=self.cache,
            hub=self.hub if WORKER_CLASSES[kind] is WorkerClass.HUB else None,
        )
        # Through JSON as in the service, so that nothing depends on live objects.
        again = UnitRequest.from_json(request.as_json())
        outcome = UnitOutcome.from_json(run(again, context).as_json())
        # What the records read of a unit's result when they complete it.
        assert isinstance(outcome.result.get("notes", {}), dict)
        return outcome
