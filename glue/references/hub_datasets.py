"""Data sets of the Hub: pinned to a commit at submission, their files downloaded by the jobs that read them.

Files lie in `datasets/<org>--<name>/<commit>/` below the cache, by their own names, as links to blobs that were checked
by digest. They are small beside models and are never removed to make room.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue.references.data_files import DataNeed, split_files
from glue.references.hub_access import HubAccess, HubUnavailableError, Say, is_offline, patiently, refusals_of
from glue.references.hub_download import download_files
from glue.references.hub_files import RemoteModel, read_range, remote_files, write_json
from glue.references.hub_names import HubReference
from glue.specs.errors import InvalidInputError, Problem

_LISTING = ".files.json"


@dataclass(frozen=True)
class FoundData:
    """Where the splits of a need lie, or will: a folder, and paths below it."""

    repo: str
    commit: str
    folder: Path
    splits: Mapping[str, tuple[str, ...]]


class DataSets:
    """Looks data sets up, each repository and revision once."""

    def __init__(self, access: HubAccess) -> None:
        self._access = access
        self._known: dict[tuple[str, str], tuple[RemoteModel, Mapping[str, Any]]] = {}

    def find(self, need: DataNeed) -> FoundData:
        """The commit and the files of what a task reads. Offline, what an earlier call found is used.

        Raises:
            InvalidInputError: there is no such repository, revision, configuration or split; the token may not read
                it; or it is not here and the service is offline.
            HubUnavailableError: the Hub does not answer.
        """
        key = (need.repo, need.revision)
        if key not in self._known:
            reference = HubReference(*key)
            self._known[key] = _remembered(reference, self._access) if is_offline() else self._asked(reference)
        listing, card = self._known[key]
        splits = split_files(listing.files, card, need)
        if not is_offline():
            # A gated repository shows its names to everybody; whoever reads it has to have the right.
            first = listing.files[next(iter(splits.values()))[0]]
            read_range(listing, first, 0, min(1, first.size), self._access)
        return FoundData(need.repo, listing.commit, data_folder(need.repo, listing.commit, self._access), splits)

    def _asked(self, reference: HubReference) -> tuple[RemoteModel, Mapping[str, Any]]:
        listing, card = _look_up(reference, self._access)
        folder = data_folder(reference.repo, listing.commit, self._access)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _LISTING, {"listing": listing.as_json(), "configs": card.get("configs")})
        revisions = _revisions(reference, self._access)
        revisions.parent.mkdir(parents=True, exist_ok=True)
        known = _read(revisions) | {reference.revision: listing.commit, listing.commit: listing.commit}
        write_json(revisions, known)
        return listing, card


def download_data(repo: str, commit: str, paths: Iterable[str], access: HubAccess, say: Say) -> Path:
    """The folder of a data set at a commit, with these files of it; those that are there are not fetched again.

    Raises:
        InvalidInputError: the token may not read it.
        DiskFullError: it has no room beside the models that other jobs need.
        HubUnavailableError: the Hub does not answer, or what arrives is damaged, time and again.
    """
    folder = data_folder(repo, commit, access)
    missing = [path for path in paths if not (folder / path).is_file()]
    if not missing:
        return folder
    if is_offline():
        raise HubUnavailableError(f"{repo} was not downloaded yet, and this service is offline (HF_HUB_OFFLINE)")
    listing, _ = _look_up(HubReference(repo, commit), access)
    download_files(listing, [listing.files[path] for path in missing], folder, access, say)
    return folder


def data_folder(repo: str, commit: str, access: HubAccess) -> Path:
    """Where a data set lies, or will."""
    return access.cache / "datasets" / HubReference(repo).folder_name / commit


def _look_up(reference: HubReference, access: HubAccess) -> tuple[RemoteModel, Mapping[str, Any]]:
    """The commit that a reference stands at now, its files by path, and its card; one request."""

    def ask() -> Any:
        with refusals_of(reference.repo):
            return access.api().dataset_info(reference.repo, revision=reference.revision, files_metadata=True)

    info = patiently(ask)
    files = {file.path: file for file in remote_files(info.siblings) if _is_below(file.path)}
    card = info.card_data.to_dict() if info.card_data is not None else {}
    return RemoteModel(reference.repo, str(info.sha), None, files, kind="dataset"), card


def _is_below(path: str) -> bool:
    # Whoever answers shall not choose a place outside the data set's folder.
    return not path.startswith("/") and ".." not in path.split("/")


def _remembered(reference: HubReference, access: HubAccess) -> tuple[RemoteModel, Mapping[str, Any]]:
    commit = _read(_revisions(reference, access)).get(reference.revision)
    kept = _read(data_folder(reference.repo, commit, access) / _LISTING) if commit else {}
    if not kept:
        detail = f"the data set {reference.repo}@{reference.revision} is not here, and the service is offline"
        fix = "submit it once while the service reaches the Hub, or take local tasks"
        raise InvalidInputError(f"{detail}; {fix}", [Problem("", "offline", detail, fix)])
    return RemoteModel.from_json(kept["listing"]), {"configs": kept["configs"]}


def _revisions(reference: HubReference, access: HubAccess) -> Path:
    # By token, so that offline nobody sees what only somebody else may see.
    return access.cache / "revisions" / access.identity / "datasets" / f"{reference.folder_name}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found
