"""`glue hub-token …` and pulling from the Hub itself."""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from glue.cli.client import Client, ServiceError

console = Console()

hub_token_app = typer.Typer(no_args_is_help=True, help="Your token for the Hub, kept by the service, encrypted.")


def set_token(
    token: Annotated[
        str, typer.Option(envvar="HF_TOKEN", prompt="Token of the Hub", hide_input=True, help="Better not typed here.")
    ],
) -> None:
    """Hand the service a token: it reads what you may read, and publishes in your name when a job says so."""
    with Client.from_environment() as client:
        kept = client.put_hub_token(token)
    console.print(f"kept a token of {kept['account']} with the role {kept['role']}", highlight=False)


def show_token() -> None:
    """Whose token the service keeps, and what it may do."""
    with Client.from_environment() as client:
        kept = client.hub_token()
    console.print(f"a token of {kept['account']} with the role {kept['role']}", highlight=False)


def forget_token() -> None:
    """Have the service forget your token."""
    with Client.from_environment() as client:
        client.delete_hub_token()
    console.print("forgotten")


def pull_from_hub(source: str, folder: Path) -> None:
    """Fetch a published model into a new folder with your own token, and verify it against its manifest.

    Raises:
        ServiceError: the folder is taken, there is no such model, or a file does not match its manifest.
    """
    # The client of the Hub takes half a second to load, which the other commands need not wait for.
    from huggingface_hub import snapshot_download

    from glue.checkpoints.manifest import MANIFEST_FILE, DamagedFolderError, read_manifest, verify_manifest
    from glue.references.hub_access import refusals_of
    from glue.references.hub_names import hub_reference
    from glue.specs.errors import GlueError

    if folder.exists() and any(folder.iterdir()):
        raise ServiceError(f"{folder} is not empty.", "Name a new folder.")
    partial = folder.with_name(folder.name + ".partial")
    try:
        reference = hub_reference(source)
        with refusals_of(reference.repo):
            snapshot_download(reference.repo, revision=reference.revision, local_dir=partial)
        for leftover in (".cache", ".gitattributes"):
            shutil.rmtree(partial / leftover, ignore_errors=True)
            (partial / leftover).unlink(missing_ok=True)
        if (partial / MANIFEST_FILE).is_file():
            verify_manifest(partial, read_manifest(partial))
        else:
            console.print("[yellow]this repository has no manifest of ours: nothing to verify against[/]")
    except DamagedFolderError as error:
        shutil.rmtree(partial)
        raise ServiceError(f"{source} does not match its manifest: {error.detail}.", "Run the same again.") from None
    except GlueError as error:
        raise ServiceError(error.detail) from None
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)
