"""Evaluators that try to do harm, each with what must become of it.

Three kinds of source. `attempt`: lines that must raise `OSError`; reaching their end scores 1.0, and a score of 1.0 is
an escape. `state`: an expression that is true when an earlier row can be seen, after lines that leave a trace; no row
may score 1.0. `whole`: a source of its own with the statuses that are right for it. Every function gets the row `WORLD`
describes: where the host's decoys are.
"""

# ruff: noqa: E501 - a hostile source is easier to read on its own line than broken
from __future__ import annotations

import platform
import textwrap
from dataclasses import dataclass

from evaluators.protocol import Status

OK, ERROR, TIMEOUT, OOM, PIDS = Status.OK, Status.ERROR, Status.TIMEOUT, Status.OOM, Status.PIDS
CRASH, NO_RESULT, BAD, LOAD = Status.CRASH, Status.NO_RESULT, Status.BAD_RESULT, Status.LOAD_ERROR
FLOOD, RESULT_FLOOD = Status.OUTPUT_FLOOD, Status.RESULT_FLOOD

_PRELUDE = """\
import ctypes, errno, os, signal, socket, struct, sys, threading, time
def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
"""


@dataclass(frozen=True)
class Case:
    """One hostile evaluator. expected: the statuses that are right; an ok must score 0.0 (or `score`)."""

    group: str
    name: str
    source: str
    expected: tuple[Status, ...]
    rows: int = 1
    score: float = 0.0


CASES: list[Case] = []


def attempt(group: str, name: str, body: str, *, also: tuple[Status, ...] = ()) -> None:
    """Lines that must be refused."""
    lines = textwrap.indent(textwrap.dedent(body).strip("\n"), " " * 8)
    source = (
        f"{_PRELUDE}def f(row):\n    try:\n{lines}\n    except OSError as error:\n        return 0.0\n    return 1.0\n"
    )
    CASES.append(Case(group, name, source, (OK, *also)))


def state(name: str, seen: str, trace: str) -> None:
    """Two rows of one program; neither may see the other."""
    body = textwrap.indent(textwrap.dedent(trace).strip("\n"), "    ")
    source = f"{_PRELUDE}def f(row):\n    seen = bool({seen})\n{body}\n    return float(seen)\n"
    CASES.append(Case("state", name, source, (OK, ERROR), rows=3))  # refused a trace is contained as well


def whole(group: str, name: str, source: str, *expected: Status, score: float = 0.0) -> None:
    """A source of its own."""
    CASES.append(Case(group, name, _PRELUDE + textwrap.dedent(source).strip("\n") + "\n", expected, score=score))


# resources
R = "resources"
whole(R, "spin", "def f(row):\n    while True: pass", TIMEOUT)
whole(R, "sleep", "def f(row):\n    time.sleep(60)", TIMEOUT)
whole(R, "spin-at-import", "while True: pass\ndef f(row): return 1.0", TIMEOUT)
whole(R, "ignores-signals", """
    def f(row):
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: pass""", TIMEOUT)  # fmt: skip
whole(
    R,
    "catastrophic-regex",
    "import re\ndef f(row):\n    return float(bool(re.match('(a+)+$', 'a' * 40 + 'b')))",
    TIMEOUT,
)
whole(R, "huge-power", "def f(row):\n    return len(str(9 ** 9 ** 9))", TIMEOUT, OOM, ERROR)
whole(R, "one-huge-block", "def f(row):\n    return len(bytearray(1 << 40))", OOM)
whole(R, "growing-list", "def f(row):\n    x = []\n    while True: x.append(bytearray(1 << 20))", OOM, TIMEOUT)
whole(R, "catches-memory-error", """
    def f(row):
        held = []
        while True:
            try:
                while True: held.append(bytearray(1 << 22))
            except MemoryError: pass""", TIMEOUT)  # fmt: skip
