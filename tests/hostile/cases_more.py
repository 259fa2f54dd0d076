"""More evaluators that try to do harm, of kinds that `cases.py` does not think of; its words, and its list.

What is shared rather than taken (memory, descriptors in messages, groups of processes), exceptions and returns that lie
about what they are, JSON that the host's reader meets as it was forged, and traces that only the kernel keeps.
"""

# ruff: noqa: E501 - a hostile source is easier to read on its own line than broken
from __future__ import annotations

import platform
import textwrap

from evaluators.protocol import Status
from tests.hostile.cases import (
    _PRELUDE,
    BAD,
    CASES,
    CRASH,
    ERROR,
    LOAD,
    NO_RESULT,
    OK,
    OOM,
    RESULT_FLOOD,
    TIMEOUT,
    Case,
    attempt,
    state,
    whole,
)


def returning(name: str, body: str, *expected: Status, group: str = "result") -> None:
    """Lines of a function `f(row)`."""
    whole(group, name, "def f(row):\n" + textwrap.indent(textwrap.dedent(body).strip("\n"), "    "), *expected)


def harmless_three_times(name: str, body: str) -> None:
    """Three rows of one program that leave something behind which must not keep the next from its 0.0."""
    lines = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    CASES.append(Case("state", name, f"{_PRELUDE}def f(row):\n{lines}\n    return 0.0\n", (OK,), rows=3))


# resources that are shared, or that the kernel keeps
R = "resources"
returning("shared-memory-in-children", """
    import mmap
    for _ in range(8):
        if os.fork() == 0:
            held = mmap.mmap(-1, 120 << 20)
            for place in range(0, 120 << 20, 4096): held[place] = 1
            time.sleep(60)
    time.sleep(60)""", OOM, TIMEOUT, group=R)  # fmt: skip
_MAPS = """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    def share(size, flags, handle):
        place = libc.mmap(None, size, 3, flags, handle, 0)
        if place == 2 ** 64 - 1: raise OSError(ctypes.get_errno(), 'mmap')
        libc.memset(place, 1, size)
        return place"""  # the object lives on as long as a page of it is mapped, whether or not anybody touches that
returning("shared-memory-that-is-unmapped", _MAPS + """
    while True: libc.munmap(share(8 << 20, 0x21, -1) + 4096, (8 << 20) - 4096)""", OOM, group=R)  # fmt: skip
returning("shared-zeros-that-are-unmapped", _MAPS + """
    zero = os.open('/dev/zero', os.O_RDWR)
    while True: libc.munmap(share(8 << 20, 1, zero) + 4096, (8 << 20) - 4096)""", OOM, group=R)  # fmt: skip
_SURVIVORS = """
    reading, writing = os.pipe()
    def survive():
        time.sleep(5)
        os.write(writing, b'x')
        os._exit(0)
    for _ in range({}):
        if os.fork() == 0:
            {}
    os.close(writing)
    return float(len(b''.join(iter(lambda: os.read(reading, 99), b''))) == {})"""  # 0: the kernel has killed some of them
returning("shared-memory-that-heirs-do-not-touch", _MAPS + _SURVIVORS.format(10, """share(80 << 20, 0x21, -1)
            if os.fork() == 0: survive()
            os._exit(0)""", 10), OOM, OK, group=R)  # fmt: skip
returning("many-small-processes", _SURVIVORS.format(20, """held = bytearray(b'x') * (20 << 20)
            survive()""", 20), OOM, OK, group=R)  # fmt: skip
returning("grows-its-sockets", """
    one, _ = socket.socketpair()
    before = one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    for option in (socket.SO_SNDBUF, 32): # 32: SO_SNDBUFFORCE
        try: one.setsockopt(socket.SOL_SOCKET, option, 1 << 30)
        except OSError: pass
    return float(one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > before)""", OK, group=R)  # fmt: skip
attempt("kernel", "filter-on-a-socket", "socket.socketpair()[0].setsockopt(1, 26, bytes(16))")
returning("prints-on-both-streams", """
    other = 2 if os.fork() == 0 else 1
    while True: os.write(other, b'x' * 65536)""", Status.OUTPUT_FLOOD, group=R)  # fmt: skip
returning("descriptors-in-a-message", """
    here, there = socket.socketpair()
    for number in range(1, 30):  # the result pipe's end among them, and both ends of this pair
        try: socket.send_fds(here, [b'x'], [number])
        except OSError: pass
    os._exit(0)""", NO_RESULT, group=R)  # fmt: skip
