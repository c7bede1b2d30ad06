"""`glue preflight`: what a job, a zoo or a merge file would meet, told before any weight is read.

A merge file is looked into here, as `glue merge` runs here; jobs and zoos by the service that would run them.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from glue.cli.client import Client
from glue.cli.files import with_absolute_paths, zoo_request
from glue.cli.telling import console, told
from glue.specs.base import read_yaml

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_SPANS = ((86400, "d"), (3600, "h"), (60, "min"))


def preflight(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A job, a zoo, or a merge file as mergekit reads it.")],
    zoo: Annotated[
        Path | None, typer.Option(metavar="ZOO.yml", help="The job's zoo, where the service does not have it yet.")
    ] = None,
    out: Annotated[Path, typer.Option(help="A folder of the disk that a merge file's result is meant for.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Tell every problem of FILE at once, and what it may take, from headers and configs alone.

    Exit code 1 means that it would be refused.
    """
    with told():
        data = read_yaml(file)
        found = _local(file, out) if _is_merge_file(data) else _remote(data, file, zoo)
    if as_json:
        console.print_json(json.dumps(found))
    else:
        _show(found)
    if not found["ok"]:
        raise typer.Exit(1)


def _is_merge_file(data: Any) -> bool:
    return isinstance(data, dict) and "merge_method" in data and "kind" not in data


def _local(file: Path, out: Path) -> dict[str, Any]:
    from glue.merging.preflight import preflight_file

    return preflight_file(file, out.resolve()).model_dump(mode="json")


def _remote(data: Any, file: Path, zoo: Path | None) -> dict[str, Any]:
    body = with_absolute_paths(data, file.parent)
    if zoo is not None:
        body = body | {"zoo": zoo_request(zoo)}
    with Client.from_environment() as client:
        return client.preflight(body)


def _show(found: dict[str, Any]) -> None:
    if found["models"]:
        console.print(_models(found["models"]))
    if found["stages"]:
        console.print()
        console.print(_stages(found["stages"]))
        _totals(found)
    for kind, style in (("warning", "yellow"), ("problem", "red")):
        for each in found[f"{kind}s"]:
            place = f" {each['pointer']}:" if each["pointer"] else ""
            line = f"{place} {each['detail']}" + (f" ({each['fix']})" if each["fix"] else "")
            console.print(f"[{style}]{kind}:[/]{escape(line)}", highlight=False)
    count = len(found["problems"])
    last = Text("it can be submitted", "green") if found["ok"] else Text(f"{count} to mend before it runs", "bold red")
    console.print(last)


def _models(models: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("model", "group", "parameters", "size", "dtype", "context", "licence", "to fetch"):
        numeric = column in ("group", "parameters", "size", "context", "to fetch")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for each in models:
        table.add_row(
            each["name"],
            str(each["group"] or "-"),
            f"{each['parameters'] / 1e9:.2f} B" if each["parameters"] >= 1e7 else f"{each['parameters']:,}",
            size(each["bytes"]),
            each["dtype"],
            str(each["context"] or "-"),
            each["licence"] or "-",
            size(each["download_bytes"]) if each["download_bytes"] else "-",
        )
    return table


def _stages(stages: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stage", "class", "units", "about", "memory", "device"):
        table.add_column(column, justify="left" if column in ("stage", "class") else "right", no_wrap=True)
    for each in stages:
        device = size(each["device_bytes"]) if each["device_bytes"] else "-"
        table.add_row(
            each["stage"],
            each["worker_class"],
            str(each["units"]),
            duration(each["seconds"]),
            size(each["host_bytes"]),
            device,
        )
    return table


def _totals(found: dict[str, Any]) -> None:
    lines = [f"about {duration(found['seconds'])} in all: an estimate, nothing was measured"]
    if found["disk"]:
        disk = found["disk"]
        most = f" (at most {size(disk['at_most_bytes'])})" if disk["at_most_bytes"] > disk["needed_bytes"] else ""
        free = f", {size(disk['free_bytes'])} are free" if disk["free_bytes"] is not None else ""
        lines.append(f"disk: {size(disk['needed_bytes'])}{most}{free}")
    if found["download_bytes"]:
        lines.append(f"to fetch from the Hub: {size(found['download_bytes'])}")
    for line in (*lines, *(f"assumed: {each}" for each in found["assumptions"])):
        console.print(line, highlight=False, style="dim" if line.startswith("assumed") else "")


def size(count: int) -> str:
    """Bytes for people, such as 13.5 GB."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def duration(seconds: float) -> str:
    """A span for people, such as 2.5 h."""
    for span, name in _SPANS:
        if seconds >= span:
            return f"{seconds / span:.1f} {name}"
    return f"{seconds:.0f} s" if seconds >= 1 else "below 1 s"