whole(R, "many-children-with-memory", """
    def f(row):
        for _ in range(12):
            if os.fork() == 0:
                held = bytearray(100 << 20)
                time.sleep(60)
        time.sleep(60)""", OOM, TIMEOUT)  # fmt: skip
whole(
    R,
    "mmap-anonymous",
    "import mmap\ndef f(row):\n    held = [mmap.mmap(-1, 64 << 20) for _ in range(100)]\n    return 1.0",
    OOM,
    ERROR,
)
whole(R, "fork-bomb", "def f(row):\n    while True: os.fork()", PIDS)
whole(R, "silent-fork-bomb", """
    def f(row):
        while True:
            try: os.fork()
            except OSError: pass""", TIMEOUT, OOM)  # fmt: skip
whole(R, "shell-fork-bomb", "def f(row):\n    os.system('f() { f | f & }; f; sleep 60')\n    return 0.0", OK, TIMEOUT)
whole(
    R,
    "thread-bomb",
    "def f(row):\n    while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    PIDS,
    OOM,
)
whole(R, "deep-recursion", "def f(row):\n    return f(row)", ERROR)
whole(
    R,
    "c-stack-overflow",
    "def f(row):\n    sys.setrecursionlimit(1 << 30)\n    g = lambda x: [x(x)].sort(key=x)\n    return sorted([g], key=lambda h: h(h))",
    CRASH,
    ERROR,
    OOM,
    TIMEOUT,
)
whole(R, "out-of-descriptors", "def f(row):\n    held = [open('/dev/null') for _ in range(500)]", ERROR)
whole(R, "fills-scratch", """
    def f(row):
        for n in range(100): open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))""", ERROR)  # fmt: skip
whole(R, "fills-inodes", "def f(row):\n    for n in range(5000): open(f'/tmp/{n}', 'w').close()", ERROR)
whole(R, "huge-sparse-file", "def f(row):\n    os.truncate(os.open('/tmp/x', os.O_CREAT | os.O_RDWR), 1 << 40)", ERROR)
whole(R, "deep-folders", """
    def f(row):
        for n in range(900):
            os.mkdir('d' * 200); os.chdir('d' * 200)
        return 0.0""", OK)  # fmt: skip
whole(R, "locked-folders", """
    def f(row):
        for n in range(20):
            os.mkdir('d'); open('d/x', 'w').close(); os.chdir('d')
        for n in range(20):
            os.chmod('.', 0); os.chdir('..')
        return 0.0""", OK, ERROR)  # fmt: skip
whole(
    R,
    "odd-names",
    "def f(row):\n    for b in range(1, 256):\n        if b not in (46, 47): os.makedirs(b'd' + bytes([b]) + b'/' + bytes([b, b]))\n    return 0.0",
    OK,
)
whole(R, "prints-a-flood", "def f(row):\n    while True: print('x' * 1000)", FLOOD)
whole(R, "prints-a-flood-of-errors", "def f(row):\n    while True: os.write(2, b'x' * 4096)", FLOOD)
whole(R, "children-print-a-flood", "def f(row):\n    os.system('yes')\n    return 1.0", FLOOD)
whole(R, "returns-a-flood", "def f(row):\n    return {'score': 1.0, 'reason': 'x' * (1 << 20)}", RESULT_FLOOD)
whole(
    R,
    "returns-many-metrics",
    "def f(row):\n    return 1.0, {str(n): 1.0 for n in range(100_000)}",
    BAD,
    RESULT_FLOOD,
    TIMEOUT,
)
whole(
    R,
    "decompresses-a-bomb",
    "import zlib\ndef f(row):\n    x = zlib.compress(bytes(1 << 24), 9)\n    return len(b''.join(zlib.decompress(x) for _ in range(1000)))",
    OOM,
    TIMEOUT,
)
whole(
    R,
    "compile-bomb",
    "def f(row):\n    return 1.0\n" + "x = " + "(" * 150 + "0" + ")" * 150 + "\n" + "y = " + "-" * 90_000 + "1",
    LOAD,
)
whole(
    R,
    "folding-bomb",
    "def f(row):\n    return float(len((((((('x' * 4096),) * 4096),) * 4096),) * 4096))",
    OK,
    LOAD,
    OOM,
    score=4096.0,
)
attempt(
    R,
    "raises-its-limits",
    "import resource\nfor one in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU):\n    try: resource.setrlimit(one, (1 << 40, 1 << 40))\n    except ValueError: continue\n    raise SystemExit('raised')\nraise OSError",
)
attempt(R, "limits-the-supervisor", "import resource\nresource.prlimit(1, resource.RLIMIT_AS, (1 << 20, 1 << 20))")
attempt(R, "higher-priority", "os.nice(-5)")
attempt(R, "slows-the-supervisor", "os.setpriority(os.PRIO_PROCESS, 1, 19)")
attempt(R, "pins-the-supervisor", "os.sched_setaffinity(1, {0})")
attempt(R, "large-pipe", "import fcntl\nfcntl.fcntl(os.pipe()[0], 1031, 1 << 20)")

