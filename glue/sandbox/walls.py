"""Walls that a process without privileges puts around itself: limits, Landlock, seccomp. Linux only.

For containers that may not make user namespaces. The kernel keeps all of them over `execve`.
"""

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from glue.sandbox.programs import Language, Limits
from glue.sandbox.system_calls import seccomp_program

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ASK_VERSION, PATH_BENEATH = 1, 1
SET_PARENT_DEATH_SIGNAL, SET_DUMPABLE, SET_SECCOMP, SECCOMP_FILTER, SET_NO_NEW_PRIVILEGES = 1, 4, 22, 2, 38

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REGULAR, MAKE_LINK = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
# How many rights on files each version of Landlock knows.
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
NEWEST_RIGHTS = 16
TCP = 0b11
SIGNALS_AND_SOCKETS = 0b11
NETWORK_SINCE, SCOPES_SINCE = 4, 6
READ = READ_FILE | READ_DIR
RUN = READ | EXECUTE
OWN = READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REGULAR | MAKE_LINK
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
DEVICES = {"/dev/null": READ_FILE | WRITE_FILE, "/dev/zero": READ_FILE, "/dev/urandom": READ_FILE}
SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")

_library = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """The version of Landlock that this kernel has and lets us use; 0 for none."""
    return max(0, int(_library.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ASK_VERSION)))


def hide_own_process() -> None:
    """Keep this process's memory and environment from others of the same user."""
    _checked(_library.prctl(SET_DUMPABLE, 0, 0, 0, 0))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    _checked(_library.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0))


def bound(language: Language, limits: Limits) -> None:
    """Limit memory, processor time, files and dumps.

    The number of a user's processes is counted over the whole node, so that it is no limit: the filter is.
    """
    # V8 reserves far more addresses than it uses, so that its data are limited instead.
    memory = resource.RLIMIT_AS if language == "python" else resource.RLIMIT_DATA
    seconds = int(limits.seconds) + 1
    for kind, value in (
        (memory, limits.memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, limits.folder_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(kind, (value, value))


def enclose(runtime: Sequence[Path], readable: Sequence[Path], own: Path) -> None:
    """Leave this process no file but the system's libraries, what it is given, and its own folder; no network, no
    signal to others, no new process.

    Raises:
        OSError: the kernel does not have the walls, or does not let us use them.
    """
    _checked(_library.prctl(SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _close_files(runtime, readable, own)
    _filter_calls()


def _close_files(runtime: Sequence[Path], readable: Sequence[Path], own: Path) -> None:
    version = landlock_version()
    known = (1 << RIGHTS.get(version, NEWEST_RIGHTS)) - 1
    handled = [known]
    if version >= NETWORK_SINCE:
        handled.append(TCP)
    if version >= SCOPES_SINCE:
        handled.append(SIGNALS_AND_SOCKETS)
    attributes = struct.pack(f"={len(handled)}Q", *handled)
    ruleset = _checked(_library.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    rights = {Path(name): RUN for name in SYSTEM}
    rights |= dict.fromkeys(runtime, RUN) | dict.fromkeys(readable, READ)
    rights |= {Path(name): allowed for name, allowed in DEVICES.items()} | {own: OWN}
    for path, allowed in rights.items():
        with suppress(FileNotFoundError):
            _allow(ruleset, path, allowed & known)
    _checked(_library.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _allow(ruleset: int, path: Path, allowed: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not path.is_dir():
            allowed &= FILE_RIGHTS
        rule = struct.pack("=Qi", allowed, handle)
        _checked(_library.syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0))
    finally:
        os.close(handle)


def _filter_calls() -> None:
    program = seccomp_program(beside_others=True)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _checked(_library.prctl(SET_SECCOMP, SECCOMP_FILTER, ctypes.c_char_p(header), 0, 0))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
