"""One attempt at one unit: from the cache or the engine to what is written down about it, fenced by its lease."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from time import monotonic, sleep
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from glue.plans.model_glue import stages_unlocked
from glue.plans.units import WORKER_CLASSES
from glue.records import leases
from glue.records.database import Database
from glue.records.errors import LeaseLost
from glue.records.hub_tokens import folders_in_use, open_token
from glue.records.leases import Backoff, Claim
from glue.records.sealing import Vault
from glue.references.hub_access import HubAccess, endpoint_of_environment
from glue.specs.errors import Fault, Reason
from glue.specs.plan import UnitOutcome, WorkerClass
from workers.artifacts import Artifacts, stopping
from workers.engine.process import (
    EngineDiedError,
    Interruption,
    UnitFailedError,
    UnitInterruptedError,
    WarmEngine,
)
from workers.heartbeat import Lease
from workers.hub_models import HubModels
from workers.logs import brief
from workers.observe import count_outcome
from workers.score_cache import find_cached, keep_score
from workers.settings import Settings

logger = logging.getLogger(__name__)

Value = TypeVar("Value")
Interrupt = Callable[[], Interruption | None]

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 2.0
# A write that the server keeps refusing for so many leases is left to the reaper.
_LEASES_TO_PERSIST = 10


class UnitRunner:
    """Runs claimed units, one at a time, in the thread that owns the engine."""

    def __init__(self, settings: Settings, database: Database, engine: WarmEngine) -> None:
        self._settings = settings
        self._database = database
        self._engine = engine
        self._artifacts = Artifacts(settings.artifacts, settings.artifacts_url)
        self._hub_models = HubModels(settings.hub_cache, settings.hub_budget, settings.artifacts_url)
        self._backoff = Backoff(transient=timedelta(seconds=settings.retry))

    def run(self, claim: Claim, lease: Lease, interruption: Interrupt) -> str:
        """Run the unit, write down how it ended, and say so in a few words."""
        return self._settle(self._ending(claim, lease, interruption), claim, lease)

    def _ending(self, claim: Claim, lease: Lease, interruption: Interrupt) -> "_Ending":
        """Run the unit to one of its possible endings; nothing is written yet."""
        unit, token = claim.unit.unit_id, claim.token
        try:
            outcome = self._outcome(claim, lease, interruption)
            return _Ending("succeeded", lambda session: self._complete(session, claim, outcome), outcome=outcome)
        except UnitInterruptedError as stopped:
            if stopped.reason is Interruption.LOST:
                return _Ending("lost, nothing is written")
            return _Ending(stopped.reason.value, lambda session: leases.release(session, unit, token))
        except LeaseLost:
            return _Ending("lost, nothing is written")
        except UnitFailedError as failed:
            return self._failure(claim, failed.error)
        except EngineDiedError as died:
            return self._failure(claim, _error(Reason.WORKER_LOST, Fault.TRANSIENT, str(died)))
        except Exception as error:
            logger.exception("%s: the worker failed", described(claim))
            return self._failure(claim, _error(Reason.INTERNAL, Fault.INTERNAL, brief(error)))

    def _outcome(self, claim: Claim, lease: Lease, interruption: Interrupt) -> UnitOutcome:
        cached = self._persist(lambda session: find_cached(session, claim, self._settings.device), lease)
        if cached is not None:
            return cached
        hub = self._persist(lambda session: self._hub(session, claim), lease)
        self._artifacts.bring(claim.unit, interruption)
        self._bring_models(claim, lease, interruption)
        outcome = self._engine.run(claim.unit, lease.report, interruption, hub)
        self._hub_models.send(claim.unit, stopping(interruption))
        self._artifacts.send(outcome, interruption)
        return outcome

    def _bring_models(self, claim: Claim, lease: Lease, interruption: Interrupt) -> None:
        wanted = self._hub_models.missing(claim.unit)
        if wanted:
            kept = self._persist(folders_in_use, lease)
            say = partial(_told, lease)
            self._hub_models.bring(wanted, kept, say, stopping(interruption))

    def _hub(self, session: Session, claim: Claim) -> HubAccess | None:
        """The way to the Hub with the owner's token, for the units that need it and no others."""
        if WORKER_CLASSES.get(claim.unit.kind) is not WorkerClass.HUB:
            return None
        vault = Vault.from_text(self._settings.secret_keys) if self._settings.secret_keys else None
        return HubAccess(
            endpoint_of_environment(),
            self._settings.hub_cache,
            self._settings.hub_budget,
            open_token(session, vault, claim.owner),
            folders_in_use(session),
        )

    def _complete(self, session: Session, claim: Claim, outcome: UnitOutcome) -> None:
        # The score comes first: the completion ends the lease that guards it.
        keep_score(session, claim, outcome, self._settings.device)
        leases.complete(session, claim.unit.unit_id, claim.token, outcome, stages_unlocked)

    def _failure(self, claim: Claim, error: dict[str, Any], last: bool = False) -> "_Ending":
        unit, token, retry = claim.unit.unit_id, claim.token, error["fault"] != Fault.USER

        def write(session: Session) -> None:
            leases.fail(session, unit, token, error, retry=retry, backoff=self._backoff)

        return _Ending(f"failed ({error['reason']}: {error['detail']})", write, last)

    def _settle(self, ending: "_Ending", claim: Claim, lease: Lease) -> str:
        """Write the ending down and say in a word what it was."""
        if ending.write is None:
            return ending.word
        try:
            self._persist(ending.write, lease)
        except LeaseLost:
            # Somebody else has the unit, or a commit whose answer was lost had already ended it: both are final.
            return f"{ending.word}, but no longer ours to write"
        except Exception as error:
            if ending.last:
                raise
            logger.exception("%s: its ending cannot be stored", described(claim))
            error_json = _error(Reason.INTERNAL, Fault.INTERNAL, brief(error))
            return self._settle(self._failure(claim, error_json, last=True), claim, lease)
        if ending.outcome is not None:
            count_outcome(claim, ending.outcome)
            # Stored for good: what lies in the unit's work folder serves nobody any more.
            shutil.rmtree(self._settings.work / claim.unit.unit_id, ignore_errors=True)
        return ending.word

    def _persist(self, write: Callable[[Session], Value], lease: Lease) -> Value:
        """One transaction; while the server is away, again and again until it is back or the lease is over.

        Raises:
            LeaseLost: the lease was over before the server was back.
        """
        pause, deadline = _FIRST_RETRY_SECONDS, monotonic() + _LEASES_TO_PERSIST * self._settings.lease
        while True:
            try:
                with self._database.transaction() as session:
                    return write(session)
            except DBAPIError as error:
                if not _passes(error) or monotonic() > deadline:
                    raise
                if lease.interruption() is Interruption.LOST:
                    raise LeaseLost(f"the lease of {lease.unit_id} ended while the database was away") from error
                logger.warning("unit %s: the database does not answer: %s", lease.unit_id, brief(error))
            sleep(pause)
            pause = min(2 * pause, _LAST_RETRY_SECONDS)


@dataclass(frozen=True)
class _Ending:
    """How a unit ended, in a word, and what is written of it; `last` is written or left to the reaper."""

    word: str
    write: Callable[[Session], None] | None = None
    last: bool = False
    outcome: UnitOutcome | None = None


def _told(lease: Lease, message: str) -> None:
    lease.report({"fraction": 0.0, "message": message})


def _error(reason: Reason, fault: Fault, detail: str) -> dict[str, Any]:
    return {"reason": reason, "fault": fault, "detail": detail, "problems": []}


def _passes(error: DBAPIError) -> bool:
    """Whether the same transaction may succeed a little later: the server restarts, is full, or broke a deadlock."""
    return isinstance(error, OperationalError) or error.connection_invalidated


def described(claim: Claim) -> str:
    """The unit in one line of a log."""
    unit = claim.unit
    place = f"{unit.stage}/{unit.family}" if unit.family else unit.stage
    return f"unit={unit.unit_id} job={unit.job_id} token={claim.token} stage={place} kind={unit.kind}"
