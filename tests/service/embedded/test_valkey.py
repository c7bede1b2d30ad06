"""The embedded Valkey keeps what it acknowledged and speaks only to who knows its password."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.processes import all_gone, is_running, kill, python, said
from workers.embedded.valkey import ValkeyServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path / 'a "quoted" home')
    server.start()
    yield server
    server.stop()


def test_it_is_durable_private_and_never_forgets_for_want_of_memory(server: ValkeyServer, tmp_path: Path) -> None:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        settings = client.config_get("*")
    assert settings["appendonly"] == "yes"
    assert settings["save"] == ""
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["bind"] == "127.0.0.1"
    assert settings["dir"] == str(tmp_path / 'a "quoted" home' / "valkey" / "data")
    for name in ("password", "valkey.conf"):
        assert stat.S_IMODE((tmp_path / 'a "quoted" home' / "valkey" / name).stat().st_mode) == 0o600
    with redis.Redis(port=int(settings["port"])) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_a_killed_server_comes_back_at_the_same_address_with_its_keys(server: ValkeyServer) -> None:
    address = server.url
    with redis.Redis.from_url(server.url) as client:
        client.set("kept", "here")
        client.waitaof(1, 0, 2000)
    assert server.child.pid is not None
    kill(server.child.pid)
    server.start()
    assert server.url == address
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        assert client.get("kept") == "here"


STARTER = """
import sys, time
from pathlib import Path
from workers.embedded.valkey import ValkeyServer
server = ValkeyServer(Path(sys.argv[1]))
server.start()
print(server.child.pid, flush=True)
time.sleep(600)
"""


def test_it_dies_with_its_starter(tmp_path: Path) -> None:
    with python(STARTER, str(tmp_path)) as starter:
        (pid,) = said(starter)
        assert is_running(int(pid))
    assert all_gone([int(pid)])
