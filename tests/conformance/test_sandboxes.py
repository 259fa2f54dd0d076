"""One suite for every tier of the sandbox: what a row may count on is the same behind each fence."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from evaluators.protocol import Isolation, Limits, Program, Result, Status, Tier
from evaluators.sandbox import Sandbox
from evaluators.sandbox.machine import works

# Processor time ends what spins, whatever else this machine does; nobody but who sleeps comes near the wall's.
LIMITS = Limits(wall_seconds=60.0, cpu_seconds=1.0, memory_bytes=256 << 20)
PATIENT = replace(LIMITS, cpu_seconds=6.0)  # in a kernel of its own all takes longer
SOURCE = """
import os, random, sys, time
seen = []
def planted(kind):
    return KINDS[kind]()
def flood():
    while True: print("x" * 1000)
def spin():
    while True: pass
def sleeps(kind):
    time.sleep(600)
def bomb():
    while True: os.fork()
def eat():
    return bytearray(1 << 40)
def raises():
    raise ValueError("planted")
KINDS = {
    "ok": lambda: 0.5, "invalid": lambda: {"score": 0.5, "is_score_valid": False, "reason": "disowned"},
    "error": raises, "timeout": spin, "oom": eat, "pids": bomb, "crash": lambda: os.kill(os.getpid(), 11),
    "no_result": lambda: os._exit(0), "bad_result": lambda: float("nan"), "output_flood": flood,
    "result_flood": lambda: {"score": 1.0, "reason": "x" * (1 << 20)},
}
def drawn(kind):
    return random.random()
def remembers(kind):
    seen.append(kind)
    return float(len(seen))
def kept(kind):
    new = not os.path.exists("kept")
    open("kept", "w").close()
    return float(new)
def leaves(kind):
    if os.fork() == 0: time.sleep(600)
    return 1.0
"""


FENCES = [
    pytest.param((Tier.STANDARD, "own"), id="standard"),
    pytest.param((Tier.STANDARD, "bwrap"), id="standard-bwrap", marks=pytest.mark.slow),
    pytest.param((Tier.STRONG, "own"), id="strong", marks=pytest.mark.slow),
    pytest.param((Tier.LANDLOCK, "own"), id="landlock"),
    pytest.param((Tier.NONE, "own"), id="none"),
]


@pytest.fixture(scope="module", params=FENCES)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    tier, launcher = request.param
    if tier is not Tier.NONE and works(tier, launcher):
        pytest.skip(f"{tier}: {works(tier, launcher)}")
    with Sandbox(tier, workers=2, allow_none=tier is Tier.NONE, launcher=launcher) as pool:
        (probe,) = pool.evaluate(Program({"a.py": b"def f(row): return 1"}, "a.py::f"), [{}], limits=limits_of(pool))
        if tier is Tier.NONE and not probe.ok:
            pytest.skip(f"none: {probe.message}")
        yield pool


def limits_of(sandbox: Sandbox) -> Limits:
    return PATIENT if sandbox.tier is Tier.STRONG else LIMITS


def scored(
    sandbox: Sandbox, entry: str, kinds: list[str], isolation: Isolation = Isolation.ROW, limits: Limits | None = None
) -> list[Result]:
    program = Program({"planted.py": SOURCE.encode()}, f"planted.py::{entry}")
    rows = [{"kind": kind} for kind in kinds]
    return sandbox.evaluate(program, rows, limits=limits or limits_of(sandbox), isolation=isolation)


def test_every_planted_end_gets_its_status(sandbox: Sandbox) -> None:
    kinds = [status.value for status in Status if status not in (Status.LOAD_ERROR, Status.INFRA_ERROR)]
    if sandbox.tier is Tier.NONE:
        kinds.remove("pids")  # without a user of its own a jail's processes are counted with everybody's
    results = scored(sandbox, "planted", kinds)
    assert [result.status.value for result in results] == kinds
    assert {result.tier for result in results} == {sandbox.tier}
    assert [result.score is not None for result in results] == [kind in ("ok", "invalid") for kind in kinds]


def test_a_fault_in_a_group_leaves_its_neighbours_their_scores(sandbox: Sandbox) -> None:
    results = scored(sandbox, "planted", ["ok", "crash", "ok", "error"], Isolation.GROUP)
    assert [result.status.value for result in results] == ["ok", "crash", "ok", "error"]


def test_what_is_random_depends_on_the_row_alone(sandbox: Sandbox) -> None:
    alone = [result.score for result in scored(sandbox, "drawn", ["a", "b", "a"])]
    together = [result.score for result in scored(sandbox, "drawn", ["a", "b", "a"], Isolation.BATCH)]
    assert alone == together
    assert alone[0] == alone[2] != alone[1]


def test_rows_share_nothing_when_isolated(sandbox: Sandbox) -> None:
    assert [r.score and r.score.score for r in scored(sandbox, "remembers", ["a"] * 4)] == [1.0] * 4
    assert [r.score and r.score.score for r in scored(sandbox, "kept", ["a"] * 4)] == [1.0] * 4


def test_a_row_that_waits_ends_at_its_wall_limit(sandbox: Sandbox) -> None:
    (result,) = scored(sandbox, "sleeps", ["a"], limits=replace(limits_of(sandbox), wall_seconds=1.0))
    assert (result.status, result.message) == (Status.TIMEOUT, "longer than 1 s")


def test_a_process_left_behind_does_not_hold_the_row_up(sandbox: Sandbox) -> None:
    results = scored(sandbox, "leaves", ["a", "b"])
    assert [result.status for result in results] == [Status.OK, Status.OK]
    assert max(result.seconds for result in results) < limits_of(sandbox).wall_seconds


def test_a_source_that_does_not_compile_is_a_load_error(sandbox: Sandbox) -> None:
    program = Program({"a.py": b"def f(row) return 1"}, "a.py::f")
    (result,) = sandbox.evaluate(program, [{}], limits=limits_of(sandbox))
    assert result.status is Status.LOAD_ERROR
    assert "SyntaxError" in result.message
