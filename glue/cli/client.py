"""The service as the command line sees it: HTTP only, with errors that a person can act on."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    # Imported where it is used: commands that ask no service start without it.
    import httpx

TIMEOUT_SECONDS = 30.0
# The headers of a large zoo on the Hub take a while the first time.
PREFLIGHT_SECONDS = 300.0
_RESEND_SECONDS = (0.5, 2.0)
DEFAULT_HOME = Path("~/.glue")


class ServiceError(Exception):
    """The service refused, or cannot be reached. `lines` are for the terminal."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class UnreachableError(ServiceError):
    """Nothing answered; the same call may succeed later."""


class Client:
    """One method a call of the REST API; answers are plain JSON data."""

    def __init__(self, url: str, api_key: str) -> None:
        import httpx

        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_SECONDS)

    @classmethod
    def from_environment(cls) -> Self:
        """From GLUE_URL and GLUE_API_KEY, or from the file that `glue up` wrote.

        Raises:
            ServiceError: neither is there.
        """
        url, key = os.environ.get("GLUE_URL"), os.environ.get("GLUE_API_KEY")
        if url and key:
            return cls(url, key)
        return cls.from_home(Path(os.environ.get("GLUE_HOME") or DEFAULT_HOME).expanduser(), url, key)

    @classmethod
    def from_home(cls, home: Path, url: str | None = None, api_key: str | None = None) -> Self:
        """From the file that a service keeps in its home; what is given comes first.

        Raises:
            ServiceError: there is no such file.
        """
        written = _read_client_file(home / "client.json")
        url, api_key = url or written.get("url"), api_key or written.get("api_key")
        if not (url and api_key):
            fix = "Start one with `glue up`, or set GLUE_URL and GLUE_API_KEY."
            raise ServiceError("There is no service to talk to.", fix)
        return cls(url, api_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def add_zoo(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Store a zoo under its name."""
        return self._json("POST", "/v1/zoos", json=spec)

    def submit(self, spec: dict[str, Any], idempotency_key: str) -> dict[str, Any]:
        """Submit a job; the same key submits it once, however often it is sent, so a lost answer is asked for again.

        Raises:
            UnreachableError: the service did not answer any of the tries.
        """
        for pause in _RESEND_SECONDS:
            try:
                return self._submit(spec, idempotency_key)
            except UnreachableError:
                time.sleep(pause)
        return self._submit(spec, idempotency_key)

    def _submit(self, spec: dict[str, Any], idempotency_key: str) -> dict[str, Any]:
        return self._json("POST", "/v1/jobs", json=spec, headers={"Idempotency-Key": idempotency_key})

    def preflight(self, body: dict[str, Any]) -> dict[str, Any]:
        """What a job or a zoo would meet; nothing is stored."""
        return self._json("POST", "/v1/preflight", json=body, timeout=PREFLIGHT_SECONDS)

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        """The newest jobs."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/jobs", params={"limit": limit})["data"]
        return found

    def job(self, job_id: str) -> dict[str, Any]:
        """One job."""
        return self._json("GET", f"/v1/jobs/{job_id}")

    def pause(self, job_id: str) -> dict[str, Any]:
        """Ask that no more units of the job start."""
        return self._json("POST", f"/v1/jobs/{job_id}/pause")

    def resume(self, job_id: str) -> dict[str, Any]:
        """Ask that a paused job go on."""
        return self._json("POST", f"/v1/jobs/{job_id}/resume")

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Ask for the job's end."""
        return self._json("POST", f"/v1/jobs/{job_id}/cancel")

    def put_hub_token(self, token: str) -> dict[str, Any]:
        """Have the service keep a token of the Hub."""
        return self._json("PUT", "/v1/hub-token", json={"token": token})

    def hub_token(self) -> dict[str, Any]:
        """What is known of the token that the service keeps."""
        return self._json("GET", "/v1/hub-token")

    def delete_hub_token(self) -> None:
        """Have the service forget it."""
        self._json("DELETE", "/v1/hub-token")

    def report(self, job_id: str) -> dict[str, Any]:
        """The finished job's report."""
        return self._json("GET", f"/v1/jobs/{job_id}/report")

    def workers(self) -> list[dict[str, Any]]:
        """The workers that are there."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/workers")["data"]
        return found

    def artifact(self, artifact_id: str) -> dict[str, Any]:
        """An artifact's record with its manifest."""
        return self._json("GET", f"/v1/artifacts/{artifact_id}")

    def artifact_file(self, artifact_id: str, path: str) -> Iterator[bytes]:
        """The bytes of one file of an artifact."""
        with self._heard(), self._http.stream("GET", f"/v1/artifacts/{artifact_id}/files/{path}") as response:
            if response.is_error:
                response.read()
                raise _refused(response)
            yield from response.iter_bytes(1 << 20)

    @contextmanager
    def _heard(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TransportError as error:
            fix = "Is `glue up` running?"
            raise UnreachableError(f"{self._http.base_url} does not answer: {error}", fix) from None

    def _json(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        with self._heard():
            response = self._http.request(method, path, **arguments)
        if response.is_error:
            raise _refused(response)
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer


def _read_client_file(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    content: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _refused(response: "httpx.Response") -> ServiceError:
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if response.status_code in (502, 503, 504):
        return UnreachableError(str(problem.get("detail") or f"the service answered {response.status_code}"))
    lines = [str(problem.get("detail") or problem.get("title") or f"the service answered {response.status_code}")]
    for error in problem.get("errors") or ():
        fix = f" ({error['fix']})" if error.get("fix") else ""
        lines.append(f"  {error.get('pointer') or '/'}: {error.get('detail')}{fix}")
    return ServiceError(*lines)