returning("descriptors-in-a-ring-of-messages", """
    pairs = [socket.socketpair() for _ in range(8)]
    for (here, _), (a, b) in zip(pairs, pairs[1:] + pairs[:1]):
        socket.send_fds(here, [b'x'], [a.fileno(), b.fileno(), 1, 2])
    return 0.0""", OK, group=R)  # fmt: skip
returning("full-sockets-in-children", """
    for _ in range(12):
        if os.fork() == 0:
            held = [socket.socketpair() for _ in range(20)]
            for one in (end for pair in held for end in pair):
                one.setblocking(False)
                try:
                    while True: one.send(bytes(65536))
                except OSError: pass
            time.sleep(60)
    return 0.0""", OK, OOM, TIMEOUT, group=R)  # fmt: skip
returning("full-pipes-in-children", """
    for _ in range(12):
        if os.fork() == 0:
            for _ in range(25):
                reading, writing = os.pipe()
                os.set_blocking(writing, False)
                try:
                    while True: os.write(writing, bytes(65536))
                except OSError: pass
            time.sleep(60)
    return 0.0""", OK, OOM, TIMEOUT, group=R)  # fmt: skip
returning("forks-many-mappings", """
    import mmap
    held = [mmap.mmap(-1, 4096, prot=1 + 2 * (n & 1)) for n in range(20_000)]
    for _ in range(10):
        if os.fork() == 0: time.sleep(60)
    return 0.0""", OK, OOM, ERROR, TIMEOUT, group=R)  # fmt: skip
returning("page-tables-in-children", """
    import mmap
    held = mmap.mmap(-1, 200 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(18):
        if os.fork() == 0:
            for place in range(0, 200 << 20, 2 << 20): held[place] = 1
            time.sleep(60)
    return 0.0""", OK, OOM, TIMEOUT, group=R)  # fmt: skip
returning("links-and-long-names", """
    open('a', 'w').close()
    for n in range(300): os.link('a', f'{n:03}' + 'n' * 252)
    os.makedirs('/'.join(['p' * 255] * 14))
    for name in (b'a\\nb', b'\\xff\\xfe', b'\\x1b[2J', b'-rf', b' '): os.mkdir(name)
    os.symlink('/', 'root')
    os.symlink('loop', 'loop')
    return 0.0""", OK, group=R)  # fmt: skip
returning("unlinked-and-open", """
    held = [os.open(f'{n}', os.O_CREAT | os.O_RDWR) for n in range(20)]
    for n in range(20): os.unlink(f'{n}')
    for handle in held: os.write(handle, bytes(1 << 20))
    return 0.0""", ERROR, OK, group=R)  # fmt: skip
returning("map-beyond-the-end", """
    import mmap
    handle = os.open('a', os.O_CREAT | os.O_RDWR)
    os.ftruncate(handle, 8192)
    held = mmap.mmap(handle, 8192)
    os.ftruncate(handle, 0)
    held[5000] = 1
    return 1.0""", CRASH, group=R)  # fmt: skip
returning("no-limits-left", """
    import resource
    for one in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_NPROC):
        resource.setrlimit(one, (0, 0))
    return 0.0""", OK, OOM, ERROR, group=R)  # fmt: skip
returning(
    "collector-that-hangs", "import gc\ngc.callbacks.append(lambda *_: time.sleep(60))\ngc.collect()", TIMEOUT, group=R
)
returning(
    "awaits-for-ever", "class A:\n    def __await__(self):\n        while True: yield\nreturn A()", TIMEOUT, group=R
)
returning(
    "metrics-without-end",
    "class D(dict):\n    def items(self): return ((str(n), 1.0) for n in iter(int, 1))\nreturn 0.0, D()",
    TIMEOUT,
    OOM,
    group=R,
)
returning("a-million-metrics", "return 0.0, {str(n): 1.0 for n in range(10 ** 6)}", RESULT_FLOOD, OOM, TIMEOUT, group=R)
whole(R, "wrapped-in-itself", "def f(row): return 0.0\nf.__wrapped__ = f", TIMEOUT)
whole(R, "power-at-import", "x = 7 ** 99999999\ndef f(row): return 0.0", TIMEOUT, OOM)
if platform.machine() == "x86_64":
    attempt(
        R,
        "timers",
        "slot, kind = ctypes.c_int(), bytes(64)\nfor _ in range(5000): call(222, 0, None, ctypes.byref(slot))",
    )

