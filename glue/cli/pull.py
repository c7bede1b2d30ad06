"""Fetch a finished artifact, verify every file against the manifest, and only then give it its name."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from glue.checkpoints.manifest import file_sha256
from glue.cli.client import Client, ServiceError


def pull(client: Client, artifact: dict[str, Any], folder: Path, console: Console) -> None:
    """Write the artifact's files into `folder`, which must not exist or be empty.

    Raises:
        ServiceError: the folder is taken, or a file does not match its manifest.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ServiceError(f"{folder} is not empty.", "Name a new folder.")
    partial = folder.with_name(folder.name + ".partial")
    files = artifact["manifest"]["files"]
    _keep_only({partial / file["path"] for file in files}, partial)
    columns = (
        TextColumn("pulling"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("", total=sum(file["size"] for file in files))
        for file in files:
            _fetch(client, artifact["id"], file, partial, lambda size: bars.advance(task, size))
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


def _keep_only(wanted: set[Path], partial: Path) -> None:
    """Remove what an interrupted pull of another artifact left under the same name."""
    for path in partial.rglob("*"):
        if path not in wanted and not path.is_dir():
            path.unlink()


def _fetch(client: Client, artifact_id: str, file: dict[str, Any], root: Path, progress: Any) -> None:
    target = (root / file["path"]).resolve()
    if not target.is_relative_to(root.resolve()):
        raise ServiceError(f"the manifest names a path outside the artifact: {file['path']}")
    if target.is_file() and file_sha256(target) == file["sha256"]:
        progress(file["size"])
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        for chunk in client.artifact_file(artifact_id, file["path"]):
            out.write(chunk)
            progress(len(chunk))
    if file_sha256(target) != file["sha256"]:
        target.unlink()
        raise ServiceError(f"{file['path']} does not match its manifest.", "Run the same command again.")
