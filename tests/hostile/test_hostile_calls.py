"""Callers' arguments that make no sense, and what an evaluator can do to the host's own half of the sandbox."""

import math
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from evaluators.protocol import Limits, Program, Status
from evaluators.sandbox import Sandbox, bubblewrap, machine, memory, run, run_code, scratch, supervisor
from evaluators.sandbox.cgroup import Cgroup
from evaluators.sandbox.interpreter import preloads
from evaluators.sandbox.jail import BWRAP, OWN, Jail, whole_cpu_seconds
from evaluators.sandbox.wire import REPLY_BYTES
from tests.hostile.suite import PATIENT

ZERO = "def f(row): return 0.0\n"
_EXIT_AFTER_CHILDREN = """\
import os, time
def f(n):
    if n:
        os._exit(3)
    for _ in range(3):
        if os.fork() == 0:
            held = bytearray(b"x") * (150 << 20)
            time.sleep(2)
            os._exit(0)
    return float([os.wait()[1] for _ in range(3)].count(9))
"""


@pytest.mark.parametrize(
    ("name", "value"),
    [("wall_seconds", math.nan), ("wall_seconds", -1), ("wall_seconds", math.inf), ("wall_seconds", "1"),
     ("cpu_seconds", math.nan), ("cpu_seconds", 1e30), ("memory_bytes", 0), ("memory_bytes", -1),
     ("memory_bytes", 1 << 70), ("memory_bytes", 2.5e8), ("processes", 0), ("processes", 1 << 40), ("descriptors", 3),
     ("scratch_bytes", 0), ("scratch_inodes", 0), ("scratch_bytes", -1), ("result_bytes", 0), ("stdout_bytes", -1),
     ("stdout_kept_bytes", 1 << 40), ("host_calls", -1), ("processes", True)],
)  # fmt: skip
def test_limits_that_no_jail_can_have_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"Limits\.{name} is .*; allowed: a (whole )?number from"):
        Limits(**{name: value})  # pyright: ignore[reportArgumentType]


def test_no_time_at_all_is_never_our_failure() -> None:
    results = run(ZERO, "f", [{"n": n} for n in range(5)], Limits(wall_seconds=0))
    assert {result.status for result in results} <= {Status.TIMEOUT, Status.OK}  # ok: done before anybody looked


@pytest.mark.parametrize("entry", ["", "a.b", "missing", "f::g", "print", "f\0", "f\n", "\ud800", "x" * 300_000])
def test_an_entry_that_is_no_function_does_not_load(entry: str) -> None:
    (result,) = run(ZERO, entry, [{}], PATIENT)
    assert (result.status, result.attempts) == (Status.LOAD_ERROR, 1)
    assert "has no function" in result.message


def _itself() -> dict:
    row: dict = {}
    row["row"] = row
    return row


def _deep(levels: int) -> dict:
    row: dict = {}
    for _ in range(levels):
        row = {"row": row}
    return row


@pytest.mark.parametrize(
    ("row", "kind", "why"),
    [([1], TypeError, "row 1 is list, not a mapping"), (None, TypeError, "row 1 is NoneType"),
     ({(1, 2): 3}, TypeError, "row 1 is not JSON: keys must be"), ({"a": {1}}, TypeError, "row 1 is not JSON: .* set"),
     (_itself(), ValueError, "row 1 is not JSON: Circular"),
     (_deep(100_000), ValueError, "row 1 is not JSON: .*recursion"),
     ({"a": 10**5000}, ValueError, "row 1 is not JSON: .*4300 digits")],
)  # fmt: skip
def test_rows_that_are_no_json_are_named(row: object, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=why):
        run(ZERO, "f", [{}, row])  # type: ignore[list-item]


def test_rows_may_be_odd_and_come_one_by_one() -> None:
    rows = ({"n": value} for value in (math.nan, "\ud800", "\0", 10**4000, [[]] * 1000))
    assert [result.status for result in run(ZERO, "f", rows, PATIENT)] == [Status.OK] * 5  # type: ignore[arg-type]


@pytest.mark.parametrize(("source", "entry"), [(b"", "f"), (None, "f"), (ZERO, None)])
def test_a_source_that_is_no_text_is_the_callers_mistake(source: object, entry: object) -> None:
    with pytest.raises(TypeError, match="not a text"):
        run(source, entry, [{}])  # type: ignore[arg-type]


