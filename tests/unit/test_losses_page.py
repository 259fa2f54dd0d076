"""The page of the losses keeps up with the code."""

from pathlib import Path

from trainer.loss_specs import LOSS_SPECS

PAGE = Path(__file__).resolve().parents[2] / "docs/losses.md"


def test_the_page_has_a_row_for_every_loss_and_for_no_other() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("| loss | paper |")[2].partition("\n\n")[0]
    named = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert named == list(LOSS_SPECS)
