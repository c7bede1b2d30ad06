"""`make demo`: build the small zoo, start the service, submit the job over REST, follow it, show the result.

Everything lies under `.demo`; a second run finds the zoo and the servers' data there.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from examples.small_zoo.build import build_zoo
from glue.cli.client import Client, ServiceError
from glue.cli.files import job_request, zoo_request
from glue.cli.follow import follow
from glue.cli.jobs import print_report
from workers.embedded.process import tie_to_parent

DEMO = Path(__file__).resolve().parents[2] / ".demo"
WORKERS = "2"
READY_SECONDS, STOP_SECONDS = 90.0, 45.0


def main() -> int:
    """Run the demo in the folder of the first argument, `.demo` by default; 0 when the job succeeded."""
    console = Console()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else DEMO).resolve()
    console.rule("[bold]1. A small zoo: a base, four fine-tuned members, two strangers", align="left")
    zoo = build_zoo(folder / "zoo", console=console)
    console.rule("[bold]2. The service, on embedded servers", align="left")
    with service(folder) as client:
        console.rule("[bold]3. The job: cluster, search, merge, mix, measure", align="left")
        client.add_zoo(zoo_request(zoo / "zoo.yml"))
        job = client.submit(job_request(zoo / "job.yml"), f"demo-{time.time_ns()}")
        job = follow(client, job["id"], console)
        if job["status"] != "succeeded":
            console.print(f"[red]the job {job['status']}[/]: {(job['error'] or {}).get('detail')}")
            return 1
        report = client.report(job["id"])
        artifact = client.artifact(job["result"]["artifact_id"])
    return _show(report, folder / "home" / "artifacts" / artifact["location"], console)


@contextmanager
def service(folder: Path) -> Iterator[Client]:
    """`glue up` as a child for as long as the block runs; it also ends when this process is killed."""
    home = folder / "home"
    command = [sys.executable, "-P", "-m", "workers.supervisor", "--home", str(home), "--workers", WORKERS]
    environment = {key: value for key, value in os.environ.items() if key not in ("GLUE_URL", "GLUE_API_KEY")}
    supervisor = subprocess.Popen(
        [*command, "--root", str(folder)],
        env=environment,
        preexec_fn=tie_to_parent(signal.SIGTERM),  # nothing runs in other threads yet
    )
    try:
        yield _wait_until_ready(home, supervisor)
    finally:
        supervisor.terminate()
        supervisor.wait(STOP_SECONDS)


def _show(report: dict[str, Any], folder: Path, console: Console) -> int:
    console.rule("[bold]Accuracy on items that the search never saw, in percent", align="left")
    print_report(report, console)
    console.rule("[bold]The result", align="left")
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    console.print(f"model   {shown}", highlight=False, soft_wrap=True)
    console.print("        README.md, report.json, plots/ lie in it", highlight=False)
    return 0


def _wait_until_ready(home: Path, supervisor: "subprocess.Popen[bytes]") -> Client:
    """A client of the service, once it answers our key; the file may still name an earlier run's address."""
    deadline = time.monotonic() + READY_SECONDS
    while supervisor.poll() is None and time.monotonic() < deadline:
        with suppress(ServiceError):
            client = Client.from_home(home)
            if len(client.workers()) >= int(WORKERS):
                return client
        time.sleep(0.2)
    raise SystemExit(f"The service did not start; its lines above and the logs in {home / 'logs'} say why.")


if __name__ == "__main__":
    sys.exit(main())
