"""Pools: warm jails, isolation, state that is noticed, jails that die, many threads, and nothing left over."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from evaluators.protocol import Isolation, Limits, Program, Status
from evaluators.sandbox import Sandbox, share
from evaluators.sandbox import memory as jail_memory
from evaluators.sandbox.jail import Jail
from evaluators.sandbox.pool import _units
from evaluators.sandbox.wire import LATE

LIMITS = Limits(wall_seconds=60.0, cpu_seconds=60.0, memory_bytes=256 << 20)
PURE = Program({"pure.py": b"import os\ndef f(n):\n    return n * 0.5\n"}, "pure.py::f")
COUNTER = Program({"count.py": b"seen = []\ndef f(n):\n    seen.append(n)\n    return len(seen)\n"}, "count.py::f")


def jails(sandbox: Sandbox) -> list[Jail]:
    """Those that wait for work."""
    return [jail for record in sandbox._records.values() for jail in record.idle]


def scores(results) -> list[float]:
    assert all(result.ok for result in results), results
    return [result.score.score for result in results]


def test_units_follow_the_isolation() -> None:
    assert _units(3, Isolation.ROW, None) == [[0], [1], [2]]
    assert _units(5, Isolation.GROUP, [7, 7, 8, 8, 7]) == [[0, 1], [2, 3], [4]]
    assert _units(3, Isolation.GROUP, None) == [[0, 1, 2]]
    assert [len(unit) for unit in _units(600, Isolation.BATCH, None)] == [256, 256, 88]
    with pytest.raises(ValueError, match="2 groups for 3 rows"):
        _units(3, Isolation.GROUP, [1, 2])


def test_results_come_in_order_from_many_threads() -> None:
    with Sandbox(workers=2) as sandbox, ThreadPoolExecutor(4) as executor:
        calls = [
            executor.submit(sandbox.evaluate, PURE, [{"n": n} for n in range(at, at + 10)], limits=LIMITS)
            for at in range(0, 80, 10)
        ]
        assert [scores(call.result()) for call in calls] == [
            [n * 0.5 for n in range(at, at + 10)] for at in range(0, 80, 10)
        ]
        assert len(jails(sandbox)) <= 2


def test_an_evaluator_that_keeps_state_is_found_out() -> None:
    rows = [{"n": n} for n in range(6)]
    with Sandbox(workers=2) as sandbox:
        first = sandbox.evaluate(COUNTER, rows, limits=LIMITS, isolation=Isolation.GROUP, groups=[0, 0, 0, 1, 1, 1])
        assert scores(first) == [1.0] * 6
        assert all(one.isolation is Isolation.ROW and one.details["stateful_evaluator"] for one in first)
        again = sandbox.evaluate(COUNTER, rows, limits=LIMITS, isolation=Isolation.BATCH)
        assert scores(again) == [1.0] * 6
        pure = sandbox.evaluate(PURE, rows, limits=LIMITS, isolation=Isolation.GROUP)
        assert scores(pure) == [n * 0.5 for n in range(6)]
        assert all(one.isolation is Isolation.GROUP and "stateful_evaluator" not in one.details for one in pure)


def test_a_killed_jail_costs_an_attempt_and_no_row() -> None:
    with Sandbox(workers=1) as sandbox:
        scores(sandbox.evaluate(PURE, [{"n": 1}], limits=LIMITS))
        (jail,) = jails(sandbox)
        os.kill(jail.process.pid, signal.SIGKILL)
        jail.process.wait()
        (result,) = sandbox.evaluate(PURE, [{"n": 3}], limits=LIMITS)
        assert (result.status, result.attempts) == (Status.OK, 2)
        assert result.score is not None
        assert result.score.score == 1.5


def test_a_jail_killed_in_the_middle_of_a_row_is_replaced() -> None:
    slow = Program({"slow.py": b"import time\ndef f(n):\n    time.sleep(n)\n    return n\n"}, "slow.py::f")
    with Sandbox(workers=1) as sandbox, ThreadPoolExecutor(1) as executor:
        scores(sandbox.evaluate(slow, [{"n": 0}], limits=LIMITS))
        (jail,) = jails(sandbox)
        (supervisor,) = jail_memory.children(jail.process.pid)
        running = executor.submit(sandbox.evaluate, slow, [{"n": 2}], limits=LIMITS)
        while not jail_memory.children(supervisor):
            assert not running.done()
            threading.Event().wait(0.005)
        os.kill(supervisor, signal.SIGKILL)
        (result,) = running.result()
        assert (result.status, result.attempts) == (Status.OK, 2)


def test_jails_of_programs_not_used_for_longest_make_room() -> None:
    with Sandbox(workers=1) as sandbox:
        sandbox._most = 2
        programs = [Program({"p.py": b"def f(n): return %d" % n}, "p.py::f") for n in range(3)]
        for n, program in enumerate(programs):
            assert scores(sandbox.evaluate(program, [{"n": 0}], limits=LIMITS)) == [float(n)]
        assert [record.live for record in sandbox._records.values()] == [0, 1, 1]


def test_a_program_that_keeps_being_late_yields_the_processor() -> None:
    limits = Limits(wall_seconds=0.5)
    late = Program({"late.py": b"import time\ndef f(n):\n    time.sleep(60)\n"}, "late.py::f")
    with Sandbox(workers=2) as sandbox:
        results = sandbox.evaluate(late, [{"n": n} for n in range(4)], limits=limits)
        assert {result.status for result in results} == {Status.TIMEOUT}
        (record,) = sandbox._records.values()
        assert record.nice > 0
        assert sandbox._record((PURE.digest, LIMITS, "score")).nice == 0


SPINS = Program({"spins.py": b"def f(n):\n    while True: pass\n"}, "spins.py::f")
IDLE = Limits(wall_seconds=1.0, cpu_seconds=20.0, memory_bytes=256 << 20)
KERNEL_HAS_SHARES = Path("/proc/self/autogroup").exists()


def shares_seen(jail: Jail) -> set[str | None]:
    """The shares that the session of a yielding evaluation has had, and that its supervisor's stays the host's."""
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(jail.run, [(b'{"n":1}', 0)], nice=19)
        (supervisor,) = jail_memory.children(jail.process.pid)
        seen: set[str | None] = set()
        while not running.done():
            threading.Event().wait(0.01)
            seen |= {share_of(child) for child in jail_memory.children(supervisor)}
            if not running.done():
                assert share_of(supervisor) in (share_of(os.getpid()), None)
        assert running.result().flags & LATE
    return seen - {None}


@pytest.mark.skipif(not KERNEL_HAS_SHARES, reason="this kernel knows no shares of sessions")
def test_an_evaluation_that_yields_has_a_session_with_the_least_share_and_its_supervisor_has_not() -> None:
    seen: set[str | None] = set()
    with closing(Jail(SPINS, IDLE)) as jail:
        for _ in range(10):  # a machine that stands still for a second lets the host see an evaluation only at its end
            seen |= shares_seen(jail)
            if share.refusal():
                pytest.skip(share.refusal())
            if any("nice 19" in one for one in seen if one):
                return
    pytest.fail(f"no session had the least share: {seen}")


@pytest.mark.skipif(not KERNEL_HAS_SHARES, reason="this kernel knows no shares of sessions")
def test_where_no_share_may_be_set_an_evaluation_that_yields_stays_in_the_hosts_session(monkeypatch) -> None:
    monkeypatch.setattr(share, "_refusals", [])
    monkeypatch.setattr(
        share, "LEAST", "not a number"
    )  # what the kernel answers with an error, as it does one who may not
    with closing(Jail(SPINS, IDLE)) as jail:
        shares_seen(jail)
        assert "a session's share cannot be changed here" in share.refusal()
    with closing(Jail(SPINS, IDLE)) as jail:
        assert shares_seen(jail) == {share_of(os.getpid())}


def test_the_kernels_own_group_has_no_name_and_no_share(tmp_path, monkeypatch) -> None:
    told = tmp_path / "autogroup"
    told.write_text("")  # what a process reads that was never below a setsid
    assert share.group_of(told) == ""
    told.write_text("/autogroup-24491 nice 0\n")
    assert share.group_of(told) == "/autogroup-24491"
    monkeypatch.setattr(share, "_OWN", Path(os.devnull))
    monkeypatch.setattr(share.memory, "descendants", lambda pid: [])
    assert share.set_share(os.getpid(), share.USUAL) is False


def share_of(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/autogroup").read_text()  # "" for who was never below a setsid
    except OSError:
        return None  # it ended


def test_who_waits_for_a_jail_of_one_program_gets_it_beside_another() -> None:
    with Sandbox(workers=1) as sandbox, ThreadPoolExecutor(3) as executor:
        slow = Program({"slow.py": b"import time\ndef f(n):\n    time.sleep(0.4)\n    return n\n"}, "slow.py::f")
        waiting = [executor.submit(sandbox.evaluate, slow, [{"n": n}], limits=LIMITS) for n in range(3)]
        assert scores(sandbox.evaluate(PURE, [{"n": n} for n in range(20)], limits=LIMITS)) == [
            n * 0.5 for n in range(20)
        ]
        assert sorted(scores([one for call in waiting for one in call.result()])) == [0.0, 1.0, 2.0]


def test_after_close_nothing_is_left() -> None:
    folders: list[Path] = []
    with Sandbox(workers=2) as sandbox:
        scores(sandbox.evaluate(PURE, [{"n": 1}] * 4, limits=LIMITS))
        idle = jails(sandbox)
        folders = [folder for jail in idle if jail.cgroup for folder in jail.cgroup.folders]
        pids = [pid for jail in idle for pid in (jail.process.pid, *jail_memory.descendants(jail.process.pid))]
        assert len(pids) >= 2
    assert [pid for pid in pids if Path("/proc", str(pid)).exists()] == []
    assert [folder for folder in folders if folder.exists()] == []
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.evaluate(PURE, [{"n": 1}], limits=LIMITS)


def test_the_jail_goes_when_its_launcher_is_killed() -> None:
    jail = Jail(PURE, LIMITS)
    try:
        (supervisor,) = jail_memory.children(jail.process.pid)
        os.kill(jail.process.pid, signal.SIGKILL)
        jail.process.wait()
        for _ in range(6000):
            if not Path("/proc", str(supervisor)).exists() or "Z" in state(supervisor):
                break
            threading.Event().wait(0.01)
        assert not Path("/proc", str(supervisor)).exists() or "Z" in state(supervisor)
    finally:
        jail.close()


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_paths_of_programs_must_stay_inside() -> None:
    for path in ("/etc/passwd", "../x.py", "a//b.py", "./x.py", ""):
        with pytest.raises(ValueError, match="must be relative"):
            Jail(Program({path: b""}, "x.py::f"), LIMITS)


MAIN = """
from pack.part import VALUE
from . import part
import beside
import os
def f(n):
    path = os.path.join(os.path.dirname(__file__), "..", "data.txt")
    try:
        open(path, "w")
    except OSError:
        return VALUE + float(open(path).read()) + beside.X
"""


def test_files_of_a_program_import_each_other_and_are_read_only() -> None:
    files = {"pack/__init__.py": b"", "pack/part.py": b"VALUE = 0.75\n", "data.txt": b"0.5",
             "pack/main.py": MAIN.encode(), "pack/beside.py": b"X = 1\n"}  # fmt: skip
    with Sandbox(workers=1) as sandbox:
        results = sandbox.evaluate(Program(files, "pack/main.py::f"), [{"n": 1}], limits=LIMITS)
    assert scores(results) == [2.25]


def test_environment_and_readable_folders_reach_the_program(tmp_path: Path) -> None:
    folder = tmp_path / "shown"
    folder.mkdir()
    (folder / "library.py").write_text("VALUE = 0.5")
    for one in (folder, folder / "library.py"):
        one.chmod(0o755)
    program = Program(
        {"p.py": b"import os, library\ndef f(n): return library.VALUE + float(os.environ['ADDED'])"}, "p.py::f",
        environment={"PYTHONPATH": str(folder), "ADDED": "0.25"}, readable=(str(folder),),
    )  # fmt: skip
    with Sandbox(workers=1) as sandbox:
        assert scores(sandbox.evaluate(program, [{"n": 1}], limits=LIMITS)) == [0.75]
