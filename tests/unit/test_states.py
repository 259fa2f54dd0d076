"""No job makes an illegal move, whatever clients, workers, schedulers and crashes do at once."""

from collections import Counter
from pathlib import Path

import pytest

from tests.gateway_kit import opened
from tests.states_kit import World, checked, moves


def test_two_thousand_operations_from_eight_threads_with_crashes(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (_, gateway):
        world = World(gateway, seed=1)
        world.run(2_000)
        world.close()
        assert world.breaches() == []
        seen = moves(gateway)
    assert world.workers.started >= 3  # how many depends on who is quicker; that there is a history does not
    assert len(seen) >= 10 and seen["PENDING -> VALIDATING"]


@pytest.mark.parametrize(
    ("row", "resumes", "says"),
    [
        (("j", "JOB_STATE_COMPLETED", "JOB_STATE_RUNNING", 1), 0, "COMPLETED -> RUNNING"),
        (("j", "JOB_STATE_FAILED", "JOB_STATE_PENDING", 1), 0, "left its end 1 times, 0 resumes"),
        (("j", "JOB_STATE_RE_QUEUEING", "JOB_STATE_PENDING", 0), 0, "token 0 after 1"),
        (("j", "JOB_STATE_FAILED", "JOB_STATE_PENDING", 1), 1, ""),
    ],
)
def test_the_checker_finds_what_must_not_be(row: tuple[str, str, str, int], resumes: int, says: str) -> None:
    found = checked([("j", "JOB_STATE_PENDING", "JOB_STATE_PENDING", 1), row], Counter({"j": resumes}))
    assert says in "".join(found) and bool(found) == bool(says)
