"""The stand-in on a real server on loopback, in a thread of the test's process, where its state can be looked at."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from tests.support.hub.app import Hub, create_app
from tests.support.hub.faults import Faulty, Request
from tests.support.hub.store import Account, Store

OWNER, STRANGER, READER = "ann", "bob", "carl"
TOKEN, STRANGER_TOKEN, READ_TOKEN, EXPIRED_TOKEN = "hf_ann", "hf_bob", "hf_carl", "hf_old"


@dataclass(frozen=True)
class StandIn:
    """A running stand-in: its address, what it holds, and what was asked of it."""

    url: str
    store: Store
    faults: Faulty

    def requests(self, method: str = "", part: str = "") -> list[Request]:
        """The requests of that method whose path holds `part`."""
        return [r for r in self.faults.requests if method in ("", r.method) and part in r.path]

    def sent(self) -> int:
        """The bytes of all bodies that were sent."""
        return sum(request.sent for request in self.faults.requests)

    def environment(self, token: str | None = None, *, xet: bool = False) -> dict[str, str]:
        """The environment in which the real client speaks to this server alone."""
        names = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "0" if xet else "1"}
        names |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        cleared = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return cleared | names | ({"HF_TOKEN": token} if token else {})


@contextmanager
def hub(root: Path, part_bytes: int = 0) -> Iterator[StandIn]:
    """A stand-in with four accounts: an owner, a stranger, one who may only read, and one whose token is over."""
    store = Store(root)
    store.accounts = {
        TOKEN: Account(OWNER, ("acme",)),
        STRANGER_TOKEN: Account(STRANGER),
        READ_TOKEN: Account(READER, (OWNER,), role="read"),
        EXPIRED_TOKEN: Account(OWNER, expired=True),
    }
    faulty = Faulty(create_app(Hub(store, part_bytes)))
    # Only with the protocol named does asyncio send small answers without delay.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(faulty, log_level="critical", timeout_graceful_shutdown=1, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield StandIn(f"http://127.0.0.1:{listener.getsockname()[1]}", store, faulty)
        finally:
            server.should_exit = True
            thread.join(10)
