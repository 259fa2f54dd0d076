"""Every hostile evaluator is contained, as whoever runs the tests and as an ordinary user, and the next one scores."""

import json
import os
from collections.abc import Iterable

import pytest

from evaluators.protocol import Tier
from evaluators.sandbox import Sandbox, bubblewrap, gvisor, landlock
from tests.hostile import ordinary
from tests.hostile.cases import CASES
from tests.hostile.suite import CANARY_SECONDS, left_behind, play, world

_QUICK, _QUICKEST = 4, 20  # one case in so many
_needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user, which only root can")


def escapes(records: Iterable[dict]) -> list[str]:
    """What got out, in words."""
    return [f"{record['case']}: {wrong}" for record in records for wrong in record["wrong"]]


def played_here(step: int, tier: str = "auto", launcher: str | None = None) -> list[dict]:
    before = set(left_behind())
    with world() as decoys:
        with Sandbox(tier, launcher=launcher) as sandbox:
            records = list(play(CASES[::step], sandbox, decoys))
        return [*records, {"case": "all", "wrong": sorted(set(left_behind()) - before), "canary": 0.0}]


def played_as_an_ordinary_user(step: int, tier: str = "auto", launcher: str = "auto") -> list[dict]:
    done = ordinary.python([str(ordinary.ROOT / "tests/hostile/suite.py"), str(step), tier, launcher], timeout=1800)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_suite_is_large_and_its_cases_are_told_apart() -> None:
    names = [f"{case.group}/{case.name}" for case in CASES]
    assert len(names) == len(set(names)) >= 150
    assert {case.group for case in CASES} == {"resources", "files", "network", "kernel", "state", "result", "processes"}


def test_every_fourth_case_is_contained() -> None:
    records = played_here(_QUICK)
    assert escapes(records) == []
    assert len(records) == len(CASES[::_QUICK]) + 1
    assert max(record["canary"] for record in records) < CANARY_SECONDS


@_needs_root
def test_some_cases_are_contained_as_an_ordinary_user() -> None:
    records = played_as_an_ordinary_user(_QUICKEST)
    assert escapes(records) == []
    assert len(records) == len(CASES[::_QUICKEST]) + 1
    assert {record["tier"] for record in records[:-1]} == {Tier.STANDARD}


@pytest.mark.slow
def test_all_cases_are_contained() -> None:
    records = played_here(1)
    assert escapes(records) == []
    assert max(record["canary"] for record in records) < CANARY_SECONDS


@pytest.mark.slow
@_needs_root
def test_all_cases_are_contained_as_an_ordinary_user() -> None:
    records = played_as_an_ordinary_user(1)
    assert escapes(records) == []
    assert len(records) == len(CASES) + 1
    assert max(record["canary"] for record in records) < CANARY_SECONDS


@pytest.mark.slow
@_needs_root
@pytest.mark.skipif(landlock.abi() < 6, reason=f"Landlock ABI {landlock.abi()}; an ordinary user needs 6")
def test_all_cases_are_contained_without_namespaces() -> None:
    records = played_as_an_ordinary_user(1, Tier.LANDLOCK)
    assert escapes(records) == []
    assert {record["tier"] for record in records[:-1]} == {Tier.LANDLOCK}


@pytest.mark.slow
@pytest.mark.skipif(bool(bubblewrap.missing()), reason=bubblewrap.missing())
def test_all_cases_are_contained_by_bubblewrap() -> None:
    records = played_here(1, Tier.STANDARD, "bwrap")
    assert escapes(records) == []
    assert max(record["canary"] for record in records) < CANARY_SECONDS


@pytest.mark.slow
@_needs_root
@pytest.mark.skipif(bool(bubblewrap.missing()), reason=bubblewrap.missing())
def test_all_cases_are_contained_by_bubblewrap_as_an_ordinary_user() -> None:
    records = played_as_an_ordinary_user(1, Tier.STANDARD, "bwrap")
    assert escapes(records) == []
    assert len(records) == len(CASES) + 1


@pytest.mark.slow
@pytest.mark.skipif(bool(gvisor.missing()), reason=gvisor.missing())
def test_all_cases_are_contained_by_a_kernel_of_their_own() -> None:
    records = played_here(1, Tier.STRONG)
    assert escapes(records) == []
    assert {record["tier"] for record in records[:-1]} == {Tier.STRONG}


@pytest.mark.slow
@_needs_root
@pytest.mark.skipif(bool(gvisor.missing()), reason=gvisor.missing())
def test_some_cases_are_contained_by_a_kernel_of_their_own_as_an_ordinary_user() -> None:
    records = played_as_an_ordinary_user(_QUICK, Tier.STRONG)
    assert escapes(records) == []
    assert {record["tier"] for record in records[:-1]} == {Tier.STRONG}
