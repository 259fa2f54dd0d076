"""What a kill costs: wherever it comes, at most one checkpoint interval and the step it came in are made again."""

from pathlib import Path
from typing import Any

import pytest

from tests.loop_kit import VOCABULARY, make_spec, run
from trainer import history
from trainer.engine.toy import ToyEngine

STEPS = 15  # of the run that loop_kit makes


class Killed(Exception):
    pass


class Mortal(ToyEngine):
    """Dies in its optimizer step number `last`, before or after it."""

    def __init__(self, last: int, *, after: bool) -> None:
        super().__init__(VOCABULARY)
        self.left, self.after = last, after

    def optim_step(self, *arguments: Any, **keywords: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        result = super().optim_step(*arguments, **keywords)
        if self.left == 0:
            raise Killed
        return result


def made(folder: Path) -> list[int]:
    """The steps in the order in which they were made, over both attempts."""
    events = history.events(folder)
    return [one.body["step"] for one in events if one.kind == "metrics" and "loss" in one.body]


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("after", [False, True])
def test_at_most_an_interval_and_a_step_are_made_again(tmp_path: Path, interval: int, after: bool) -> None:
    spec = make_spec(train={"checkpoint_every_steps": interval})
    for last in range(1, STEPS + 1):
        folder = tmp_path / f"run-{last}"
        with pytest.raises(Killed):
            run(folder, spec, engine=Mortal(last, after=after))
        before = len(made(folder))
        assert before == last - 1
        run(folder, spec)
        steps = made(folder)
        assert steps[-1] == STEPS
        again = last - steps[before] + 1  # the step it died in had begun
        assert 1 <= again <= interval + 1
