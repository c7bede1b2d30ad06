"""A stack run from end to end: models opened, result built beside its place, moved there when it is whole."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from glue.checkpoints.disk import TOKEN, give_name, work_folder
from glue.checkpoints.writer import Progress
from glue.merging.engine import write_recipe
from glue.merging.merged_checkpoint import Locate, open_source
from glue.merging.mergekit_yaml import ModelReference
from glue.merging.run import model_folders
from glue.references.folders import folder_commit
from glue.specs.digests import digest_of
from glue.specs.errors import InvalidInputError, Problem
from glue.stacking.layout import Place
from glue.stacking.plan import keys_of, recipe_of_stack, stored_dtype
from glue.stacking.stack_yaml import Stack, read_stack_file, sources_of


def stack_file(
    path: Path,
    out: Path,
    *,
    shard_bytes: int,
    progress: Progress,
    check: Callable[[Path], None] | None = None,
) -> tuple[str, ...]:
    """Run the stack file at `path` into the folder `out`, which must not exist yet; gives notes for the user.

    A run that was killed goes on at its first missing shard when it is started again with the same inputs.
    `check` looks at the whole result before it gets its name.

    Raises:
        InvalidInputError: the file is wrong, a model is not a folder, or `out` exists.
        IncompatibleModelsError: the models do not fit together, or the result would not be finite.
        DiskFullError: there is no space; `out` is not there.
    """
    stack = read_stack_file(path)
    if out.exists():
        detail, fix = f"{out} exists already", "remove it, or choose another folder"
        raise InvalidInputError(f"{detail}; {fix}", [Problem("/out", "stack_file", detail, fix)])

    def locate(reference: ModelReference) -> tuple[Path, ...]:
        return model_folders(reference, path.parent)

    work = work_folder(out, inputs_digest(stack, locate, shard_bytes))
    notes = write_stack(stack, locate, work, shard_bytes=shard_bytes, token=TOKEN, progress=progress)
    if check is not None:
        check(work)
    give_name(work, out)
    return notes


def write_stack(
    stack: Stack, locate: Locate, out: Path, *, shard_bytes: int, token: int, progress: Progress
) -> tuple[str, ...]:
    """Build a stack in the folder `out` itself, where an earlier run may have left shards; gives notes for the user.

    `locate` finds the folders of what the stack names. The folder is verified and complete with its manifest.

    Raises:
        InvalidInputError: a folder or a number is wrong.
        IncompatibleModelsError: the models do not fit together, or the result would not be finite.
        DiskFullError: there is no space; nothing that looks finished is left.
    """
    with ExitStack() as resources:
        sources = dict(zip(keys_of(stack), sources_of(stack), strict=True))
        checkpoints = {key: resources.enter_context(open_source(each, locate)) for key, each in sources.items()}
        recipe, places = recipe_of_stack(stack, checkpoints)
        dtype = stored_dtype(stack, next(iter(checkpoints.values())))
        write_recipe(recipe, checkpoints, out, dtype=dtype, shard_bytes=shard_bytes, token=token, progress=progress)
    return _notes(places)


def inputs_digest(stack: Stack, locate: Locate, shard_bytes: int) -> str:
    """What two runs that write the same bytes have in common.

    Raises:
        InvalidInputError: a model is not a folder.
    """
    references = dict.fromkeys(each for source in sources_of(stack) for each in source.references())
    commits = [[folder_commit(folder) for folder in locate(each)] for each in references]
    return digest_of({"stack": stack.as_json(), "models": commits, "shard_bytes": shard_bytes})


def _notes(places: Sequence[Place]) -> tuple[str, ...]:
    silent = ", ".join(str(index) for index, place in enumerate(places) if place.silent)
    return (f"these layers are new and change nothing until they are trained: {silent}",) if silent else ()
