"""The time that is estimated comes with how far off it may be: by what is known, and by what else the machine does."""

import pytest

from trainer.estimate import between
from trainer.machine import Machine, busy
from trainer.throughput import Measured, Workshop, speed

AT = Workshop(device="cpu", parameters=1000, mode="lora", dtype="float32", recompute=False)
HERE = Machine("cpu", "cpu", cores=2, threads=1, memory=1, memory_free=1, held=0)


def known(*rates: float, where: Workshop = AT) -> list[Measured]:
    return [
        Measured(where=where, tokens_per_step=100, tokens_per_second=rate, startup_seconds=1, other_ratio=1)
        for rate in rates
    ]


@pytest.mark.parametrize(
    ("runs", "fastest", "slowest"),
    [
        (known(50, 100, 200), 0.5, 2.0),  # the median's seconds over the fastest's, and the slowest's over the median's
        (known(99, 100, 101), 0.85, 1.2),  # three that agree still do not promise better than that
        (known(100), 0.7, 1.5),
        (known(100, where=AT.model_copy(update={"parameters": 500})), 0.5, 2.5),
        ([], 0.3, 3.0),
    ],
)
def test_the_spread_is_that_of_the_runs_it_comes_from(runs: list[Measured], fastest: float, slowest: float) -> None:
    found = speed(AT, 100, known=runs, threads=1, gpu=False)
    assert (found.fastest, found.slowest) == pytest.approx((fastest, slowest))


def test_a_busy_machine_makes_a_run_on_its_cpu_longer_and_one_on_a_gpu_not() -> None:
    rate = speed(AT, 100, known=known(50, 100, 200), threads=1, gpu=False)
    assert between(rate, 60.0, HERE) == pytest.approx((30.0, 120.0))
    crowded = Machine(**{**HERE.__dict__, "busy": 2.5})
    assert between(rate, 60.0, crowded) == pytest.approx((30.0, 300.0))
    gpu = Machine(**{**crowded.__dict__, "device": "cuda"})
    assert between(rate, 60.0, gpu) == pytest.approx((30.0, 120.0))


def test_what_runs_here_is_counted_over_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.machine.os.getloadavg", lambda: (3.0, 0.0, 0.0))
    monkeypatch.setattr("trainer.machine.os.cpu_count", lambda: 2)
    assert busy(1) == 2.0
    assert busy(5) == 4.0
    monkeypatch.setattr("trainer.machine.os.getloadavg", lambda: (0.2, 0.0, 0.0))
    assert busy(1) == 1.0
