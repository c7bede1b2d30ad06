"""`python -m glue.sandbox.server`: runs programs for workers, in a container that may not make user namespaces.

POST /v1/runs takes language, source and limits and answers with the verdict; GET /healthz says which languages run.
GLUE_SANDBOX_TOKEN is what workers must show, GLUE_SANDBOX_PORT where they ask, GLUE_SANDBOX_SLOTS how many programs
run at once.
"""

import hmac
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import BoundedSemaphore
from typing import Any

from glue.sandbox.programs import (
    LANGUAGES,
    Confined,
    Language,
    Limits,
    NoInterpreterError,
    Verdict,
    interpreter,
    run_confined,
)
from glue.sandbox.walls import hide_own_process, landlock_version

LOG = logging.getLogger("glue.sandbox")
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
LARGEST_REQUEST = 2 * 1024**2
LONGEST_WAIT = 300.0
LONGEST_RUN = 60.0
SHORTEST_TOKEN = 16
NOT_FOUND = (HTTPStatus.NOT_FOUND, {"detail": "there is GET /healthz and POST /v1/runs"})


class BadRequestError(Exception):
    """What was asked cannot be done."""


class NoWallsError(Exception):
    """This machine lets us put up no walls."""


class SandboxServer(ThreadingHTTPServer):
    """Answers many at once and runs a few programs at a time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], token: str, slots: int) -> None:
        """Show that the walls hold up a program of each language.

        Raises:
            OSError: the address is taken.
            NoWallsError: no program runs inside the walls here.
        """
        self.token = token.encode()
        self.slots = BoundedSemaphore(slots)
        self.languages = [language for language in LANGUAGES if _runs(language)]
        if not self.languages:
            raise NoWallsError(
                "no program runs inside the walls: they need Landlock and seccomp filters "
                f"(this kernel's Landlock: version {landlock_version()}; 0 is none, or forbidden by the container)"
            )
        super().__init__(address, Handler)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: SandboxServer
    protocol_version = "HTTP/1.1"
    server_version = "glue-sandbox"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        """Say which languages run."""
        if self.path == "/healthz":
            self._answer(HTTPStatus.OK, {"languages": self.server.languages})
        else:
            self._answer(*NOT_FOUND)

    def do_POST(self) -> None:
        """Run a program."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_REQUEST:
            self.close_connection = True
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"detail": f"at most {LARGEST_REQUEST} bytes"})
        else:
            self._answer(*self._outcome(self.rfile.read(int(length))))

    def _outcome(self, body: bytes) -> tuple[HTTPStatus, Mapping[str, Any]]:
        if not self._known():
            return HTTPStatus.UNAUTHORIZED, {"detail": "the token is not the sandbox's"}
        if self.path != "/v1/runs":
            return NOT_FOUND
        try:
            language, source, limits = _request(body, self.server.languages)
        except BadRequestError as error:
            return HTTPStatus.BAD_REQUEST, {"detail": str(error)}
        if not self.server.slots.acquire(timeout=LONGEST_WAIT):
            return HTTPStatus.SERVICE_UNAVAILABLE, {"detail": "all slots are busy"}
        try:
            return HTTPStatus.OK, asdict(run_inside(language, source, limits))
        finally:
            self.server.slots.release()

    def _known(self) -> bool:
        scheme, _, shown = self.headers.get("Authorization", "").partition(" ")
        return scheme == "Bearer" and hmac.compare_digest(shown.encode(), self.server.token)

    def _answer(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: they are many and hold nothing to know."""


def run_inside(language: Language, source: str, limits: Limits) -> Verdict:
    """Run one program behind the walls, in a folder that is gone afterwards."""
    with TemporaryDirectory(prefix="run", ignore_cleanup_errors=True) as place:
        folder = Path(place, "own")
        folder.mkdir()
        return run_confined(
            language, source, limits, Path(place, "program"), lambda program: _walled(language, program, folder, limits)
        )


def _walled(language: Language, program: Path, folder: Path, limits: Limits) -> Confined:
    launch = [sys.executable, "-S", "-P", "-m", "glue.sandbox.launch"]
    told = [language, str(program), str(folder), json.dumps(asdict(limits))]
    environment = {"PYTHONPATH": str(PACKAGE_ROOT), "PATH": os.environ.get("PATH", "")}
    return Confined([*launch, *told], environment=environment, watched=folder)


def _runs(language: Language) -> bool:
    try:
        interpreter(language)
    except NoInterpreterError as error:
        LOG.warning("%s", error)
        return False
    passed = run_inside(language, "", Limits(seconds=30)).passed
    if not passed:
        LOG.warning("there is %s, but no %s program runs behind the walls", interpreter(language), language)
    return passed


def _request(body: bytes, languages: list[Language]) -> tuple[Language, str, Limits]:
    try:
        asked = json.loads(body)
        language, source, given = asked["language"], asked["source"], asked["limits"]
        limits = Limits(
            float(given["seconds"]),
            *(int(given[name]) for name in ("memory_bytes", "output_bytes", "folder_bytes")),
        )
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise BadRequestError(f"not a run: {type(error).__name__}: {error}") from None
    if language not in languages:
        raise BadRequestError(f"no {language} here; there is: {', '.join(languages)}")
    if not isinstance(source, str):
        raise BadRequestError("source is not text")
    most = Limits(seconds=LONGEST_RUN)
    for name, value in asdict(limits).items():
        if not 0 < value <= getattr(most, name):
            raise BadRequestError(f"limits.{name} is above 0 and at most {getattr(most, name)}")
    return language, source, limits


def main() -> None:
    """Serve until the process is ended."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    token = os.environ.pop("GLUE_SANDBOX_TOKEN", "")
    if len(token) < SHORTEST_TOKEN:
        sys.exit(f"GLUE_SANDBOX_TOKEN must hold at least {SHORTEST_TOKEN} characters")
    hide_own_process()
    host, port = os.environ.get("GLUE_SANDBOX_HOST", "0.0.0.0"), int(os.environ.get("GLUE_SANDBOX_PORT", "8800"))  # noqa: S104
    try:
        server = SandboxServer((host, port), token, int(os.environ.get("GLUE_SANDBOX_SLOTS", "1")))
    except (NoWallsError, OSError) as error:
        sys.exit(str(error))
    LOG.info("serving %s on port %s", ", ".join(server.languages), server.server_port)
    server.serve_forever()


if __name__ == "__main__":
    main()