# files and secrets
F = "files"
attempt(F, "planted-secret", "open(row['secret']).read()")
attempt(F, "secret-by-listing", "os.listdir(os.path.dirname(row['secret']))")
attempt(F, "secret-by-symlink", "os.symlink(row['secret'], '/tmp/l')\nopen('/tmp/l').read()")
attempt(F, "secret-by-hard-link", "os.link(row['secret'], '/tmp/l')")
attempt(
    F,
    "secret-by-exec",
    "import subprocess\ntext = subprocess.run(['cat', row['secret']], capture_output=True).stdout\nif not text: raise OSError",
)
attempt(F, "shadow", "open('/etc/shadow').read()")
attempt(F, "real-passwd", "text = open('/etc/passwd').read()\nif 'root' not in text: raise OSError")
attempt(F, "proc-environ", "open('/proc/1/environ', 'rb').read()")
attempt(F, "proc-self-root", "os.listdir('/proc/self/root')")
attempt(F, "proc-of-host", "open(f\"/proc/{row['pid']}/cmdline\").read()")
attempt(F, "sys", "os.listdir('/sys/class')")
attempt(
    F,
    "environment-secret",
    "if 'EVALUATOR_PLANTED' not in os.environ and not any('planted' in v for v in os.environ.values()): raise OSError",
)
attempt(F, "home-folders", "if not [n for n in os.listdir('/home')]: raise OSError")
attempt(F, "write-usr", "open('/usr/lib/x', 'w')")
attempt(F, "write-root", "open('/x', 'w')")
attempt(F, "write-program", "open(__file__, 'a')")
attempt(F, "write-supervisor", "open('/sandbox/evaluators/sandbox/child.py', 'a')")
attempt(F, "write-library", "import json\nopen(json.__file__, 'a')")
attempt(F, "chmod-root", "os.chmod('/usr', 0o777)")
attempt(F, "remount", "call(165, b'none', b'/', None, 32 | 4096, None)")
attempt(
    F,
    "exec-from-scratch",
    "open('/tmp/x', 'w').write('#!/bin/sh\\nexit 0')\nos.chmod('/tmp/x', 0o700)\nos.execv('/tmp/x', ['x'])",
)
attempt(
    F,
    "map-code-from-scratch",
    "import mmap\nopen('/tmp/x', 'wb').write(bytes(4096))\nmmap.mmap(os.open('/tmp/x', os.O_RDWR), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
)
attempt(F, "device-node", "os.mknod('/tmp/d', 0o600 | 0o020000, os.makedev(1, 1))")
attempt(F, "block-device", "os.open('/dev/vda', os.O_RDONLY)")
attempt(F, "kernel-memory", "os.open('/dev/mem', os.O_RDONLY)")
attempt(F, "kernel-log", "os.open('/dev/kmsg', os.O_RDONLY)")
attempt(F, "dot-dot", "open('../' * 40 + row['secret'].lstrip('/')).read()")
attempt(F, "chroot", "os.mkdir('r'); os.chroot('r')")
attempt(
    F,
    "setuid-program",
    "import subprocess\nif subprocess.run(['su', '-c', 'true'], capture_output=True, stdin=-3).returncode: raise OSError",
)
attempt(F, "become-root", "os.setuid(0)")
attempt(F, "open-by-handle", "call(304, -100, bytes(128), 0)")
attempt(F, "mark-outside", "open(row['marker'], 'w').write('here')")