def test_what_does_not_fit_into_a_jail_is_told_without_one() -> None:
    small = Limits(memory_bytes=16 << 20)
    (large_row,) = run(ZERO, "f", [{"n": "x" * (9 << 20)}], small)
    assert (large_row.status, large_row.attempts) == (Status.OOM, 1)
    (large_source,) = run(ZERO + "#" * (3 << 20), "f", [{}], small)
    assert large_source.status is Status.LOAD_ERROR
    assert "2,097,152 are allowed" in large_source.message
    assert run_code("x" * (9 << 20), limits=small).status is Status.OOM


def test_a_row_that_fits_only_just_leaves_the_stream_in_step() -> None:
    limits = Limits(wall_seconds=60.0, cpu_seconds=10.0, memory_bytes=64 << 20)
    rows = [{"n": "x" * (30 << 20)}, {"n": "x"}]
    results = run("def f(n): return float(len(n))", "f", rows, limits)
    assert [(result.status, result.attempts) for result in results] == [(Status.OOM, 1), (Status.OK, 1)]


def test_only_plain_modules_are_loaded_ahead_and_not_without_end() -> None:
    source = b"import unittest.__main__, unittest.case\n" + b"".join(b"import json.a%d\n" % n for n in range(5000))
    found = preloads([source])
    assert len(found) == 100
    assert not [name for name in found if "__main__" in name]


@pytest.mark.parametrize("tier", ["standard", "landlock"])
def test_what_a_jail_is_for_stands_in_no_processs_arguments(tier: str) -> None:
    secret = "granted-4711"
    source = b"import os, time\ndef f(n):\n    time.sleep(0.2)\n    return float(len(os.environ['KEY']))\n"
    program = Program({"p.py": source}, "p.py::f", environment={"KEY": secret})
    with Sandbox(tier) as sandbox:
        sandbox.evaluate(program, [{"n": 0}], limits=PATIENT)
        running = threading.Thread(target=sandbox.evaluate, args=(program, [{"n": 1}]), kwargs={"limits": PATIENT})
        running.start()
        seen = [_arguments(one) for one in memory.descendants(os.getpid())]
        running.join()
    assert any(b"evaluators.sandbox" in one for one in seen)
    assert not [one for one in seen if secret.encode() in one]


def _arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # it ended


_HOLDS = """
import mmap, sys
held = mmap.mmap(-1, 64 << 20)
for place in range(0, 64 << 20, 4096):
    held[place] = 1
print(1, flush=True)
sys.stdin.read()
"""


def test_memory_that_is_shared_counts() -> None:
    holder = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_HOLDS!r}])"
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == b"1\n"
        memory.check(process.pid, 96 << 20)
        with pytest.raises(memory.TooMuch):
            memory.check(process.pid, 32 << 20)
        process.stdin.close()


_HOLDS_AND_FORKS = """
import os, sys, time
held = bytearray(b"x") * (96 << 20)
for _ in range(4):
    if os.fork() == 0:
        time.sleep(60)
print(1, flush=True)
sys.stdin.read()
os.killpg(0, 9)
"""
_UNMAPS = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
for _ in range(8):
    place = libc.mmap(None, 64 << 20, 3, 0x21, -1, 0)
    libc.memset(place, 1, 64 << 20)
    libc.munmap(place + 4096, (64 << 20) - 4096)
print(1, flush=True)
sys.stdin.read()
"""


def _told(source: str) -> subprocess.Popen:
    """A process below one of its own, as a jail's are below its launcher; it has said that it is ready."""
    holder = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {source!r}])"
    command = [sys.executable, "-c", holder]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout
    assert process.stdout.readline() == b"1\n"
    return process


def test_memory_that_children_were_born_with_counts_once() -> None:
    with _told(_HOLDS_AND_FORKS) as process:
        memory.check(process.pid, 192 << 20)
        with pytest.raises(memory.TooMuch):
            memory.check(process.pid, 48 << 20)
        assert process.stdin
        process.stdin.close()


def test_memory_that_is_shared_counts_when_nobody_maps_it_any_more() -> None:
    before = memory.shared_on_machine()
    with _told(_UNMAPS) as process:
        memory.check(process.pid, 128 << 20)  # no process has it
        with pytest.raises(memory.TooMuch):
            memory.check(process.pid, 128 << 20, before=before)
        assert process.stdin
        process.stdin.close()


