"""A submission whose answer was lost is sent again under the same key, and given up after a few tries."""

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from glue.cli.client import Client, UnreachableError


class Losing(BaseHTTPRequestHandler):
    """Takes every request, and drops the answers to the first ones."""

    keys: list[str] = []
    lost = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.keys.append(self.headers["Idempotency-Key"])
        if len(self.keys) <= type(self).lost:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        content = json.dumps({"id": "job_1"}).encode()
        self.send_response(201)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr("glue.cli.client._RESEND_SECONDS", (0.0, 0.0))
    Losing.keys = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Losing)
    Thread(target=server.serve_forever, daemon=True).start()
    with Client(f"http://127.0.0.1:{server.server_address[1]}", "key") as made:
        yield made
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_answer_is_asked_for_again(client: Client, lost: int) -> None:
    Losing.lost = lost
    assert client.submit({}, "once")["id"] == "job_1"
    assert Losing.keys == ["once"] * (lost + 1)


def test_it_gives_up(client: Client) -> None:
    Losing.lost = 9
    with pytest.raises(UnreachableError):
        client.submit({}, "once")
    assert Losing.keys == ["once"] * 3
