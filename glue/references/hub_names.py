"""How a zoo names a model on the Hub: `hf://org/name@revision`, or `org/name` with or without a revision."""

import re
from dataclasses import dataclass
from pathlib import Path

from glue.specs.errors import InvalidInputError, Problem

SCHEME = "hf://"
DEFAULT_REVISION = "main"

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_FORM = re.compile(rf"(?P<repo>{_PART}/{_PART})(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")


@dataclass(frozen=True)
class HubReference:
    """A model repository at a branch, a tag or a commit."""

    repo: str
    revision: str = DEFAULT_REVISION

    @property
    def folder_name(self) -> str:
        """The repository as one name of a file."""
        return self.repo.replace("/", "--")


def is_hub_source(source: str) -> bool:
    """Whether a zoo's source means the Hub: the scheme says so, or it is of the form `org/name`."""
    return source.startswith(SCHEME) or _FORM.fullmatch(source) is not None


def split_adapter(source: str) -> tuple[str, str | None]:
    """The model and the adapter on it where a source is `model+adapter`, each a folder or a repository."""
    model, plus, adapter = source.rpartition("+")
    # A folder's own name may have a plus in it.
    if model and plus and (adapter.startswith("/") or is_hub_source(adapter)) and not Path(source).is_dir():
        return model, adapter
    return source, None


def hub_reference(source: str) -> HubReference:
    """The repository and revision that a source names.

    Raises:
        InvalidInputError: it is not of the form.
    """
    found = _FORM.fullmatch(source.removeprefix(SCHEME))
    if found is None or any(bad in found["repo"] for bad in ("..", "--")) or ".." in (found["revision"] or ""):
        detail = f"{source[:200]!r} does not name a repository of the Hub"
        fix = "write it as org/name, org/name@revision or hf://org/name@revision"
        raise InvalidInputError(f"{detail}; {fix}", [Problem("", "no_hub_name", detail, fix)])
    return HubReference(found["repo"], found["revision"] or DEFAULT_REVISION)