def test_memory_of_a_guest_counts_mapped_or_not() -> None:
    guest = os.memfd_create("guest")
    try:
        before = memory._files_in_memory(os.getpid())
        os.truncate(guest, 1 << 40)
        for place in range(8):
            os.pwrite(guest, bytes(1 << 20), place << 30)
        assert memory._files_in_memory(os.getpid()) - before == 8 << 20
    finally:
        os.close(guest)


def test_an_answer_of_the_judge_fits_whatever_pipes_the_user_has() -> None:
    reading, writing = supervisor._answers()
    os.set_blocking(writing, False)
    assert os.write(writing, bytes(REPLY_BYTES)) == REPLY_BYTES
    for handle in (reading, writing):
        os.close(handle)


def test_a_childs_end_for_want_of_memory_is_not_blamed_on_a_later_row() -> None:
    group = Cgroup.create(PATIENT)
    if group is None:
        pytest.skip("no cgroup can be made here, so that the host's look at memory ends the whole row")
    group.remove()
    with Sandbox(workers=1) as sandbox:
        program = Program({"p.py": _EXIT_AFTER_CHILDREN.encode()}, "p.py::f")
        killed, after = sandbox.evaluate(program, [{"n": 0}, {"n": 1}], limits=PATIENT)
    assert killed.score is not None
    assert killed.score.score > 0
    assert after.status is Status.NO_RESULT


@pytest.mark.parametrize("launcher", [OWN, BWRAP])
def test_every_process_of_a_jail_is_in_its_cgroup(launcher: str) -> None:
    if launcher == BWRAP and bubblewrap.missing():
        pytest.skip(bubblewrap.missing())
    with closing(Jail(Program({"p.py": ZERO.encode()}, "p.py::f"), PATIENT, launcher=launcher)) as jail:
        if jail.cgroup is None:
            pytest.skip("no cgroup can be made here")
        found = memory.descendants(jail.process.pid)
        assert found
        for folder in jail.cgroup.folders:
            assert set(found) <= {int(one) for one in (folder / "cgroup.procs").read_text().split()}


def test_words_for_people_hold_no_control_characters() -> None:
    (error,) = run("def f(row): raise ValueError('a\\x1b[2J\\0\\nb')", "f", [{}], PATIENT)
    assert error.message == "ValueError: a\ufffd[2J\ufffd\nb"
    (told,) = run("def f(row): return {'score': 1.0, 'reason': '\\x9b2J\\tx'}", "f", [{}], PATIENT)
    assert told.score is not None
    assert told.score.reason == "\ufffd2J\tx"


def test_signals_that_the_host_ignores_or_blocks_are_not_handed_on() -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"
        f"os.execv(sys.executable, [sys.executable, '-c', {_INNER!r}])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout.split() == ["crash", str(signal.SIGUSR1.value), "crash", str(signal.SIGTERM.value)], done.stderr


_INNER = """
import signal
from evaluators.protocol import Limits
from evaluators.sandbox import run
signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the self-check waits for its own processes
source = "import os\\ndef f(n): os.kill(os.getpid(), n)"
for number in (signal.SIGUSR1, signal.SIGTERM):
    [result] = run(source, "f", [{"n": int(number)}], Limits(wall_seconds=60.0))
    print(result.status, result.details.get("signal"))
"""


_FORKS = """
import os, sys
from evaluators.sandbox import run
source = "import os\\ndef f(n): return float(n)"
def scores(first):
    results = [run(source, "f", [{"n": n}])[0] for n in range(first, first + 20)]
    return [result.score.score for result in results if result.score] == list(range(first, first + 20))
right = scores(0)
child = os.fork()
right = scores(1000 * (child == 0)) and right
if child == 0:
    sys.exit(not right)
print(right, os.waitpid(child, 0)[1])
"""


def test_a_forked_host_has_jails_of_its_own() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _FORKS], capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout == "True 0\n", done.stderr


def test_a_forked_host_does_not_wait_for_a_thread_that_it_does_not_have() -> None:
    with machine._lock:  # as while another thread has the self-check done
        child = os.fork()
        if child == 0:
            os._exit(not machine._lock.acquire(blocking=False))
    assert os.waitpid(child, 0)[1] == 0


