"""`python -m glue.sandbox.launch LANGUAGE PROGRAM FOLDER LIMITS`: put up the walls, then become the program."""

import json
import os
import sys
from pathlib import Path

from glue.sandbox.programs import LANGUAGES, Limits, interpreter, interpreter_options
from glue.sandbox.walls import bound, die_with_parent, enclose


def main() -> None:
    """Replace this process by the interpreter, inside the walls, in the program's own folder."""
    language, program, folder, given = sys.argv[1:]
    if language not in LANGUAGES:
        sys.exit(f"no language {language}")
    limits = Limits(**json.loads(given))
    found = interpreter(language)
    die_with_parent()
    os.chdir(folder)
    bound(language, limits)
    enclose([found.parent.parent], [Path(program)], Path(folder))
    os.execve(found, [found.name, *interpreter_options(language, limits), program], {})  # noqa: S606  (no shell)


if __name__ == "__main__":
    main()
