"""Where the text that routers learn from lies: files beside a mixture file, or a data set of the Hub. Reads no row."""

import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants

from glue.references.data_files import DataNeed
from glue.references.hub_access import HubAccess, Say, endpoint_of_environment
from glue.references.hub_datasets import DataSets, download_data
from glue.references.hub_names import SCHEME, hub_reference
from glue.specs.errors import InvalidInputError, Problem

POINTER = "/router/train/data"


def find_texts(
    sources: Sequence[str], split: str, subset: str | None, relative_to: Path, access: HubAccess, say: Say
) -> tuple[Path, ...]:
    """The files that `sources` stand for: paths from `relative_to`, and the files of a split of `hf://org/name@revision`.

    Data sets are downloaded once into the access's cache, each at the commit that its revision has now; scripts of
    data sets never run.

    Raises:
        InvalidInputError: there is no such file, data set, revision, subset or split, or the token may not read it.
        HubUnavailableError: the Hub does not answer.
    """
    found: list[Path] = []
    for index, source in enumerate(sources):
        if source.startswith(SCHEME):
            found += _of_hub(source, split, subset, access, say)
            continue
        path = (relative_to / source).resolve()
        if not path.is_file():
            detail = f"{source} is not a file"
            fix = f"give a .jsonl or .parquet file, from the mixture file's own folder, or {SCHEME}org/name"
            raise InvalidInputError(f"{detail}; {fix}", [Problem(f"{POINTER}/{index}", "no_text", detail, fix)])
        found.append(path)
    return tuple(found)


def access_of_environment() -> HubAccess:
    """The Hub as this user sees it: HF_ENDPOINT, HF_TOKEN, and a cache of our own below HF_HOME."""
    cache = Path(constants.HF_HOME) / "model-glue"
    return HubAccess(endpoint_of_environment(), cache, token=os.environ.get("HF_TOKEN"))


def _of_hub(source: str, split: str, subset: str | None, access: HubAccess, say: Say) -> list[Path]:
    reference = hub_reference(source)
    need = DataNeed(reference.repo, reference.revision, subset, (split,))
    data = DataSets(access).find(need)
    paths = data.splits[split]
    folder = download_data(data.repo, data.commit, paths, access, say)
    return [folder / path for path in paths]
