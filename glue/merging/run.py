"""A merge file run from end to end: models opened, result built beside its place, moved there when it is whole."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from glue.checkpoints.adapter import open_checkpoint
from glue.checkpoints.disk import TOKEN, give_name, work_folder
from glue.checkpoints.writer import Progress
from glue.merging.engine import write_recipe
from glue.merging.merged_checkpoint import Locate
from glue.merging.mergekit_plan import names_of, recipe_of_file, stored_dtype, unused_parameters
from glue.merging.mergekit_yaml import MergekitFile, ModelReference, read_mergekit_file
from glue.references.folders import folder_commit
from glue.specs.digests import digest_of
from glue.specs.errors import InvalidInputError, Problem


def merge_file(
    path: Path,
    out: Path,
    *,
    shard_bytes: int,
    seed: int | None,
    progress: Progress,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Run the merge file at `path` into the folder `out`, which must not exist yet.

    A run that was killed goes on at its first missing shard when it is started again with the same inputs.
    `check` looks at the whole result before it gets its name.

    Raises:
        InvalidInputError: the file is wrong, a model is not a folder, or `out` exists.
        IncompatibleModelsError: the models do not fit together, or the result would not be finite.
        DiskFullError: there is no space; `out` is not there.
    """
    file = read_mergekit_file(path)
    if out.exists():
        raise _invalid("/out", f"{out} exists already", "remove it, or choose another folder")

    def locate(reference: ModelReference) -> tuple[Path, ...]:
        return model_folders(reference, path.parent)

    work = work_folder(out, inputs_digest(file, locate, shard_bytes, seed))
    write_merge(file, locate, work, shard_bytes=shard_bytes, seed=seed, token=TOKEN, progress=progress)
    if check is not None:
        check(work)
    give_name(work, out)


def write_merge(
    file: MergekitFile,
    locate: Locate,
    out: Path,
    *,
    shard_bytes: int,
    seed: int | None,
    token: int,
    progress: Progress,
) -> None:
    """Build a merge in the folder `out` itself, where an earlier run may have left shards.

    `locate` finds the folders of what the file names. The folder is verified and complete with its manifest.

    Raises:
        InvalidInputError: a folder, a method or a parameter is wrong.
        IncompatibleModelsError: the models do not fit together, or the result would not be finite.
        DiskFullError: there is no space; nothing that looks finished is left.
    """
    defaults = {} if seed is None else {"seed": seed}
    with ExitStack() as stack:
        names = names_of(file)
        checkpoints = {names[each]: stack.enter_context(open_checkpoint(locate(each))) for each in names}
        recipe = recipe_of_file(file, checkpoints, defaults)
        dtype = stored_dtype(file, checkpoints)
        write_recipe(recipe, checkpoints, out, dtype=dtype, shard_bytes=shard_bytes, token=token, progress=progress)


def inputs_digest(file: MergekitFile, locate: Locate, shard_bytes: int, seed: int | None) -> str:
    """What two runs that write the same bytes have in common.

    Raises:
        InvalidInputError: a model is not a folder.
    """
    commits = [[folder_commit(folder) for folder in locate(each)] for each in file.references()]
    return digest_of({"file": file.as_json(), "models": commits, "shard_bytes": shard_bytes, "seed": seed})


def model_folders(reference: ModelReference, relative_to: Path) -> tuple[Path, ...]:
    """The folder of a model that a merge file names and that of its adapter, if it has one; relative paths are
    taken from `relative_to`, the merge file's own folder.

    Raises:
        InvalidInputError: there is no such folder.
    """
    named = (reference.model,) if reference.lora is None else (reference.model, reference.lora)
    folders = tuple((relative_to / name).resolve() for name in named)
    for name, folder in zip(named, folders, strict=True):
        if not folder.is_dir():
            fix = "give a folder; a model of the Hub has to be downloaded first"
            raise _invalid("/models", f"{name} is not a folder", fix)
    return folders


def _invalid(pointer: str, detail: str, fix: str) -> InvalidInputError:
    return InvalidInputError(f"{detail}; {fix}", [Problem(pointer, "merge_file", detail, fix)])


def notes_on(path: Path) -> tuple[str, ...]:
    """What somebody who runs this merge file should know, though nothing is wrong with it.

    Raises:
        InvalidInputError: the file is wrong.
    """
    file = read_mergekit_file(path)
    unused = ", ".join(unused_parameters(file))
    return (f"{file.merge_method} does not know these parameters, they change nothing: {unused}",) if unused else ()
