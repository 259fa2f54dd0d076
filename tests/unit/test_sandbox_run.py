"""The one-call form: how the function is called, what it may return, what becomes of everything else."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from evaluators import sandbox
from evaluators.protocol import Limits, Result, Score, Status

WIDE = Limits(wall_seconds=60.0, cpu_seconds=60.0)  # for a machine that is busy with others
ROW = {"messages": [{"role": "assistant", "content": "42"}], "ground_truth": "42", "extra": 3}


def run(source: str, entry: str, rows: Sequence[dict[str, Any]], limits: Limits = WIDE) -> list[Result]:
    return sandbox.run(source, entry, rows, limits)


def score(body: str, row: dict | None = None) -> float:
    (result,) = run(body, "f", [ROW if row is None else row])
    assert result.ok, (result.status, result.message)
    assert result.score is not None
    return result.score.score


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(messages, ground_truth): return float(messages[-1]['content'] == ground_truth)", 1.0),
        ("def f(messages, ground_truth=None, tools=None, **kwargs): return float('extra' in kwargs)", 1.0),
        ("def f(ground_truth): return len(ground_truth)", 2.0),
        ("def f(*, extra): return extra", 3.0),
        ("def f(row): return len(row)", 3.0),
        ("def f(sample, **kwargs): return len(sample) + len(kwargs)", 6.0),
        ("def f(**kwargs): return len(kwargs)", 3.0),
        ("class C:\n    def __call__(self, extra): return extra\nf = C()", 3.0),
        ("import functools\nf = functools.partial(lambda a, extra: a + extra, 1)", 4.0),
        ("import functools\ndef d(g):\n    @functools.wraps(g)\n    def h(*a, **k): return g(*a, **k)\n    return h\n"
         "@d\ndef f(extra): return extra", 3.0),
        ("async def f(extra):\n    import asyncio\n    await asyncio.sleep(0)\n    return extra", 3.0),
    ],
)  # fmt: skip
def test_the_entry_gets_what_its_signature_asks_for(source: str, expected: float) -> None:
    assert score(source) == expected


def test_returns_of_every_accepted_shape() -> None:
    sources = {
        "return 1": Score(1.0),
        "return {'score': 0.5, 'reason': 'why'}": Score(0.5, reason="why"),
        "return 0.5, {}": Score(0.5),
        "return type('R', (), {'score': 0.25, 'reason': 'r', 'is_score_valid': True, 'metrics': None})()":
            Score(0.25, reason="r"),
    }  # fmt: skip
    for line, expected in sources.items():
        (result,) = run(f"def f(row): {line}", "f", [{}])
        assert (result.status, result.score) == (Status.OK, expected)


def test_statuses_carry_what_happened() -> None:
    (error,) = run("def f(row): raise KeyError('gone')", "f", [{}])
    assert (error.status, error.message, error.details["type"]) == (Status.ERROR, "KeyError: 'gone'", "KeyError")
    (crash,) = run("import os\ndef f(row): os.kill(os.getpid(), 6)", "f", [{}])
    assert (crash.status, crash.details["signal"]) == (Status.CRASH, 6)
    (gone,) = run("import os\ndef f(row): os._exit(3)", "f", [{}])
    assert (gone.status, gone.details["exit_status"]) == (Status.NO_RESULT, 3)
    (missing,) = run("def g(row): return 1", "f", [{}])
    assert missing.status is Status.LOAD_ERROR
    assert "has no function 'f'" in missing.message
    (broken,) = run("import nothing_of_this_name\ndef f(row): return 1", "f", [{}])
    assert (broken.status, broken.details["type"]) == (Status.LOAD_ERROR, "ModuleNotFoundError")
    assert len(run("def f(row): raise ValueError('x' * 9999)", "f", [{}])[0].message) == 300


def test_what_was_printed_is_kept_apart() -> None:
    source = "import sys\ndef f(row):\n    print('seen')\n    print('warned', file=sys.stderr)\n    return 1"
    (result,) = run(source, "f", [{}])
    assert (result.stdout, result.details["stderr"]) == ("seen\n", "warned\n")
    limits = replace(WIDE, stdout_kept_bytes=10, stdout_bytes=1000)
    (cut,) = run("def f(row):\n    print('x' * 500)\n    return 1", "f", [{}], limits)
    assert (cut.status, cut.stdout) == (Status.OK, "x" * 10)


def test_cpu_time_alone_ends_a_row() -> None:
    limits = replace(WIDE, cpu_seconds=1.0)
    (result,) = run("def f(row):\n    while True: pass", "f", [{}], limits)
    assert (result.status, result.message) == (Status.TIMEOUT, "more than 1 s of CPU time")


def test_rows_that_are_not_json_are_the_callers_mistake() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        run("def f(row): return 1", "f", [{"a": object()}])


def test_no_rows_no_results() -> None:
    assert sandbox.run("def f(row): return 1", "f", []) == []
