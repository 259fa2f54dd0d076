"""From raw bytes to a status: the host believes nothing that is not exactly what the child writes."""

import pytest

from evaluators.protocol import Limits, Score, Status
from evaluators.sandbox.jail import Raw
from evaluators.sandbox.verdict import judge
from evaluators.sandbox.wire import ACKNOWLEDGED, CANNOT_FORK, LATE, OUTPUT_FLOOD, RESULT_FLOOD

NONCE = b"0123456789abcdef"
LIMITS = Limits()


def raw(result: bytes, *, flags: int = ACKNOWLEDGED, wait_status: int = 0, cpu: float = 0.0, oom: bool = False) -> Raw:
    return Raw(flags, wait_status, 0.1, cpu, result, b"", b"", NONCE, oom)


def answer(*lines: bytes) -> bytes:
    return (
        b"A" + b"".join(NONCE + b" %d " % place + line + b"\n" for place, line in enumerate(lines)) + NONCE + b" end\n"
    )


def status(found: Raw, rows: int = 1) -> Status:
    return judge(found, rows, LIMITS)[0].status


def test_a_good_answer() -> None:
    found = judge(raw(answer(b'ok {"score":0.5}', b'error {"type":"E","message":"E: x"}')), 2, LIMITS)
    assert (found[0].status, found[0].score) == (Status.OK, Score(0.5))
    assert (found[1].status, found[1].message, found[1].details) == (Status.ERROR, "E: x", {"type": "E"})


@pytest.mark.parametrize(
    "text",
    [b'{"score":NaN}', b'{"score":1e999}', b'{"score":true}', b'{"score":1,"score":2}', b"[1]", b"1", b"", b"{}",
     b'{"score":' * 50, b'{"score":1}}', b'{"score":"1"}'],
)  # fmt: skip
def test_scores_that_are_none(text: bytes) -> None:
    assert status(raw(answer(b"ok " + text))) is Status.BAD_RESULT


@pytest.mark.parametrize(
    "result",
    [
        answer(b'ok {"score":1}').replace(NONCE, b"f" * 16, 1),  # another nonce in the line
        answer(b'ok {"score":1}', b'ok {"score":1}'),  # a line too many
        answer().replace(b"A", b"Ax\n"),  # none at all
        answer(b'perfect {"score":1}'),  # no such status
        answer(b'infra_error {"message":"ours"}'),  # only the host says this
        b"x" + answer(b'ok {"score":1}'),
        answer(b'ok {"score":1}').replace(b" 0 ", b" 1 "),
    ],
)
def test_lines_that_the_child_does_not_write(result: bytes) -> None:
    assert status(raw(result)) is Status.BAD_RESULT


def test_without_the_end_mark_nothing_counts() -> None:
    whole = answer(b'ok {"score":1}')
    assert status(raw(whole[:-1])) is Status.NO_RESULT
    assert status(raw(whole + b"more")) is Status.NO_RESULT
    assert status(raw(b"A")) is Status.NO_RESULT


def test_the_most_specific_cause_wins() -> None:
    good = answer(b'ok {"score":1}')
    assert status(raw(good, wait_status=11)) is Status.CRASH
    assert status(raw(good, oom=True)) is Status.OOM
    assert status(raw(b"A", wait_status=9, cpu=2.0)) is Status.TIMEOUT  # two seconds are the limit
    assert status(raw(b"A", wait_status=9, cpu=0.1)) is Status.CRASH
    assert status(raw(b"A", wait_status=24, cpu=1.9)) is Status.TIMEOUT  # SIGXCPU
    assert status(raw(b"A", wait_status=24, cpu=0.1)) is Status.CRASH  # which it sent itself
    assert status(raw(good, flags=ACKNOWLEDGED | LATE)) is Status.TIMEOUT
    assert status(raw(good, flags=ACKNOWLEDGED | OUTPUT_FLOOD | LATE)) is Status.OUTPUT_FLOOD
    assert status(raw(good, flags=ACKNOWLEDGED | RESULT_FLOOD)) is Status.RESULT_FLOOD
    assert status(raw(good, flags=0)) is Status.INFRA_ERROR
    assert status(raw(b"", flags=CANNOT_FORK)) is Status.INFRA_ERROR
