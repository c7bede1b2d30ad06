"""The supervisor: one command up, one signal down, and no kill leaves anything behind or loses anything."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from tests.support.processes import all_gone, family, is_running, kill
from tests.support.services import SUPERVISOR, comes_back, launched, service
from workers.embedded.process import wait_for


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    return folder / "home"


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def test_one_command_up_one_signal_down(home: Path, tmp_path: Path) -> None:
    with service(home, "--workers", "2", "--root", str(tmp_path)) as running:
        pids = running.pids
        assert set(pids) == {"postgres", "valkey", "api", "maintenance", "worker-1", "worker-2"}
        assert running.url in running.said
        assert running.api_key in running.said
        assert stat.S_IMODE((home / "client.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(home.parent.stat().st_mode) == 0o700
        with running.client as client:
            assert client.get("/v1/zoos").status_code == 200
            assert client.get("/v1/zoos", headers={"Authorization": "Bearer wrong"}).status_code == 401
        told = environment_of(pids["api"])
        assert (told["GLUE_HOME"], told["GLUE_ROOTS"]) == (str(home), str(tmp_path))
        everything = family(running.process.pid)
        rest = running.stop()
    assert running.process.returncode == 0
    assert "stopped in" in rest
    assert not any(is_running(pid) for pid in everything)
    assert not running.pids
    logs = "".join(log.read_text() for log in (home / "logs").iterdir())
    secrets = [running.api_key, *((home / each / "password").read_text() for each in ("postgres", "valkey"))]
    assert not any(secret in logs for secret in secrets)


def test_killed_it_leaves_nothing_running_and_the_next_one_finds_everything(home: Path) -> None:
    with service(home, "--workers", "2") as running:
        everything = family(running.process.pid)
        with psycopg.connect(environment_of(running.pids["api"])["DATABASE_URL"]) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 'here' AS word")
        kill(running.process.pid)
        assert all_gone(everything)
        recorded = running.pids
    assert recorded
    with service(home, "--workers", "0") as again:
        assert again.api_key == running.api_key
        assert again.api_key not in again.said, "the key is shown once, later only at a terminal"
        assert set(again.pids) == {"postgres", "valkey", "api", "maintenance"}
        with psycopg.connect(environment_of(again.pids["api"])["DATABASE_URL"]) as connection:
            assert connection.execute("SELECT word FROM kept").fetchone() == ("here",)


def test_whatever_is_killed_comes_back_and_nothing_is_lost(home: Path) -> None:
    with service(home) as running:
        told = environment_of(running.pids["api"])
        with psycopg.connect(told["DATABASE_URL"]) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 'here' AS word")
        for name in ("postgres", "valkey", "api", "maintenance", "worker-1"):
            pid = running.pids[name]
            kill(pid)
            assert comes_back(running, name, pid), name
        assert environment_of(running.pids["api"])["DATABASE_URL"] == told["DATABASE_URL"]
        with psycopg.connect(told["DATABASE_URL"]) as connection:
            assert connection.execute("SELECT word FROM kept").fetchone() == ("here",)
        with redis.Redis.from_url(told["REDIS_URL"]) as broker:
            assert broker.ping()
        with running.client as client:
            assert client.get("/v1/zoos").status_code == 200
        rest = running.stop(signal.SIGINT)
    assert "postgres was killed by SIGKILL" in rest
    assert "worker-1 runs again" in rest


def test_when_a_server_must_move_everybody_follows(home: Path) -> None:
    with service(home) as running:
        before, database = running.pids, environment_of(running.pids["api"])["DATABASE_URL"]
        running.process.send_signal(signal.SIGSTOP)
        kill(before["postgres"])
        assert all_gone([before["postgres"]])
        with socket.create_server(("127.0.0.1", urlsplit(database).port or 0)):
            running.process.send_signal(signal.SIGCONT)
            for name in ("postgres", "api", "maintenance", "worker-1"):
                assert comes_back(running, name, before[name]), name
        assert environment_of(running.pids["worker-1"])["DATABASE_URL"] != database
        with running.client as client:
            assert client.get("/v1/zoos").status_code == 200


def test_a_database_out_of_reach_is_told_without_a_traceback(home: Path) -> None:
    environment = {"DATABASE_URL": "postgresql://glue:hidden@127.0.0.1:1/glue"}
    with launched(home, "--port", "0", environment=environment) as process:
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "The database cannot be used" in said
    assert "Traceback" not in said
    assert "hidden" not in said


def test_a_home_has_one_supervisor(home: Path) -> None:
    with service(home, "--workers", "0") as running, launched(home, "--port", "0") as second:
        said, _ = second.communicate(timeout=30)
        assert second.returncode == 1
        assert f"in use by another supervisor (process {running.process.pid})" in said
        assert "Traceback" not in said
        assert running.is_ready()


def test_an_interrupt_in_the_middle_of_the_start_stops_what_was_started(home: Path) -> None:
    with launched(home) as process:
        assert wait_for(lambda: (home / "run" / "postgres.pid").exists(), 30)
        everything = family(process.pid)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in said
    assert all_gone(everything)


def test_a_taken_port_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with launched(home, "--port", str(port)) as process:
            said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"Port {port} of 127.0.0.1 is taken" in said


def test_servers_of_ones_own_replace_the_embedded_ones(home: Path, postgres_url: str, redis_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE supervised")
    own = {"DATABASE_URL": postgres_url.rpartition("/")[0] + "/supervised", "REDIS_URL": redis_url}
    with service(home, "--workers", "0", environment=own) as running:
        assert set(running.pids) == {"api", "maintenance"}
        with running.client as client:
            assert client.get("/v1/zoos").status_code == 200


def test_it_works_without_a_broker(home: Path) -> None:
    with service(home, environment={"REDIS_URL": ""}) as running:
        assert set(running.pids) == {"postgres", "api", "maintenance", "worker-1"}
        assert all(is_running(pid) for pid in running.pids.values())


def test_a_folder_with_our_names_in_it_is_no_hindrance(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("api", "workers", "glue"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    command = [str(Path(sys.executable).with_name("glue")), "up"]
    with service(home, "--workers", "0", command=command) as running:
        assert environment_of(running.pids["api"])["GLUE_ROOTS"] == str(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_an_ordinary_user_may_run_it(home: Path) -> None:
    namespace = ["unshare", "--user", "--map-user=1", "--map-group=1"]
    if subprocess.run([*namespace, "true"], check=False).returncode:
        pytest.skip("no user namespaces here")
    with service(home, command=[*namespace, *SUPERVISOR]) as running, running.client as client:
        assert client.get("/v1/zoos").status_code == 200
