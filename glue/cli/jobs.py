"""`glue zoo add`, `submit`, `jobs`, `status`, `follow`, `pause`, `resume`, `cancel`, `report`, `pull`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.console import Console
from rich.markup import escape

from glue.cli.client import Client, ServiceError
from glue.cli.files import job_request, zoo_request
from glue.cli.follow import follow as follow_job
from glue.cli.follow import patiently
from glue.cli.hub import pull_from_hub
from glue.cli.pull import pull as pull_artifact
from glue.cli.tables import jobs_table, report_summary, report_table
from glue.cli.telling import console, told
from glue.references.hub_names import SCHEME

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or 'last' for the newest.")]

zoo_app = typer.Typer(no_args_is_help=True, help="Store zoos.")


@contextmanager
def _told() -> Iterator[Client]:
    """A client; what goes wrong is told in words, with exit code 1."""
    with told(), Client.from_environment() as client:
        yield client


@zoo_app.command("add")
def add_zoo(file: Annotated[Path, typer.Argument(metavar="ZOO.yml")]) -> None:
    """Store a zoo from a YAML file, or replace the one of the same name."""
    with _told() as client:
        zoo = client.add_zoo(zoo_request(file))
        console.print(f"zoo {zoo['name']} ({zoo['id']}): {len(zoo['spec']['members'])} members", highlight=False)


def submit(
    file: Annotated[Path, typer.Argument(metavar="JOB.yml")],
    follow: Annotated[bool, typer.Option("--follow", help="Stay and show the progress.")] = False,
) -> None:
    """Submit a job from a YAML file."""
    with _told() as client:
        job = client.submit(job_request(file), str(uuid4()))
        console.print(f"submitted {job['id']}", highlight=False)
        for warning in job["warnings"]:
            console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
        if follow:
            _follow(client, job["id"])


def jobs(limit: Annotated[int, typer.Option(min=1, max=100)] = 20) -> None:
    """List the newest jobs."""
    with _told() as client:
        console.print(jobs_table(client.jobs(limit)))


def status(job: JobId, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show one job."""
    with _told() as client:
        found = client.job(_id(client, job))
        if as_json:
            _print_json(found)
        else:
            console.print(jobs_table([found]))
            _print_outcome(found)


def follow(job: JobId) -> None:
    """Show a job's progress until it ends."""
    with _told() as client:
        _follow(client, _id(client, job))


def pause(job: JobId) -> None:
    """Start no more units of a job; those that run finish and are kept."""
    with _told() as client:
        _print_status(client.pause(_id(client, job)))


def resume(job: JobId) -> None:
    """Let a paused job go on."""
    with _told() as client:
        _print_status(client.resume(_id(client, job)))


def cancel(job: JobId) -> None:
    """Cancel a job."""
    with _told() as client:
        _print_status(client.cancel(_id(client, job)))


def report(job: JobId, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show a finished job's report."""
    with _told() as client:
        found = client.report(_id(client, job))
        if as_json:
            _print_json(found)
        else:
            print_report(found, console)


def pull(
    job: Annotated[str, typer.Argument(metavar="JOB|hf://REPO", help="A job, 'last', or a repository of the Hub.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
) -> None:
    """Fetch a finished model into a new folder, verified: from the service, or from the Hub."""
    if job.startswith(SCHEME):
        with told():
            pull_from_hub(job, folder)
        console.print(f"the model is in {folder}", highlight=False, markup=False)
        return
    with _told() as client:
        found = client.job(_id(client, job))
        if not found["result"]:
            raise ServiceError(f"{found['id']} is {found['status']}; only a succeeded job has a model.")
        pull_artifact(client, client.artifact(found["result"]["artifact_id"]), folder, console)
        console.print(f"the model is in {folder}", highlight=False, markup=False)


def print_report(found: dict[str, Any], out: Console) -> None:
    """The table, if anything was scored, and the lines under it."""
    if found["models"]:
        out.print(report_table(found))
    for line in report_summary(found):
        out.print(line)


def _follow(client: Client, job_id: str) -> None:
    try:
        found = follow_job(client, job_id, console)
    except KeyboardInterrupt:
        console.print(f"The job goes on. `glue follow {job_id}` shows it again, `glue cancel {job_id}` ends it.")
        raise typer.Exit(130) from None
    _print_outcome(found)
    if found["status"] != "succeeded":
        raise typer.Exit(1)
    if found["kind"] != "publish":
        print_report(patiently(lambda: client.report(job_id)), console)


def _id(client: Client, job: str) -> str:
    if job != "last":
        return job
    newest = client.jobs(1)
    if not newest:
        raise ServiceError("There are no jobs yet.", "Submit one with `glue submit JOB.yml`.")
    return str(newest[0]["id"])


def _print_status(job: dict[str, Any]) -> None:
    console.print(f"{job['id']} is {job['status']}", highlight=False)


def _print_outcome(job: dict[str, Any]) -> None:
    if job["error"]:
        console.print(f"[red]{job['status']}[/]: {escape(job['error']['detail'])}", highlight=False)
        for problem in job["error"].get("problems") or ():
            fix = f" ({problem['fix']})" if problem.get("fix") else ""
            console.print(f"  {problem['detail']}{fix}", highlight=False, markup=False)


def _print_json(value: dict[str, Any]) -> None:
    console.print_json(json.dumps(value))
