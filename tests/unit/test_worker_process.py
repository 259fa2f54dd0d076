"""The worker as a real process: SIGTERM, SIGKILL, a full disk; what it says, how it ends, and that it ends the same."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts import prove_resume
from scripts.prove_resume import differences, make_run, start
from tests.crashing_disk import FullDisk, QuickDisk
from trainer import checkpoints, history
from trainer.attempt import EXIT_DONE, EXIT_PAUSED, EXIT_REFUSED, Worker
from trainer.jobs import JobState
from trainer.launch import here
from trainer.runs import RunSpec

GRACE = 300.0  # seconds; a machine that is busy needs many for a worker's start alone
ROOT = Path(__file__).parents[2]
LORA = prove_resume.JOBS["lora by tokens"]
# The real worker, which stands still (SIGSTOP) before its fourth optimizer step, so that it cannot be too quick.
STANDS = """
import os, signal, sys
from pathlib import Path
from scripts import prove_resume
signals = iter([signal.SIGSTOP])
prove_resume.die = lambda: [os.kill(os.getpid(), one) for one in signals]
sys.exit(prove_resume.be_victim(Path(sys.argv[1]), "optim_step:4:before"))
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see what a process does")


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.jsonl"
    rows = prove_resume.shipped("datasets/quickstart/eval.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:24]))
    return path


@pytest.fixture
def signals() -> Iterator[None]:
    """The worker listens to signals; afterwards they are heard as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def in_process(folder: Path, **more) -> int:
    return Worker(RunSpec.load(folder), folder, **more).run()


def last_state(folder: Path) -> dict:
    return [event.body for event in history.events(folder) if event.kind == "state"][-1]


@contextmanager
def ending(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """The process, killed if it has not ended when the block does."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def start_standing(folder: Path) -> subprocess.Popen:
    """A worker that stands still in its fourth step, as soon as it does."""
    process = here.start(
        folder, env={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, log=folder / "worker.log",
        command=(sys.executable, "-c", STANDS),
    )  # fmt: skip
    stat = Path(f"/proc/{process.pid}/stat")
    while process.poll() is None and stat.read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    return process


@needs_proc
def test_two_sigterms_pause_within_the_grace_and_the_run_ends_as_if_nothing_had_been(tmp_path, held_out, signals):
    whole, parts = make_run(tmp_path / "whole", LORA, held_out), make_run(tmp_path / "parts", LORA, held_out)
    assert in_process(whole) == EXIT_DONE
    with ending(start_standing(parts)) as process:
        process.terminate()
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
        process.terminate()
        assert process.wait(GRACE) == EXIT_PAUSED
    said = last_state(parts)
    assert said["state"] == JobState.PAUSED and said["code"] == "OK" and "all saved" in said["message"]
    found = checkpoints.newest(parts / "checkpoints", damaged=pytest.fail)
    assert found is not None and found.step == 4
    assert in_process(parts) == EXIT_DONE
    assert differences(whole, parts) == []


def test_a_full_disk_pauses_the_job_and_says_what_to_do(tmp_path, held_out, signals):
    folder = make_run(tmp_path / "run", LORA, held_out)
    (folder / "checkpoints").mkdir()
    assert in_process(folder, disk=FullDisk(folder / "checkpoints", 20)) == EXIT_PAUSED  # in the second save
    said = last_state(folder)
    assert (said["state"], said["code"]) == (JobState.PAUSED, "RESOURCE_EXHAUSTED")
    for words in (str(folder / "checkpoints"), "no room for a checkpoint of about", "1,234 are free", "resume the run"):
        assert words in said["message"]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-2"]
    assert not (folder / ".reserve").exists() and not (folder / "error.txt").exists()
    assert in_process(folder, disk=QuickDisk()) == EXIT_DONE
    assert [event.body["step"] for event in history.events(folder) if event.kind == "checkpoint"][:2] == [2, 4]


def test_a_model_out_of_parity_is_not_handed_over(tmp_path, held_out, signals):
    class Broken(Worker):
        def _loop(self, engine, prepared, parity):
            object.__setattr__(parity, "bound", -1.0)  # no gap is below it; only from the hand-over on does it count
            loop = super()._loop(engine, prepared, parity)
            loop.compare = lambda cursor: (
                cursor if cursor.step == 0 else type(cursor)(**{**cursor.__dict__, "parity_broken": "the gap"})
            )
            return loop

    folder = make_run(tmp_path / "run", LORA, held_out)
    assert Broken(RunSpec.load(folder), folder).run() == EXIT_REFUSED
    said = last_state(folder)
    assert (said["state"], said["code"]) == (JobState.FAILED, "FAILED_PRECONDITION")
    assert "cannot become the model: the gap" in said["message"] and not (folder / "model").exists()


@pytest.mark.slow
@needs_proc
def test_the_worker_is_found_by_whoever_stops_it(tmp_path, held_out):
    folder = make_run(tmp_path / "run", LORA, held_out)
    with ending(start_standing(folder)) as process:
        worker = here.find(folder)
        assert worker is not None and worker.pid == process.pid
        goes_on = threading.Timer(1.0, process.send_signal, (signal.SIGCONT,))  # once it has been asked to stop
        goes_on.start()
        worker.stop(GRACE)
        goes_on.join()
        assert process.wait(GRACE) == EXIT_PAUSED and last_state(folder)["state"] == JobState.PAUSED


@pytest.mark.slow
def test_killed_at_random_it_ends_bit_equal_five_times(tmp_path):
    assert prove_resume.prove(5, seed=int(os.environ.get("PROVE_SEED", "1")), side_by_side=2, top=tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in prove_resume.JOBS if name.startswith("pairs")])
@pytest.mark.parametrize("at", ["forward:3:before", "forward:8:after", "optim_step:5:after", "disk:30:before"])
def test_pairs_killed_in_the_reference_pass_or_later_end_bit_equal(tmp_path, name, at):
    """Of 96 pairs by 16 the reference pass is forward 1 to 6, and of 24 held-out ones 7 and 8."""
    prove_resume.write_held_out(tmp_path)
    whole, parts = (
        make_run(tmp_path / part, prove_resume.JOBS[name], tmp_path / "held_out.jsonl") for part in ("whole", "parts")
    )
    assert start(whole).wait(GRACE) == EXIT_DONE
    assert start(parts, at).wait(GRACE) == -signal.SIGKILL
    if at.startswith("forward:3"):
        assert len(list(parts.glob("reference/*/*.safetensors"))) == 2 and not (parts / "checkpoints").exists()
    assert start(parts).wait(GRACE) == EXIT_DONE
    assert differences(whole, parts) == []


@pytest.mark.slow
def test_sigterm_pauses_at_twenty_moments(tmp_path, held_out, signals):
    whole = make_run(tmp_path / "whole", LORA, held_out)
    assert in_process(whole) == EXIT_DONE
    parts = make_run(tmp_path / "parts", LORA, held_out)
    pauses = 0
    while pauses < 20:
        process = start(parts)
        prove_resume._wait_for_training(parts, process)
        time.sleep(0.05 * (pauses % 5))
        process.terminate()
        status = process.wait(GRACE)
        if status == EXIT_DONE:
            assert apart_from_pauses(whole, parts) == []
            parts = make_run(tmp_path / f"parts-{pauses}", LORA, held_out)
            continue
        assert status == EXIT_PAUSED and last_state(parts)["state"] == JobState.PAUSED
        pauses += 1
    assert in_process(parts) == EXIT_DONE
    assert apart_from_pauses(whole, parts) == []


def apart_from_pauses(whole: Path, parts: Path) -> list[str]:
    """Differences but for checkpoints that are there, or were pushed out, because a pause saved one of its own."""
    return [words for words in differences(whole, parts) if not words.startswith("only one has checkpoints/")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=False).returncode
    ):
        pytest.skip("only root can mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_real_disk_fills_up_at_twenty_points(tmp_path, held_out, signals, small_disk):
    whole = make_run(tmp_path / "whole", LORA, held_out)
    assert in_process(whole) == EXIT_DONE
    needed = sum(path.stat().st_size for path in (whole / "checkpoints").rglob("*") if path.is_file())
    paused = 0
    for point in range(20):
        folder = make_run(small_disk / f"run-{point}", LORA, held_out)
        ballast = small_disk / "ballast"
        room = 200_000 + needed * point // 20
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        ballast.write_bytes(bytes(max(0, free - room)))
        status = in_process(folder)
        if status == EXIT_PAUSED:
            paused += 1
            said = last_state(folder)
            assert (said["state"], said["code"]) == (JobState.PAUSED, "RESOURCE_EXHAUSTED"), said
            assert "free some space" in said["message"]
            checkpoints.newest(folder / "checkpoints", damaged=pytest.fail)
        else:
            assert status == EXIT_DONE
        ballast.unlink()
        assert in_process(folder) == EXIT_DONE
        assert differences(whole, folder) == []
        subprocess.run(["rm", "-rf", str(folder)], check=True)
    print(f"{paused} of 20 paused, 20/20 ended equal")
    assert paused >= 15


def test_the_carve_out_is_the_same_rows_whatever_their_order(tmp_path):
    rows = prove_resume.shipped("datasets/quickstart/train.jsonl").read_text().splitlines(keepends=True)[:60]
    held = []
    for name, order in (("a", rows), ("b", rows[::-1]), ("c", rows[30:] + rows[:30])):
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(order))
        spec = RunSpec.load(
            make_run(tmp_path / name, ("data=quickstart", "job.lora_rank=4", "data.max_rows=null"), source)
        )
        held.append(_carved(spec, source))
    assert held[0] == held[1] == held[2] and len(held[0]) == 6


def _carved(spec: RunSpec, source: Path) -> set[bytes]:
    from trainer.loops.material import read_material

    document = json.loads(spec.model_dump_json())
    document["job"] = {"dataset": "rows", "base_model": "tiny", "eval_auto_carveout": True}
    document["inputs"]["train"] = {"name": "rows", "path": str(source), "sha256": None}
    document["inputs"]["evaluation"] = None
    found = read_material(RunSpec.model_validate(document))
    assert len(found.material.train) == 54
    return {datum.tokens.tobytes() for datum in found.material.held_out}


def hears_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@needs_proc
def test_sigterm_while_the_libraries_load_is_a_pause(tmp_path, held_out):
    folder = make_run(tmp_path / "run", LORA, held_out)
    with ending(start(folder)) as process:
        while process.poll() is None and not hears_sigterm(process.pid):
            time.sleep(0.01)  # python comes up; the tensor libraries take seconds to load
        process.terminate()
        assert process.wait(GRACE) == EXIT_PAUSED
    assert last_state(folder)["state"] == JobState.PAUSED
    assert not list(folder.glob("checkpoints/step-*"))
