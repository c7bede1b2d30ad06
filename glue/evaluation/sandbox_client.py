"""Asks a sandbox server to run a program; knows its address and token, nothing of walls."""

import json
import time
from dataclasses import asdict

import httpx

from glue.sandbox.programs import Language, Limits, Verdict
from glue.specs.errors import EvaluationError, Fault, GlueError, Reason

PATIENCE = 60.0
PAUSE = 1.0
# The server lets a request wait this long for a slot.
LONGEST_WAIT = 330.0


class SandboxUnavailableError(GlueError):
    """The sandbox server does not answer; the unit is tried again later."""

    fault = Fault.TRANSIENT
    reason = Reason.EVALUATION_FAILED


def run_remotely(
    url: str, token: str, language: Language, source: str, limits: Limits, patience: float = PATIENCE
) -> Verdict:
    """The server's verdict. It is asked again for `patience` seconds while it cannot be reached or is busy.

    Raises:
        SandboxUnavailableError: it cannot be reached, or has no slot.
        EvaluationError: it refuses the token or the program.
    """
    # Only ASCII, so that what is no text travels as well.
    request = json.dumps({"language": language, "source": source, "limits": asdict(limits)})
    end = time.monotonic() + patience
    while True:
        try:
            answer = httpx.post(
                f"{url.rstrip('/')}/v1/runs",
                content=request,
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                timeout=httpx.Timeout(10, read=limits.seconds + LONGEST_WAIT),
                trust_env=False,
            )
        except httpx.TransportError as error:
            trouble = f"{type(error).__name__}: {error}"
        else:
            if answer.status_code == httpx.codes.OK:
                return Verdict(**answer.json())
            trouble = _trouble(answer)
        if time.monotonic() > end:
            raise SandboxUnavailableError(f"the sandbox server at {url} does not run programs: {trouble}")
        time.sleep(PAUSE)


def _trouble(answer: httpx.Response) -> str:
    detail = answer.json()["detail"] if answer.headers.get("Content-Type") == "application/json" else answer.text[:200]
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise EvaluationError(f"the sandbox server refuses this worker: {detail}; set GLUE_SANDBOX_TOKEN to its token")
    if answer.is_client_error:
        raise EvaluationError(f"the sandbox server refuses the program: {detail}")
    return str(detail)
