"""What came from the Hub, for workers that share no disk: through object storage, into each worker's own cache.

Only units of class hub speak to the Hub, so that no other worker needs a way to it or an owner's token. What they
download is stored beside the artifacts; whoever needs it fetches it from there, within its disk budget.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from glue.artifacts.storage import ArtifactStorage, Check
from glue.references.hub_access import HubAccess, endpoint_of_environment
from glue.references.hub_cache import COMPLETE, locked, make_room
from glue.references.hub_datasets import data_folder
from glue.references.hub_download import model_folder
from glue.references.hub_names import HubReference
from glue.specs.digests import digest_of
from glue.specs.plan import ADVANCE, UnitRequest

DOWNLOAD, DATA, INSPECT = "resolve.download", "resolve.data", "resolve.inspect"


@dataclass(frozen=True)
class Shared:
    """One thing that travels: a model's whole folder, or one file (`path`) of a data set's."""

    folder: Path
    path: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it is whole on this disk."""
        return (self.folder / (self.path or COMPLETE)).is_file()

    def location(self, cache: Path) -> str:
        """Where it lies on object storage."""
        place = f"hub/{self.folder.relative_to(cache).as_posix()}"
        return f"{place}/{digest_of(self.path)}" if self.path else place


class HubModels:
    """The Hub's cache of this worker, and the object storage behind it if there is a `url`."""

    def __init__(self, cache: Path, budget: int, url: str) -> None:
        self._cache, self._budget = cache, budget
        self._storage = ArtifactStorage(url) if url else None

    def missing(self, unit: UnitRequest) -> list[Shared]:
        """What the unit reads, or is to download, and this disk lacks; nothing where workers share a disk."""
        if self._storage is None or unit.kind == ADVANCE:
            return []
        return [each for each in dict.fromkeys(self._named_by(unit)) if not each.is_here]

    def bring(self, wanted: Sequence[Shared], kept: frozenset[str], say: Callable[[str], None], check: Check) -> None:
        """Have these on disk as far as they are stored; models that no job needs make room for them.

        Raises:
            StorageError: what is stored is damaged.
            DiskFullError: they have no room beside the models that other jobs need.
        """
        for each in wanted:
            if self._storage is not None and self._storage.has(each.location(self._cache)):
                say(f"{each.folder.parent.name}: from object storage")
                self._bring(self._storage, each, kept, check)

    def send(self, unit: UnitRequest, check: Check) -> None:
        """Store what the unit downloaded, before anybody is told that it is there."""
        if self._storage is None or unit.kind not in (DOWNLOAD, DATA):
            return
        for each in self._named_by(unit):
            paths = [each.path] if each.path else None
            self._storage.share(each.folder, each.location(self._cache), paths, check)

    def _bring(self, storage: ArtifactStorage, wanted: Shared, kept: frozenset[str], check: Check) -> None:
        began, location = time(), wanted.location(self._cache)
        access = HubAccess(endpoint_of_environment(), self._cache, self._budget, None, kept)
        # Slots of one machine share its cache; the second finds what the first fetched.
        with locked(self._cache, f"fetch.{digest_of(location)}"):
            if wanted.is_here:
                return
            wanted.folder.mkdir(parents=True, exist_ok=True)
            make_room(access, storage.shared_bytes(location, wanted.folder), began)
            # Its mark comes last: without it a folder counts as no model.
            storage.fetch_shared(location, wanted.folder, last=COMPLETE, check=check)

    def _named_by(self, unit: UnitRequest) -> Iterator[Shared]:
        access = HubAccess(endpoint_of_environment(), self._cache)
        payload, repo, commit = unit.payload, unit.payload.get("repo"), unit.payload.get("commit")
        if unit.kind == DOWNLOAD:
            yield Shared(model_folder(HubReference(str(repo), str(commit)), str(commit), access))
        elif unit.kind == DATA:
            folder = data_folder(str(repo), str(commit), access)
            yield from (Shared(folder, path) for path in payload["paths"])
        else:
            yield from self._models(unit.spec, payload.get("name") if unit.kind == INSPECT else None)
            yield from self._data(unit.spec)

    def _models(self, spec: dict[str, Any], name: str | None) -> Iterator[Shared]:
        for model in spec.get("models") or ():
            if name in (None, model["name"]):
                folders = (Path(part["path"]) for part in (model, model.get("adapter")) if part)
                yield from (Shared(folder) for folder in folders if folder.is_relative_to(self._cache))

    def _data(self, spec: dict[str, Any]) -> Iterator[Shared]:
        tasks: Iterable[dict[str, Any]] = (task for suite in (spec.get("suite_data") or {}).values() for task in suite)
        for task in tasks:
            folder = Path(task["folder"])
            if folder.is_relative_to(self._cache):
                yield from (Shared(folder, path) for split in task["splits"].values() for path in split)
