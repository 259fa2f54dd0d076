"""A stage that hangs is named in hang.txt and in the log within its deadline, and by policy ends the process."""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.loop_kit import VOCABULARY, log, make_spec, run
from trainer.engine.toy import ToyEngine
from trainer.launch.status import EXIT_HUNG
from trainer.loops.watchdog import EVALUATION, HANG_FILE, SAVE, STEP, Watchdog
from trainer.runs import WatchdogSettings

PATIENCE = 60.0  # seconds that a busy machine may need for what comes at once elsewhere


class Heard(list[str]):
    """What the watchdog said; `first` is set with the first of it, and a stage that waits for it hangs until then."""

    def __init__(self) -> None:
        super().__init__()
        self.first = threading.Event()

    def say(self, line: str) -> None:
        self.append(line)
        self.first.set()


def test_a_hung_stage_is_named_with_all_stacks_once_its_deadline_is_over(tmp_path):
    heard = Heard()
    watchdog = Watchdog(WatchdogSettings(step_seconds=0.2), tmp_path, say=heard.say)
    with watchdog.stage(STEP):
        assert heard.first.wait(PATIENCE)  # it is said while the stage goes on
        time.sleep(0.5)
    watchdog.close()
    text = (tmp_path / HANG_FILE).read_text()
    told = re.match(r"a step has taken (\d+\.\d) s, its deadline is 0\.2 s; it is waited for\n", text)
    assert told and float(told[1]) >= 0.2
    assert "test_a_hung_stage_is_named" in text and text.count("Thread 0x") >= 1  # this thread's stack, and others'
    (line,) = heard  # once, however long it goes on
    assert "a step" in line and HANG_FILE in line


def test_stages_in_time_and_one_without_a_deadline_are_left_alone(tmp_path):
    heard = Heard()
    watchdog = Watchdog(WatchdogSettings(step_seconds=2.0, save_seconds=0), tmp_path, say=heard.say)
    for _ in range(21):  # together they take longer than one may
        with watchdog.stage(STEP):
            time.sleep(0.1)
    with watchdog.stage(SAVE):
        time.sleep(0.4)
    watchdog.close()
    assert not heard and not (tmp_path / HANG_FILE).exists()


def test_a_stage_within_another_has_the_time(tmp_path):
    heard = Heard()
    watchdog = Watchdog(WatchdogSettings(evaluation_seconds=2.0, save_seconds=0.2), tmp_path, say=heard.say)
    with watchdog.stage(EVALUATION):
        with watchdog.stage(SAVE):
            assert heard.first.wait(PATIENCE)
            time.sleep(2.1)  # longer than an evaluation may take
        time.sleep(0.1)
    watchdog.close()
    assert [line.split(" has")[0] for line in heard] == ["watchdog: a save"]


def test_a_reporter_that_hangs_too_does_not_keep_it_from_ending(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.loops.watchdog._LAST_WORDS_SECONDS", 0.1)
    ended, has_ended, over = list[int](), threading.Event(), threading.Event()

    def end(status: int) -> None:
        ended.append(status)
        has_ended.set()

    def say(line: str) -> None:
        over.wait()

    watchdog = Watchdog(WatchdogSettings(step_seconds=0.1, policy="stop"), tmp_path, say=say, end=end)
    with watchdog.stage(STEP):
        assert has_ended.wait(PATIENCE)  # while what it says is not heard yet
    over.set()
    watchdog.close()
    assert ended == [EXIT_HUNG] and (tmp_path / HANG_FILE).exists()


@pytest.mark.parametrize(("policy", "status"), [("warn", 0), ("stop", EXIT_HUNG)])
def test_a_real_process_goes_on_or_ends_by_policy(tmp_path, policy, status):
    program = (
        "import sys, threading\nfrom pathlib import Path\nfrom trainer.loops.watchdog import READING, Watchdog\n"
        "from trainer.runs import WatchdogSettings\nheard, never = threading.Event(), threading.Event()\n"
        "def say(line):\n    print(line)\n    heard.set()\n"
        f"dog = Watchdog(WatchdogSettings(reading_seconds=0.2, policy={policy!r}), Path(sys.argv[1]), say=say)\n"
        f"with dog.stage(READING):\n    {'heard' if policy == 'warn' else 'never'}.wait({PATIENCE})\n"
        "assert 'torch' not in sys.modules\n"
    )
    ended = subprocess.run(
        [sys.executable, "-u", "-c", program, str(tmp_path)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2], timeout=2 * PATIENCE,
    )  # fmt: skip
    assert ended.returncode == status, ended.stderr
    assert "reading the rows has taken" in ended.stdout
    assert "<string>" in (tmp_path / HANG_FILE).read_text()


def test_the_loop_names_its_slow_step(tmp_path):
    heard = Heard()

    class Slow(ToyEngine):
        def optim_step(self, model, params, **more):
            if self._models[model].steps == 3:
                assert heard.first.wait(PATIENCE)
            return super().optim_step(model, params, **more)

    (tmp_path / "run").mkdir()
    watchdog = Watchdog(WatchdogSettings(step_seconds=2.0), tmp_path / "run", say=heard.say)
    outcome = run(tmp_path / "run", make_spec(), engine=Slow(VOCABULARY), stage=watchdog.stage)
    watchdog.close()
    assert outcome.cursor.step == 15 and len(heard) == 1 and "optim_step" in (tmp_path / "run" / HANG_FILE).read_text()
    assert "watchdog" not in log(tmp_path / "run")
