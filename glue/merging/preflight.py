"""What a merge file would meet, from headers and configs alone. Writes nothing, reads no weight."""

from contextlib import ExitStack
from pathlib import Path

from glue.checkpoints.adapter import open_checkpoint
from glue.merging.mergekit_plan import names_of, recipe_of_file
from glue.merging.mergekit_yaml import MergekitFile, ModelReference, read_mergekit_file
from glue.merging.run import model_folders, notes_on
from glue.merging.surveys import check_surveys
from glue.references.findings import Findings
from glue.references.models import FoundModel, find_folder
from glue.references.preflight import free_bytes, preflight_merge
from glue.specs.errors import GlueError, InvalidInputError, Problem
from glue.specs.preflight import Finding, Preflight


def preflight_file(path: Path, beside: Path) -> Preflight:
    """Every problem of a merge file with its models, what is worth knowing, and what the merge may take.

    `beside` is a folder of the disk that the result is meant for.

    Raises:
        InvalidInputError: the file cannot be read as a merge file.
    """
    file, findings = read_mergekit_file(path), Findings()
    folders = _folders(file, path.parent, findings)
    models = _models(folders, findings)
    written = 0
    if not findings.problems:
        with findings.at("", path.name):
            written = _written(file, folders)
    notes = [Finding(pointer="", code="note", detail=note, fix="remove them") for note in notes_on(path)]
    return preflight_merge(models, findings.problems, notes, written, free_bytes(beside))


def _folders(file: MergekitFile, parent: Path, findings: Findings) -> dict[ModelReference, tuple[Path, ...]]:
    found = {}
    for reference in file.references():
        with findings.at("", reference.model):
            found[reference] = model_folders(reference, parent)
    return found


def _models(folders: dict[ModelReference, tuple[Path, ...]], findings: Findings) -> list[FoundModel]:
    by_folder = {each[0]: reference.model for reference, each in folders.items()}
    found = [find_folder(name, "/models", folder, findings) for folder, name in by_folder.items()]
    return [model for model in found if model is not None]


def _written(file: MergekitFile, folders: dict[ModelReference, tuple[Path, ...]]) -> int:
    """The bytes of the result, from its whole plan.

    Raises:
        InvalidInputError: a method or parameter is wrong.
        IncompatibleModelsError: the models do not fit together.
    """
    with ExitStack() as stack:
        names = names_of(file)
        try:
            checkpoints = {names[each]: stack.enter_context(open_checkpoint(folders[each])) for each in names}
            recipe = recipe_of_file(file, checkpoints)
            check_surveys(recipe, checkpoints)
        except GlueError as error:
            # What comes without a problem of its own would be lost among those that have one.
            problem = Problem("", error.reason, error.detail, "see docs/merging.md for what can be merged")
            raise error if error.problems else InvalidInputError(error.detail, [problem]) from None
        return sum(tensor.bytes for tensor in recipe.tensors)
