"""The text that a mixture's routers learn from, of a job: files inside the roots, or data sets of the Hub. No torch."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glue.mixture.mix_yaml import MixFile
from glue.references.data_files import DataNeed
from glue.references.findings import Findings
from glue.references.folders import resolve_folder
from glue.references.hub_datasets import DataSets
from glue.references.hub_names import SCHEME, hub_reference
from glue.specs.build import TrainingText
from glue.specs.errors import InvalidInputError, Problem
from glue.specs.suite import TaskData

# The name under which a job fetches the data sets that routers learn from.
ROUTER = "router"


def find_text(
    file: MixFile, pointer: str, roots: Sequence[Path], findings: Findings, data: DataSets | None
) -> tuple[tuple[TrainingText, ...], tuple[TaskData, ...]]:
    """Every file of text at its commit, in the file's order, and the data sets that have to be fetched for them.

    What is wrong goes to `findings`. Without `data` no data set of the Hub can be used.

    Raises:
        HubUnavailableError: the Hub does not answer.
    """
    texts: list[TrainingText] = []
    fetched: list[TaskData] = []
    train = file.router.train
    for index, source in enumerate(train.data if train else ()):
        with findings.at(f"{pointer}/router/train/data/{index}", ROUTER):
            if not source.startswith(SCHEME):
                texts.append(_local(source, roots))
                continue
            assert train is not None
            fetched.append(_remote(source, train.split, train.subset, data))
            paths = (path for split in fetched[-1].splits.values() for path in split)
            texts += [_of_data_set(fetched[-1], path) for path in paths]
    return tuple(texts), tuple(fetched)


def check_text(texts: Sequence[TrainingText]) -> None:
    """That local files are what they were at submission; those of the Hub were checked as they arrived.

    Raises:
        InvalidInputError: one is not.
    """
    for text in texts:
        path = Path(text.path)
        if text.repo is None and (not path.is_file() or _sha256(path) != text.commit):
            detail = f"the training text {path.name} changed since the job was submitted"
            raise InvalidInputError(
                detail, [Problem("/config/router/train/data", "text_changed", detail, "submit the job again")]
            )


def named_texts(config: dict[str, Any], texts: Sequence[TrainingText]) -> dict[str, Any]:
    """A config whose training text is named as everybody can read it: repositories, and files without their folders."""
    if not texts:
        return config
    names = [f"{SCHEME}{text.repo}@{text.commit}" if text.repo else Path(text.path).name for text in texts]
    router = config["router"]
    return config | {"router": router | {"train": router["train"] | {"data": list(dict.fromkeys(names))}}}


def _local(source: str, roots: Sequence[Path]) -> TrainingText:
    path = resolve_folder(str(Path(source).parent), roots) / Path(source).name
    if not path.is_file() or path.is_symlink():
        detail = f"{source[:200]} is not a file"
        problem = Problem(
            "", "no_text", detail, f"give a .jsonl or .parquet file inside the roots, or {SCHEME}org/name"
        )
        raise InvalidInputError(detail, [problem])
    return TrainingText(path=str(path), commit=_sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remote(source: str, split: str, subset: str | None, data: DataSets | None) -> TaskData:
    reference = hub_reference(source)
    if data is None:
        detail = "data sets of the Hub cannot be used here"
        raise InvalidInputError(detail, [Problem("", "no_hub", detail, "give local files")])
    found = data.find(DataNeed(reference.repo, reference.revision, subset, (split,)))
    splits = {name: tuple(paths) for name, paths in found.splits.items()}
    return TaskData(task=ROUTER, repo=found.repo, commit=found.commit, folder=str(found.folder), splits=splits)


def _of_data_set(data: TaskData, path: str) -> TrainingText:
    return TrainingText(path=str(Path(data.folder) / path), commit=data.commit, repo=data.repo)
