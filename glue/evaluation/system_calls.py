"""The system calls that a sandboxed program may not make, as a seccomp filter; knows nothing of programs.

Namespaces already hide network, files and processes. The filter takes away the ways to start a process (a
fork bomb ends at its first fork) and those through which kernels have been attacked. Threads stay.
"""

import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSYS, EPERM

from glue.specs.errors import EvaluationError

# Audit number of the architecture, then the numbers of its calls (linux/arch/*/…/unistd).
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
FORBIDDEN = {
    # fork, vfork, socket, socketpair, ptrace, mount, umount2, pivot_root, chroot, keyctl, add_key, request_key,
    # unshare, setns, perf_event_open, process_vm_readv, process_vm_writev, kexec_load, memfd_create, bpf,
    # userfaultfd, io_uring_setup
    "x86_64": (
        *(57, 58, 41, 53, 101, 165, 166, 155, 161, 250, 248, 249),
        *(272, 308, 298, 310, 311, 246, 319, 321, 323, 425),
    ),
    # The same; this architecture has neither fork nor vfork.
    "aarch64": (
        *(198, 199, 117, 40, 39, 41, 51, 219, 217, 218),
        *(97, 268, 241, 270, 271, 104, 279, 280, 282, 425),
    ),
}
OTHER_ABI = 0x40000000
CLONE_THREAD = 0x00010000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16


@contextmanager
def filter_program() -> Iterator[int]:
    """A file descriptor of the filter, as bubblewrap takes it.

    Raises:
        EvaluationError: this processor's calls are not known here.
    """
    handle = os.memfd_create("filter")
    try:
        os.write(handle, _program(platform.machine()))
        os.lseek(handle, 0, os.SEEK_SET)
        yield handle
    finally:
        os.close(handle)


def _program(machine: str) -> bytes:
    if machine not in ARCHITECTURES:
        raise EvaluationError(f"the sandbox for code tasks knows no system calls of {machine}; score them elsewhere")
    steps = [
        _step(LOAD, ARCHITECTURE),
        _step(EQUAL, ARCHITECTURES[machine], 1, 0),
        _step(RETURN, KILL),
        _step(LOAD, NUMBER),
        _step(AT_LEAST, OTHER_ABI, 0, 1),
        _step(RETURN, KILL),
        # Libraries fall back to clone, whose flags a filter can read.
        _step(EQUAL, CLONE3, 0, 1),
        _step(RETURN, ERROR | ENOSYS),
    ]
    for number in FORBIDDEN[machine]:
        steps += [_step(EQUAL, number, 0, 1), _step(RETURN, ERROR | EPERM)]
    steps += [
        _step(EQUAL, CLONE[machine], 1, 0),
        _step(RETURN, ALLOW),
        _step(LOAD, FIRST_ARGUMENT),
        _step(ANY_BIT, CLONE_THREAD, 0, 1),
        _step(RETURN, ALLOW),
        _step(RETURN, ERROR | EPERM),
    ]
    return b"".join(steps)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