_INHERITS = """
import os, sys
from evaluators.protocol import Limits, Program
from evaluators.sandbox import Sandbox
program = Program({"p.py": b"def f(n):\\n    open('x', 'w').close()\\n    return float(n)"}, "p.py::f")
def scores(sandbox, first):
    rows = [{"n": n} for n in range(first, first + 40)]
    results = sandbox.evaluate(program, rows, limits=Limits(wall_seconds=60.0))
    return [result.score and result.score.score for result in results] == list(range(first, first + 40))
with Sandbox(sys.argv[1], workers=2) as sandbox:
    right = scores(sandbox, 0)
    child = os.fork()
    right = scores(sandbox, 1000 * (child == 0)) and right
    if child == 0:
        sys.exit(not right)
    status = os.waitpid(child, 0)[1]
    print(right and scores(sandbox, 0), status)
"""


@pytest.mark.parametrize("tier", ["standard", "landlock"])
def test_a_sandbox_that_a_fork_inherits_reads_from_no_jail_of_its_parent(tier: str) -> None:
    command = [sys.executable, "-W", "error", "-c", _INHERITS, tier]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert (done.stdout, done.stderr) == ("True 0\n", "")


_ODD = """
import os, resource, socket
socket.setdefaulttimeout(30.0)
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
told = os.dup(1)
for handle in (0, 1, 2):
    os.close(handle)
from evaluators.protocol import Limits
from evaluators.sandbox import run
source = "def f(n): return float(n)  # {}"
limits = Limits(wall_seconds=60.0, cpu_seconds=100.0)
results = [run(source.format(n), "f", [{"n": n}], limits)[0] for n in range(20)]
os.write(told, b" ".join(b"%s/%d" % (one.status.encode(), one.attempts) for one in results))
"""


def test_a_host_without_standard_streams_and_with_few_descriptors_and_little_time_scores() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _ODD], capture_output=True, text=True, cwd=root, check=False)
    found = [one.partition("/")[0] for one in done.stdout.split()]
    assert found == ["ok"] * 20, done.stderr


def test_processor_time_is_never_more_than_the_host_may_give(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(cpu_seconds=1.5)
    assert (whole_cpu_seconds(limits), whole_cpu_seconds(limits, 10)) == (2, 20)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5, 5))
    assert (whole_cpu_seconds(limits), whole_cpu_seconds(limits, 10)) == (2, 4)


def test_an_interrupted_host_scores_the_next_row() -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    source = "import time\ndef f(n):\n    time.sleep(n)\n    return 1.0"
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for rows in ([{"n": 30}], [{"n": 30}] * 9):
            run(source, "f", [{"n": 0}], PATIENT)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(Interrupted):
                run(source, "f", rows, Limits(wall_seconds=0.5, cpu_seconds=10.0))
            with pytest.raises(Interrupted):
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                run(source, "f", [{"n": 30}], PATIENT)
            (after,) = run(source, "f", [{"n": 0}], PATIENT)
            assert after.ok
            assert after.attempts == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_first_process_has_a_group_of_its_own() -> None:
    with closing(Jail(Program({"p.py": ZERO.encode()}, "p.py::f"), PATIENT)) as jail:
        (first,) = memory.children(jail.process.pid)
        assert os.getpgid(first) == first  # in it, a signal to the own group reaches nothing of the host's


@pytest.mark.parametrize("clean", [scratch.remove, lambda top: scratch.wipe(top, owned=True)])
def test_whatever_was_left_is_removed_and_links_are_not_followed(clean: Callable[[str], object]) -> None:
    with tempfile.TemporaryDirectory() as outside:
        kept = Path(outside, "kept")
        kept.mkdir(mode=0o750)
        top = Path(tempfile.mkdtemp(dir="/dev/shm"))  # a file system in memory, as scratch is
        deep = os.open(top, os.O_RDONLY)
        for _ in range(1200):  # deeper than a path may be long, and than a function may call itself
            os.mkdir("d" * 10, dir_fd=deep)
            deeper = os.open("d" * 10, os.O_RDONLY, dir_fd=deep)
            os.close(deep)
            deep = deeper
        os.close(deep)
        (top / "locked" / "inner").mkdir(parents=True)
        (top / "locked" / "x").write_text("")
        (top / "link").symlink_to(kept)
        (top / ".1.gone").mkdir()
        for one in (top / "locked" / "inner", top / "locked"):
            one.chmod(0)
        clean(str(top))
        left = list(top.iterdir()) if top.exists() else []
        scratch.remove(str(top))
        assert left == []
        assert stat.S_IMODE(kept.stat().st_mode) == 0o750
