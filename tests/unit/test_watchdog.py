"""A stage that hangs is named in hang.txt and in the log within its deadline, and by policy ends the process."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.loop_kit import VOCABULARY, log, make_spec, run
from trainer.engine.toy import ToyEngine
from trainer.loops.watchdog import EVALUATION, EXIT_HUNG, HANG_FILE, SAVE, STEP, Watchdog
from trainer.runs import WatchdogSettings


def test_a_hung_stage_is_named_with_all_stacks_within_its_deadline(tmp_path):
    heard: list[tuple[float, str]] = []
    watchdog = Watchdog(
        WatchdogSettings(step_seconds=0.2), tmp_path, say=lambda line: heard.append((time.monotonic(), line))
    )
    started = time.monotonic()
    with watchdog.stage(STEP):
        time.sleep(0.6)
    watchdog.close()
    text = (tmp_path / HANG_FILE).read_text()
    assert text.startswith("a step has taken 0.") and "its deadline is 0.2 s; it is waited for" in text
    assert "test_a_hung_stage_is_named" in text and text.count("Thread 0x") >= 1  # this thread's stack, and others'
    ((said, line),) = heard  # once, however long it goes on
    assert said - started < 0.6 and "a step" in line and HANG_FILE in line


def test_a_stage_in_time_and_one_without_a_deadline_are_left_alone(tmp_path):
    heard: list[str] = []
    watchdog = Watchdog(WatchdogSettings(step_seconds=0.3, save_seconds=0), tmp_path, say=heard.append)
    for _ in range(4):
        with watchdog.stage(STEP):
            time.sleep(0.1)
    with watchdog.stage(SAVE):
        time.sleep(0.4)
    watchdog.close()
    assert not heard and not (tmp_path / HANG_FILE).exists()


def test_a_stage_within_another_has_the_time(tmp_path):
    heard: list[str] = []
    watchdog = Watchdog(WatchdogSettings(evaluation_seconds=0.3, save_seconds=0.2), tmp_path, say=heard.append)
    with watchdog.stage(EVALUATION):
        time.sleep(0.1)
        with watchdog.stage(SAVE):
            time.sleep(0.4)
        time.sleep(0.1)
    watchdog.close()
    assert [line.split(" has")[0] for line in heard] == ["watchdog: a save"]


def test_a_reporter_that_hangs_too_does_not_keep_it_from_ending(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.loops.watchdog._LAST_WORDS_SECONDS", 0.1)
    ended: list[int] = []
    watchdog = Watchdog(
        WatchdogSettings(step_seconds=0.1, policy="stop"), tmp_path, say=lambda line: time.sleep(1), end=ended.append
    )
    with watchdog.stage(STEP):
        time.sleep(0.5)
    watchdog.close()
    assert ended == [EXIT_HUNG] and (tmp_path / HANG_FILE).exists()


@pytest.mark.parametrize(("policy", "status"), [("warn", 0), ("stop", EXIT_HUNG)])
def test_a_real_process_goes_on_or_ends_by_policy(tmp_path, policy, status):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom trainer.loops.watchdog import READING, Watchdog\n"
        "from trainer.runs import WatchdogSettings\n"
        f"dog = Watchdog(WatchdogSettings(reading_seconds=0.2, policy={policy!r}), Path(sys.argv[1]), say=print)\n"
        "with dog.stage(READING):\n    time.sleep(1)\nassert 'torch' not in sys.modules\n"
    )
    ended = subprocess.run(
        [sys.executable, "-u", "-c", program, str(tmp_path)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2], timeout=60,
    )  # fmt: skip
    assert ended.returncode == status, ended.stderr
    assert "reading the rows has taken" in ended.stdout
    assert "time.sleep" in (tmp_path / HANG_FILE).read_text() or "<string>" in (tmp_path / HANG_FILE).read_text()


def test_the_loop_names_its_slow_step(tmp_path):
    class Slow(ToyEngine):
        def optim_step(self, model, params, **more):
            if self._models[model].steps == 3:
                time.sleep(0.5)
            return super().optim_step(model, params, **more)

    (tmp_path / "run").mkdir()
    heard: list[str] = []
    watchdog = Watchdog(WatchdogSettings(step_seconds=0.2), tmp_path / "run", say=heard.append)
    outcome = run(tmp_path / "run", make_spec(), engine=Slow(VOCABULARY), stage=watchdog.stage)
    watchdog.close()
    assert outcome.cursor.step == 15 and len(heard) == 1 and "optim_step" in (tmp_path / "run" / HANG_FILE).read_text()
    assert "watchdog" not in log(tmp_path / "run")