# signals and processes
P = "processes"
whole(P, "kills-its-group", "def f(row):\n    try: os.kill(0, 9)\n    except OSError: pass\n    return 0.0", CRASH, OK)
whole(
    P, "stops-its-group", "def f(row):\n    try: os.kill(0, 19)\n    except OSError: pass\n    return 0.0", TIMEOUT, OK
)
whole(P, "kills-its-old-group", """
    def f(row):
        group = os.getpgid(1) if os.getpgid(1) else os.getpgrp()
        os.setpgid(0, 0)
        for number in (group, 1, os.getppid()):
            try: os.killpg(number, 9)
            except OSError: pass
        return 0.0""", OK, CRASH, ERROR)  # fmt: skip
whole(
    P,
    "first-thread-ends",
    "def f(row):\n    threading.Thread(target=time.sleep, args=(60,)).start()\n    ctypes.CDLL(None).pthread_exit(None)",
    TIMEOUT,
    CRASH,
)
whole(P, "exit-waits-for-ever", """
    import atexit
    atexit.register(time.sleep, 600)
    class Slow:
        def __del__(self): time.sleep(600)
    kept = Slow()
    def f(row):
        threading.Thread(target=time.sleep, args=(600,)).start()
        return 0.0""", OK)  # fmt: skip
whole(P, "idle-spinners", """
    def f(row):
        for _ in range(12):
            if os.fork() == 0:
                os.nice(19)
                try: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
                except OSError: pass
                while True: pass
        return 0.0""", OK)  # fmt: skip
whole(P, "alarms-everywhere", """
    def f(row):
        def stop(*_): raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, 1e-5, 1e-5)
        return 0.0""", OK, ERROR, LOAD, BAD, NO_RESULT)  # fmt: skip
if platform.machine() == "x86_64":
    whole(P, "siblings", """
        def f(row):
            for _ in range(5):
                if call(56, 0x8000 | 17, None, None, None, 0) == 0: time.sleep(600)  # CLONE_PARENT
            return 0.0""", OK, ERROR)  # fmt: skip
    whole(P, "children-that-send-other-signals", """
        def f(row):
            for number in (0, 9, 34):
                if call(56, number, None, None, None, 0) == 0:
                    call(56, 0x8000, None, None, None, 0)
                    time.sleep(600)
            return 0.0""", OK, ERROR, CRASH)  # fmt: skip
    whole(
        P,
        "vfork-that-stays",
        "def f(row):\n    if call(58) == 0: ctypes.CDLL(None).sleep(600)\n    return 0.0",
        TIMEOUT,
        OK,
        CRASH,
    )

# network exits
attempt(
    "network",
    "datagram-to-a-path",
    "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', row['datagrams'])",
)
attempt(
    "network",
    "raw-datagram-to-a-path",
    "socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)[0].sendto(b'x', row['datagrams'])",
)
attempt(
    "network",
    "message-to-a-path",
    "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0].sendto(b'x', row['datagrams'])\nraise OSError",
)
attempt("network", "stream-to-a-path", "socket.socketpair()[0].sendto(b'x', row['datagrams'])")
attempt(
    "network",
    "datagram-to-an-abstract-name",
    "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '\\0' + row['abstract'])",
)

# exceptions that lie, or cannot be asked
T = "result"
_RAISES = {
    "exception-that-keeps-its-traceback": "class E(Exception):\n    def __setattr__(self, *_): raise RuntimeError",
    "exception-without-a-name": "class M(type):\n    @property\n    def __name__(cls): raise RuntimeError\nclass E(Exception, metaclass=M): pass",
    "exception-with-no-class": "class E(Exception):\n    @property\n    def __class__(self): raise RuntimeError",
    "exception-that-says-memory": "class E(Exception):\n    @property\n    def __class__(self): return MemoryError",
    "exception-with-no-number": "class E(OSError):\n    @property\n    def errno(self): raise RuntimeError",
    "exception-with-an-odd-number": "class N(int):\n    def __eq__(self, other): return True\n    __hash__ = None\nclass E(OSError):\n    def __init__(self, *_): super().__init__(N(5), 'x')",
    "exception-with-odd-text": "class S(str):\n    def __format__(self, _): raise RuntimeError\n    startswith = encode = __getitem__ = None\nclass E(RuntimeError):\n    def __str__(self): return S('x')",
    "exception-with-a-surrogate": "def E(): return ValueError('\\ud800')",
    "exception-group": "def E(): return ExceptionGroup('x' * 9999, [ValueError(n) for n in range(999)])",
    "generator-exit": "E = GeneratorExit",
    "keyboard-interrupt": "E = KeyboardInterrupt",
}  # fmt: skip
for _name, _source in _RAISES.items():
    whole(T, _name, f"{_source}\ndef f(row): raise E()", ERROR)
whole(T, "sends-itself-cpu-signal", "def f(row):\n    os.kill(os.getpid(), signal.SIGXCPU)", CRASH)