# network exits
N = "network"
attempt(N, "tcp", "socket.create_connection(('127.0.0.1', row['port']), 1)")
attempt(N, "tcp6", "socket.create_connection(('::1', row['port']), 1)")
attempt(N, "udp", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', row['port']))")
attempt(N, "listen", "socket.socket().bind(('127.0.0.1', 0))")
attempt(N, "unix-path", "socket.socket(socket.AF_UNIX).connect('/run/docker.sock')")
attempt(N, "unix-abstract", "socket.socket(socket.AF_UNIX).connect('\\0' + row['abstract'])")
attempt(N, "vsock", "socket.socket(40, socket.SOCK_STREAM)")
attempt(N, "netlink", "socket.socket(16, socket.SOCK_RAW)")
attempt(N, "packet", "socket.socket(17, socket.SOCK_RAW)")
attempt(N, "raw", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)")
attempt(N, "kernel-crypto", "socket.socket(38, socket.SOCK_SEQPACKET)")
attempt(N, "bluetooth", "socket.socket(31, socket.SOCK_RAW)")
attempt(N, "vsock-pair", "socket.socketpair(40, socket.SOCK_STREAM)")
attempt(N, "name", "socket.getaddrinfo('example.com', 80)")
attempt(N, "http", "import urllib.request\nurllib.request.urlopen(f\"http://127.0.0.1:{row['port']}/\", timeout=1)")
attempt(
    N,
    "shell",
    "import subprocess\nif subprocess.run(['bash', '-c', f\"echo x > /dev/tcp/127.0.0.1/{row['port']}\"], capture_output=True).returncode: raise OSError",
)
attempt(
    N,
    "inherited-descriptors",
    """
    for number in range(3, 64):
        try: socket.socket(fileno=number)
        except OSError: continue
        raise SystemExit('a socket')
    raise OSError""",
)

# kernel surface (x86_64 numbers)
K = "kernel"
_CALLS = {
    "unshare-user": "272, 0x10000000", "unshare-net": "272, 0x40000000", "setns": "308, 0, 0", "ptrace": "101, 16, 1, 0, 0",
    "process-vm-readv": "310, 1, None, 0, None, 0, 0", "process-vm-writev": "311, 1, None, 0, None, 0, 0",
    "bpf": "321, 0, bytes(128), 128", "perf-event": "298, bytes(128), 0, -1, -1, 0", "userfaultfd": "323, 1",
    "io-uring": "425, 8, bytes(256)", "keyctl": "250, 0, -3, 1", "add-key": "248, b'user', b'k', b'v', 1, -3",
    "request-key": "249, b'user', b'k', None, -3", "memfd": "319, b'm', 0", "memfd-secret": "447, 0",
    "personality": "135, 0x0040000", "mount": "165, b'none', b'/tmp', b'tmpfs', 0, None", "umount": "166, b'/tmp', 2",
    "pivot-root": "155, b'/tmp', b'/tmp'", "open-tree": "428, -100, b'/', 1", "fsopen": "430, b'tmpfs', 0",
    "mount-setattr": "442, -100, b'/', 0, bytes(32), 32", "init-module": "175, b'', 0, b''", "kexec": "246, 0, 0, None, 0",
    "reboot": "169, 0xfee1dead, 672274793, 0", "swapon": "167, b'/tmp/x', 0", "syslog": "103, 3, bytes(16), 16",
    "acct": "163, b'/tmp/x'", "settimeofday": "164, bytes(16), None", "sethostname": "170, b'x', 1", "iopl": "172, 3",
    "modify-ldt": "154, 0, bytes(16), 16", "kcmp": "312, 1, 1, 0, 0, 0", "pidfd-getfd": "438, 0, 0, 0",
    "fanotify": "300, 0, 0", "inotify": "294, 0", "sysv-shm": "29, 0x1234, 4096, 0o1600", "sysv-msg": "68, 0x1234, 0o1600",
    "sysv-sem": "64, 0x1234, 1, 0o1600", "posix-queue": "240, b'q', 66, 0o600, None", "seccomp": "317, 0, 0, None",
    "landlock": "444, bytes(16), 16, 0", "quotactl": "179, 0, None, 0, None", "name-to-handle": "303, -100, b'/', bytes(64), bytes(8), 0",
    "splice": "275, 0, None, 1, None, 1, 0", "vmsplice": "278, 1, None, 0, 0", "ioprio": "251, 1, 1, 0", "unknown": "463",
    "beyond-known": "5000", "sched-fifo": "144, 0, 1, bytes(8)", "process-madvise": "440, 0, None, 0, 0, 0", "sync": "162",
    "set-mempolicy": "238, 0, None, 0", "migrate-pages": "256, 1, 0, None, None", "clone3": "435, bytes(88), 88",
}  # fmt: skip
if platform.machine() == "x86_64":
    for _name, _arguments in _CALLS.items():
        attempt(K, _name, f"call({_arguments})")
    attempt(K, "clone-new-user", "call(56, 0x10000000 | 17, None, None, None, 0)")
    whole(K, "x32-call", "def f(row):\n    call(0x40000000 | 39)\n    return 1.0", CRASH)
    whole(K, "32-bit-call", """
        import mmap
        def f(row):
            code = mmap.mmap(-1, 4096, prot=7)
            code.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, 20 (getpid of 32-bit); int 0x80; ret
            ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
            return 1.0""", CRASH)  # fmt: skip
attempt(K, "flock", "import fcntl\nfcntl.flock(os.open('/usr/bin', os.O_RDONLY), fcntl.LOCK_SH)")
attempt(K, "file-lock", "import fcntl\nfcntl.lockf(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_SH)")
attempt(K, "lease", "import fcntl\nfcntl.fcntl(os.open(os.__file__, os.O_RDONLY), 1024, 0)")
attempt(K, "type-into-terminal", "import fcntl\nfcntl.ioctl(0, 0x5412, b'x')")
attempt(K, "terminal", "os.open('/dev/tty', os.O_RDWR)")
attempt(K, "new-terminal", "os.openpty()")
attempt(K, "owner-of-signals", "import fcntl\nfcntl.fcntl(0, 8, 1)")
whole(K, "null-pointer", "def f(row):\n    ctypes.string_at(0)", CRASH)
whole(K, "aborts", "def f(row):\n    os.abort()", CRASH)

# state between rows
state("global", "'kept' in globals()", "globals()['kept'] = 1")
state("default-argument", "getattr(f, 'kept', None)", "f.kept = 1")
state(
    "builtins",
    "hasattr(__builtins__ if not isinstance(__builtins__, dict) else sys, 'kept')",
    "import builtins\nbuiltins.kept = sys.kept = 1",
)
state("module", "'kept' in sys.modules", "sys.modules['kept'] = sys")
state("patched-library", "getattr(struct, 'kept', None)", "struct.kept = 1")
state("scratch-file", "os.path.exists('/tmp/kept')", "open('/tmp/kept', 'w').close()")
state("scratch-listing", "os.listdir('/tmp')", "os.makedirs('/tmp/a/b/c')")
state("scratch-times", "os.stat('/tmp').st_mtime == 7", "os.utime('/tmp', (7, 7))")
state("scratch-mode", "os.stat('/tmp').st_mode & 0o777 != 0o700", "os.chmod('/tmp', 0o755)")
state("deep-scratch", "os.listdir('/tmp')", "for n in range(900):\n    os.mkdir('d'); os.chdir('d')")
state("shared-memory", "os.listdir('/dev/shm')", "open('/dev/shm/kept', 'w').close()")
state("environment", "'KEPT' in os.environ", "os.environ['KEPT'] = '1'")
state(
    "background-process",
    "os.path.exists('/tmp/late')",
    """
    if os.fork() == 0:
        os.setsid()
        for n in range(100000):
            open('/tmp/late', 'w').close()
        os._exit(0)""",
)
state(
    "daemon-thread",
    "threading.active_count() > 1",
    "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
)
state(
    "signal-handler",
    "signal.getsignal(signal.SIGUSR1) not in (signal.SIG_DFL, None)",
    "signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
)
state("standard-input", "os.get_blocking(0) is False", "os.set_blocking(1, False); os.set_blocking(2, False)")
state("blocking-output", "os.get_blocking(1) is False", "os.set_blocking(1, False); os.set_blocking(2, False)")
state("limits", "__import__('resource').getrlimit(7)[0] == 9", "import resource\nresource.setrlimit(7, (9, 9))")
state("umask", "os.umask(0o077) != 0o077", "os.umask(0)")
state("niceness", "os.nice(0) != 0", "os.nice(5)")
state("process-group", "os.getpgid(1) == os.getpid()", "os.setsid()")
state(
    "memory-of-the-supervisor",
    "any(b'needle-' + b'in-the-row' in bytes(str(o), 'utf-8') for o in __import__('gc').get_objects() if isinstance(o, (bytes, str)) and len(o) < 99 and o != row.get('needle'))",
    "pass",
)

# result tampering
T = "result"
_EACH = "for number in range({}, 64):\n        try: os.write(number, {})\n        except OSError: pass\n"
whole(
    T,
    "forges-on-every-descriptor",
    "def f(row):\n    " + _EACH.format(3, "b'{\"score\": 1.0}\\n'") + "    return 0.0",
    BAD,
)
whole(
    T,
    "forges-and-exits",
    "def f(row):\n    " + _EACH.format(1, "b'A0 ok {\"score\": 1.0}\\n end\\n'") + "    os._exit(0)",
    NO_RESULT,
)
whole(T, "forges-on-stdout", "def f(row):\n    print('{\"score\": 1.0}')\n    return 0.0", OK)
whole(T, "closes-everything", "def f(row):\n    os.closerange(0, 64)\n    return 1.0", NO_RESULT)
whole(T, "exits", "def f(row):\n    os._exit(0)", NO_RESULT)
whole(T, "exits-with-status", "def f(row):\n    os._exit(3)", NO_RESULT)
whole(T, "becomes-true", "def f(row):\n    os.execv('/bin/true', ['true'])", NO_RESULT)
whole(T, "exits-at-import", "os._exit(0)\ndef f(row): return 1.0", NO_RESULT)
whole(T, "sys-exit", "def f(row):\n    sys.exit(0)", ERROR)
whole(T, "kills-itself", "def f(row):\n    os.kill(os.getpid(), 9)", CRASH)
whole(T, "nan", "def f(row):\n    return float('nan')", BAD)
whole(T, "infinity", "def f(row):\n    return {'score': float('inf')}", BAD)
whole(T, "huge-integer", "def f(row):\n    return 10 ** 400", BAD)
whole(T, "bool", "def f(row):\n    return True", BAD)
whole(T, "text", "def f(row):\n    return '1.0'", BAD)
whole(T, "nothing", "def f(row):\n    return None", BAD)
whole(T, "no-score", "def f(row):\n    return {'reward': 1.0}", BAD)
whole(T, "deep", "def f(row):\n    x = 1.0\n    for _ in range(100): x = {'score': x}\n    return x", BAD)
whole(T, "itself", "def f(row):\n    x = {}\n    x['score'] = x\n    return x", BAD)
whole(T, "nan-metric", "def f(row):\n    return 1.0, {'m': float('nan')}", BAD)
whole(T, "surrogate", "def f(row):\n    return {'score': 1.0, 'reason': '\\ud800'}", BAD)
whole(
    T,
    "odd-float",
    "class F(float):\n    def __repr__(self): return '1.0}, \"score\": 9'\ndef f(row):\n    return F(0.0)",
    OK,
)
whole(
    T,
    "raising-property",
    "class R:\n    @property\n    def score(self): raise KeyError('no')\ndef f(row):\n    return R()",
    ERROR,
)
whole(
    T,
    "patched-json",
    "import json\ndef f(row):\n    json.dumps = lambda *a, **k: '{\"score\": NaN}'\n    return 0.0",
    BAD,
)
whole(
    T,
    "patched-json-twice",
    'import json\ndef f(row):\n    json.dumps = lambda *a, **k: \'{"score": 0, "score": 1}\'\n    return 0.0',
    BAD,
)
whole(T, "patched-write", "def f(row):\n    os.write = lambda fd, data: len(data)\n    return 1.0", NO_RESULT)
whole(
    T,
    "broken-exception",
    "class E(Exception):\n    def __str__(self): raise RuntimeError\ndef f(row):\n    raise E",
    ERROR,
)
whole(T, "huge-exception", "def f(row):\n    raise ValueError('x' * 10_000_000)", ERROR)
whole(T, "base-exception", "class E(BaseException): pass\ndef f(row):\n    raise E('x')", ERROR)
whole(
    T,
    "no-builtins",
    "import builtins\ndef f(row):\n    builtins.len = builtins.isinstance = None\n    return 1.0",
    ERROR,
    BAD,
    NO_RESULT,
)
whole(T, "answers-twice", "def f(row):\n    return float(os.fork() == 0)", OK)
whole(
    T,
    "child-answers-late",
    "def f(row):\n    if os.fork() == 0:\n        time.sleep(0.05)\n        return 1.0\n    return 0.0",
    OK,
)
whole(T, "not-python", "def f(row) return 1.0", LOAD)
whole(T, "no-entry", "def g(row): return 1.0", LOAD)
whole(T, "nul-bytes", "x = 1 \0\ndef f(row): return 1.0", LOAD)

# process tricks
P = "processes"
whole(P, "outlives", """
    def f(row):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
        return 0.0""", OK)  # fmt: skip
whole(P, "stops-itself", "def f(row):\n    os.kill(os.getpid(), signal.SIGSTOP)\n    return 1.0", TIMEOUT)
whole(P, "kills-all", "def f(row):\n    try: os.kill(-1, 9)\n    except OSError: pass\n    return 0.0", OK, CRASH)
whole(
    P,
    "kills-the-supervisor",
    "def f(row):\n    for n in (2, 9, 15, 19, 11):\n        try: os.kill(1, n)\n        except OSError: pass\n    return 0.0",
    OK,
)
attempt(P, "kills-the-host", "os.kill(row['pid'], 9)")
whole(P, "holds-the-pipes", "def f(row):\n    if os.fork() == 0: time.sleep(600)\n    os._exit(0)", NO_RESULT)
whole(P, "zombies", "def f(row):\n    for n in range(20):\n        if os.fork() == 0: os._exit(0)\n    return 0.0", OK)
whole(
    P,
    "stopped-children",
    "def f(row):\n    for n in range(10):\n        if os.fork() == 0:\n            os.kill(os.getpid(), signal.SIGSTOP)\n            os._exit(0)\n    return 0.0",
    OK,
)
whole(P, "shell-in-background", "def f(row):\n    os.system('nohup sleep 600 >/dev/null 2>&1 &')\n    return 0.0", OK)
whole(
    P,
    "spins-in-children",
    "def f(row):\n    for n in range(6):\n        if os.fork() == 0:\n            while True: pass\n    return 0.0",
    OK,
)

from tests.hostile import cases_more as _more  # noqa: E402, F401 - adds its own to the list
