"""The system calls that a sandboxed program may not make, as a seccomp filter; knows nothing of programs.

The filter takes away the ways to start a process (a fork bomb ends at its first fork), sockets, and those calls
through which kernels have been attacked. Threads stay. Where no namespace hides other processes, the wider filter
also takes away signals, other processes' settings and System V's shared objects.
"""

import os
import platform
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import ENOSYS, EPERM

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
# Where other processes are in sight.
FORBIDDEN_BESIDE_OTHERS = {
    # kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal, pidfd_open, pidfd_getfd,
    # process_madvise, setpriority, ioprio_set, sched_setparam, sched_setscheduler, sched_setaffinity, sched_setattr,
    # shmget, msgget, semget, mq_open, fchmod, fchmodat, fchmodat2, fchown, fchownat, setxattr, lsetxattr, fsetxattr,
    # setxattrat, utimensat; here also chmod, chown, lchown, utime, utimes, futimesat
    "x86_64": (
        *(62, 200, 234, 129, 297, 424, 434, 438),
        *(440, 141, 251, 142, 144, 203, 314),
        *(29, 68, 64, 240),
        *(91, 268, 452, 93, 260, 188, 189, 190, 463, 280, 90, 92, 94, 132, 235, 261),
    ),
    "aarch64": (
        *(129, 130, 131, 138, 240, 424, 434, 438),
        *(440, 140, 30, 118, 119, 122, 274),
        *(194, 186, 190, 180),
        *(52, 53, 452, 55, 54, 5, 6, 7, 463, 88),
    ),
}
# The first argument is the process whose limits change; 0 is the caller.
PRLIMIT = {"x86_64": 302, "aarch64": 261}
# What a call may not be asked for: to have the kernel send signals (F_SETOWN, F_SETOWN_EX), and to hide from the
# sandbox (PR_SET_DUMPABLE). The number of the argument, and its values.
FCNTL, FCNTL_FORBIDDEN = {"x86_64": 72, "aarch64": 25}, (1, (8, 15))
PRCTL, PRCTL_FORBIDDEN = {"x86_64": 157, "aarch64": 167}, (0, (4,))
OTHER_ABI = 0x40000000
CLONE_THREAD = 0x00010000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT, ARGUMENT_BYTES = 0, 4, 16, 8


class UnknownProcessorError(Exception):
    """The numbers of this processor's system calls are not known here."""


@contextmanager
def filter_program() -> Iterator[int]:
    """A file descriptor of the filter, as bubblewrap takes it.

    Raises:
        UnknownProcessorError: this processor's calls are not known here.
    """
    handle = os.memfd_create("filter")
    try:
        os.write(handle, seccomp_program())
        os.lseek(handle, 0, os.SEEK_SET)
        yield handle
    finally:
        os.close(handle)


def seccomp_program(*, beside_others: bool = False) -> bytes:
    """The filter; the wider one with `beside_others`.

    Raises:
        UnknownProcessorError: this processor's calls are not known here.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise UnknownProcessorError(
            f"the sandbox for code tasks knows no system calls of {machine}; score them elsewhere"
        )
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
    others = FORBIDDEN_BESIDE_OTHERS[machine] if beside_others else ()
    for number in (*FORBIDDEN[machine], *others):
        steps += [_step(EQUAL, number, 0, 1), _step(RETURN, ERROR | EPERM)]
    if beside_others:
        steps += [
            _step(EQUAL, PRLIMIT[machine], 0, 4),
            _step(LOAD, FIRST_ARGUMENT),
            _step(EQUAL, 0, 0, 1),
            _step(RETURN, ALLOW),
            _step(RETURN, ERROR | EPERM),
            *_unless_asked_for(FCNTL[machine], *FCNTL_FORBIDDEN),
            *_unless_asked_for(PRCTL[machine], *PRCTL_FORBIDDEN),
        ]
    steps += [
        _step(EQUAL, CLONE[machine], 1, 0),
        _step(RETURN, ALLOW),
        _step(LOAD, FIRST_ARGUMENT),
        _step(ANY_BIT, CLONE_THREAD, 0, 1),
        _step(RETURN, ALLOW),
        _step(RETURN, ERROR | EPERM),
    ]
    return b"".join(steps)


def _unless_asked_for(call: int, argument: int, forbidden: Sequence[int]) -> list[bytes]:
    """The call is allowed but for these values of one argument."""
    checks = [step for value in forbidden for step in (_step(EQUAL, value, 0, 1), _step(RETURN, ERROR | EPERM))]
    body = [_step(LOAD, FIRST_ARGUMENT + argument * ARGUMENT_BYTES), *checks, _step(RETURN, ALLOW)]
    return [_step(EQUAL, call, 0, len(body)), *body]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