# returns that lie
returning(
    "reason-whose-items-raise",
    "class D(dict):\n    def items(self): raise KeyError('x')\nreturn {'score': 1.0, 'reason': D(a=1)}",
    BAD,
)
returning(
    "reason-whose-items-exit",
    "class D(dict):\n    def items(self): raise SystemExit(0)\nreturn {'score': 1.0, 'reason': D(a=1)}",
    BAD,
)
returning(
    "error-that-cannot-be-asked",
    "class E:\n    def __bool__(self): raise KeyError\nreturn {'score': 1.0, 'error': E()}",
    BAD,
    ERROR,
)
returning("float-that-says-bool", "class F(float):\n    __class__ = bool\nreturn F(1.0)", BAD)
returning(
    "int-that-says-five",
    "class I(int):\n    __repr__ = __str__ = lambda self: '5'\n    def __abs__(self): return 0\n    def __float__(self): return 5.0\nreturn I(0)",
    OK,
)
returning("item-that-is-true", "class I:\n    def item(self): return True\nreturn I()", BAD)
returning("everything-is-there", "class I:\n    def __getattr__(self, name): return self\nreturn I()", BAD, ERROR)
returning("nothing-to-await", "class D(dict):\n    __await__ = None\nreturn D(score=0.0)", OK, ERROR)
returning("generator", "yield 1.0", BAD)
whole(T, "async-generator", "async def f(row):\n    yield 1.0", BAD)
returning("the-class-itself", "return type('S', (), {'score': property(lambda self: 1.0)})", BAD)
returning("raises-the-limit-of-results", """
    frame = sys._getframe()
    while frame:
        one = frame.f_locals.get('self')
        if hasattr(one, 'settings'): one.settings['limits']['result_bytes'] = 1 << 40
        frame = frame.f_back
    return {'score': 1.0, 'reason': 'x' * 500_000}""", RESULT_FLOOD)  # fmt: skip

# answers that come whole, from a process that goes on
_ANSWERS = """
    frame = sys._getframe()
    while frame:
        one = frame.f_locals.get('self')
        if hasattr(one, 'nonce'): found = one
        frame = frame.f_back
    os.write(found.result, found.nonce + b' 0 ok {"score":1.0}\\n' + found.nonce + b' end\\n')"""
returning("answers-and-hangs", _ANSWERS + "\n    time.sleep(60)", TIMEOUT)
returning("answers-and-dies", _ANSWERS + "\n    os.kill(os.getpid(), 9)", CRASH)
returning("buys-time-with-lines", _ANSWERS + """
    while True:
        os.write(found.result, b'\\n')
        time.sleep(0.05)""", TIMEOUT)  # fmt: skip

# what a forger of results can make the host read
_FORGER = """
    frame = sys._getframe()
    while frame:
        one = frame.f_locals.get('self')
        if hasattr(one, 'nonce'): found = one
        frame = frame.f_back
    os.write(found.result, {})
    os._exit(0)"""
for _name, _bytes, _status in (
    ("forges-our-failure", "found.nonce + b' 0 infra_error {\"message\":\"x\"}\\n' + found.nonce + b' end\\n'", BAD),
    ("forges-no-status", "found.nonce + b' 0 perfect {}\\n' + found.nonce + b' end\\n'", BAD),
    ("forges-another-row", "found.nonce + b' 1 ok {\"score\":1}\\n' + found.nonce + b' end\\n'", BAD),
    ("forges-two-rows", "(found.nonce + b' 0 ok {\"score\":1}\\n') * 2 + found.nonce + b' end\\n'", BAD),
    (
        "forges-a-deep-error",
        "found.nonce + b' 0 error {\"message\":' + b'[' * 9000 + b'}\\n' + found.nonce + b' end\\n'",
        BAD,
    ),
    (
        "forges-an-error-of-lists",
        'found.nonce + b\' 0 error {"message":[1,{"a":[]}],"type":{}}\\n\' + found.nonce + b\' end\\n\'',
        ERROR,
    ),
    ("forges-the-end-alone", "found.nonce + b' end\\n'", BAD),
    ("forges-an-end-too-many", "found.nonce + b' end\\n' + found.nonce + b' end\\n'", BAD),
):
    returning(_name, _FORGER.format(_bytes), _status)
