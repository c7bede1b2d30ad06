"""Answers of the service as tables for a terminal of 80 columns."""

from typing import Any

from rich.table import Table
from rich.text import Text

STATUS_STYLES = {
    "queued": "dim",
    "running": "cyan",
    "paused": "magenta",
    "cancelling": "yellow",
    "cancelled": "yellow",
    "succeeded": "green",
    "failed": "red",
}


def jobs_table(jobs: list[dict[str, Any]]) -> Table:
    """One line a job, newest first."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("job", "name", "status", "done", "created"):
        table.add_column(column, no_wrap=True)
    for job in jobs:
        created = str(job["created_at"])[:19].replace("T", " ")
        percent = f"{job['progress']['percent']:.0f} %"
        table.add_row(job["id"], job["name"] or "", _status(job["status"]), percent, created)
    return table


def report_table(report: dict[str, Any]) -> Table:
    """The report's models: accuracy in percent with its standard error, on items that the search never saw."""
    tasks = [task["task"] for row in report["models"][:1] for task in row["report"]["tasks"]]
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    table.add_column("model", overflow="fold")
    for task in tasks:
        table.add_column(_short(task), justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    for row in report["models"]:
        scores = [_percent(task) for task in row["report"]["tasks"]] + [_percent(row["report"])]
        table.add_row(_marked(row, report), *scores, style=_row_style(row, report))
    return table


def report_summary(report: dict[str, Any]) -> list[Text]:
    """The lines under the table: the gain, the recommendation, the warnings."""
    gain, stderr = report["gain_over_best_single"], report["gain_over_best_single_stderr"]
    lines = []
    if gain is not None:
        gained = (f"{gain:+.2f} points", "bold green" if gain > 2 * stderr else "bold yellow")
        rest = f" (± {stderr:.2f}) of mean accuracy over the best single model, {report['best_single']}"
        lines.append(Text.assemble(gained, rest))
    if report["recommended"] is not None:
        lines.append(Text(f"recommended: {report['recommended']}"))
    return lines + [Text(f"warning: {warning}", style="yellow") for warning in report["warnings"]]


def _status(status: str) -> Text:
    return Text(status, style=STATUS_STYLES.get(status, ""))


def _percent(score: dict[str, Any]) -> str:
    return f"{100 * score['mean']:.1f} ± {100 * score['stderr']:.1f}"


def _marked(row: dict[str, Any], report: dict[str, Any]) -> str:
    notes = []
    if row["name"] == report["best_single"]:
        notes.append("best single")
    if row["name"] == report["artifact"]:
        notes.append("the artifact")
    return str(row["name"]) + (f" ({', '.join(notes)})" if notes else "")


def _row_style(row: dict[str, Any], report: dict[str, Any]) -> str:
    if row["name"] == report["artifact"]:
        return "bold green"
    return "bold" if row["name"] == report["best_single"] else ""


def _short(task: str) -> str:
    return task.removesuffix("_report")
