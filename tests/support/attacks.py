"""Programs that do what they should, and attacks, each of which is bounded, should a wall be missing."""

from glue.sandbox.programs import Verdict

PASSED, FAILED = Verdict(True, "passed"), Verdict(False, "failed")

PYTHON = [
    ("assert sum([1, 2]) == 3", PASSED),
    ("import math, re, json, collections, threading\nassert math.isqrt(9) == 3", PASSED),
    ("import threading\nt = threading.Thread(target=print)\nt.start(); t.join()", PASSED),
    ("open('note', 'w').write('x')\nassert open('note').read() == 'x'", PASSED),
    ("assert 1 == 2", FAILED),
    ("def f(:", FAILED),
    ("import sys; sys.exit(0)", FAILED),
    ("import os; os._exit(0)", FAILED),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", FAILED),
]
JAVASCRIPT = [
    ("const assert = require('assert'); assert.strictEqual([1, 2].length, 2)", PASSED),
    ("throw new Error('no')", FAILED),
    ("process.exit(0)", FAILED),
    ("require('child_process').execSync('true')", FAILED),
    ("require('fs').writeFileSync('/usr/trace', 'x')", FAILED),
    ("const kept = []; for (let n = 0; n < 40; n++) kept.push(Buffer.alloc(50e6, 1))", FAILED),
    ("if (Object.keys(process.env).some(key => key !== 'PWD')) throw new Error('environment')", PASSED),
]

REFUSED = [
    "import os\nfor _ in range(20): os.fork()",
    "import subprocess\nsubprocess.run(['/usr/bin/true'])",
    "import multiprocessing as m\np = m.get_context('fork').Process(target=print)\np.start()",
    "import socket\nsocket.socket()",
    "import socket\nsocket.create_connection(('127.0.0.1', 80), timeout=1)",
    "import socket\nsocket.socketpair()",
    "open('/usr/trace', 'w')",
    "open('/trace', 'w')",
    "open('/dev/shm/trace', 'w')",
    "open(__file__, 'a')",
    "open('/etc/passwd')",
    "open('/proc/1/environ')",
    "open('/proc/self/environ')",
    "open('/proc/sys/kernel/hostname', 'w')",
    "kept = [bytearray(50 * 1024**2) for _ in range(40)]",
    "open('fill', 'wb').write(bytes(40 * 1024**2))",
    "import os\nos.kill(2**22 - 1, 9)",
    "import os, ctypes\nlibrary = ctypes.CDLL(None, use_errno=True)\n"
    "if library.unshare(0x10000000): raise OSError(ctypes.get_errno())",
]


def blocked(attack: str) -> str:
    """A program that reaches its end only where the attack raises."""
    body = "\n".join(f"    {line}" for line in attack.splitlines())
    return f"try:\n{body}\nexcept (OSError, MemoryError):\n    pass\nelse:\n    raise SystemExit('it worked')"