_TEXTS = {
    "number-beyond": ('{"score":1e400}', BAD), "number-below": ('{"score":1e-400}', OK), "minus-infinity": ('{"score":-Infinity}', BAD),
    "digits": ('{"score":' + "9" * 9000 + "}", BAD), "byte-order-mark": ('\ufeff{"score":1}', BAD), "key-twice-escaped": ('{"score":1,"sco\\u0072e":1}', BAD),
    "closed-before-opened": ("]" * 40 + "[" * 400, BAD), "unended-text": ('{"score":1,"reason":"' + "\\\\" * 9000, BAD),
    "half-a-pair": ('{"score":1,"reason":"\\ud83d"}', BAD), "invisible-metric": ('{"score":1,"metrics":{"a\\u202eb":1}}', BAD),
    "nameless-metric": ('{"score":1,"metrics":{"":1}}', BAD), "true-metric": ('{"score":1,"metrics":{"a":true}}', BAD),
    "endless-step": ('{"score":1,"step_outputs":[{"step_index":' + "9" * 200 + ',"base_reward":1}]}', BAD),
    "two-values": ('{"score":1} {"score":1}', BAD), "new-line": ('{"score":1}\\n', BAD), "fields-of-the-host": ('{"score":0,"status":"ok","tier":"none","attempts":9}', OK),
}  # fmt: skip
for _name, (_text, _status) in _TEXTS.items():
    returning(
        f"json-{_name}", f"import json\ntext = {_text!r}\njson.dumps = lambda *_, **__: text\nreturn 1.0", _status
    )

# sources
whole(
    T,
    "runs-at-preloading",
    "def f(row): return 0.0\ndef g():\n    import unittest.__main__, venv.__main__, asyncio.__main__",
    OK,
)
whole(
    T,
    "imports-without-end",
    "def f(row): return 0.0\ndef g():\n" + "".join(f"    import json.a{n}\n" for n in range(9_000)),
    OK,
)
whole(
    T,
    "takes-its-module-away",
    "sys.modules[__name__] = None\nsys.modules.clear()\ndef f(row): return 0.0",
    OK,
    ERROR,
    NO_RESULT,
)
whole(T, "raises-at-import", "raise BaseException('x')", LOAD)
whole(T, "many-parentheses", "x = " + "(" * 5000 + ")" * 5000 + "\ndef f(row): return 1.0", LOAD)
whole(T, "many-signs", "x = " + "~" * 200_000 + "1\ndef f(row): return 1.0", LOAD)
whole(T, "many-sums", "x = 1" + "+1" * 100_000 + "\ndef f(row): return 0.0", LOAD, OK)
CASES.append(Case(T, "odd-encoding", "# coding: zlib\ndef f(row): return 1.0\n", (LOAD,)))
CASES.append(Case(T, "half-a-pair-in-the-source", "x = '\ud800'\ndef f(row): return 1.0\n", (LOAD,)))
CASES.append(Case(T, "no-source", "", (LOAD,)))

# state between rows that only the kernel, or the wiping of scratch, could keep
harmless_three_times(
    "names-that-wiping-might-use", "for n in range(1, 150): os.makedirs(f'.{n}.gone/x')\nos.makedirs('d/e/f')"
)
harmless_three_times(
    "folders-made-locked",
    "os.mkdir('d', 0o300)\nos.mkdir('d/e', 0o700)\nopen('d/e/x', 'w').close()\nos.mkdir('d/f', 0)",
)
state("times-of-the-program", "time.time() - os.stat(__file__).st_atime < 0", "open(__file__).read()")
state("times-of-scratch", "os.stat('/scratch').st_mtime != 0", "open('kept', 'w').close()")
state("timer", "signal.getitimer(signal.ITIMER_REAL)[0] > 0", "signal.setitimer(signal.ITIMER_REAL, 500)")
state(
    "blocked-signals",
    "signal.pthread_sigmask(signal.SIG_BLOCK, ())",
    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})",
)
state(
    "pending-signals",
    "signal.sigpending()",
    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\nos.kill(os.getpid(), signal.SIGUSR1)",
)
state("policy", "os.sched_getscheduler(0) != 0", "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))")
state("folder", "os.getcwd().endswith('kept')", "os.mkdir('kept'); os.chdir('kept')")
state("recursion-limit", "sys.getrecursionlimit() == 777", "sys.setrecursionlimit(777)")
state(
    "hooks",
    "sys.excepthook is not sys.__excepthook__ or len(sys.meta_path) > 5",
    "sys.excepthook = print\nsys.meta_path += [None] * 9",
)
state(
    "random",
    "__import__('random').getstate()[1][0] == 1 and __import__('random').getstate()[1][1] == 1",
    "import random\nrandom.setstate((3, (1,) * 624 + (0,), None))",
)
state("time-zone", "time.tzname[0] == 'KPT'", "os.environ['TZ'] = 'KPT-3'\ntime.tzset()")
