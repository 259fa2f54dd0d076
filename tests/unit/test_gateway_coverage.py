"""The table of what each operation of the contract comes to, held against the code and the README."""

import re

import pytest

from tests.command_line import ROOT
from trainer.__main__ import main
from trainer.gateway import coverage
from trainer.gateway.contract import load
from trainer.gateway.resources.table import OPERATIONS


def test_every_operation_has_its_row() -> None:
    rows = coverage.rows()
    assert {row.operation.id for row in rows} == set(load().operations)
    for row in rows:
        assert (row.status == "refused") == (row.operation.id not in OPERATIONS)
        assert bool(row.note) == (row.status in ("partial", "refused")), row.operation.id


def test_the_tables_words_are_about_something() -> None:
    rows = coverage.rows()
    assert set(coverage.PARTIAL) <= set(OPERATIONS)
    assert set(coverage.REFUSED) == {row.family for row in rows if row.status == "refused"}


def test_standard_methods_are_told_from_behaviour() -> None:
    found = {row.operation.id: row.status for row in coverage.rows()}
    assert found["Gateway_GetDataset"] == "standard"
    assert found["Gateway_CreateModel"] == "behaviour"
    assert found["Gateway_PrepareModel"] == "partial"
    assert found["Gateway_CreateDeployment"] == "refused"
    assert sum(coverage.totals(coverage.rows()).values()) == len(load().operations)


def test_the_readme_has_the_table() -> None:
    shown = coverage.in_readme((ROOT / "README.md").read_text(encoding="utf-8"))
    if not shown:
        pytest.skip("the README has no markers for the table")
    assert shown == coverage.markdown(), "python -m trainer gateway coverage --markdown prints it anew"


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", "coverage"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"refused +Gateway_CreateDeployment +serving", printed)
    assert printed.endswith("refused\n")
    assert main(["gateway", "coverage", "--markdown"]) == 0
    assert coverage.in_readme(f"before\n{capsys.readouterr().out}after") == coverage.markdown()
    assert main(["gateway", "dance"]) == 2
