"""A worker that trains nothing: reads run.json, and reports, checkpoints and hands over as the real one does.

Run by the gateway's tests as `python tests/data/fake_worker.py RUN_FOLDER`. The job's displayName says how it behaves:
`crash` (ends without a word), `slow` (runs until it is stopped), `twice` (pauses half-way, ends when started again),
`paced` (takes a moment over everything), `refuse` (says that the job cannot be run), and, until it is started again
after step 2: `hang` (says that it hangs, status 76), `still` (stops itself, as SIGSTOP does), `flaky` (dies of a
signal). `attempts.log` says when a worker began and ended, or found another at work.
"""

import fcntl
import json
import os
import signal
import struct
import sys
import time
from pathlib import Path

from trainer import checkpoints
from trainer.launch.beat import beating

FOLDER = Path(sys.argv[1])
SPEC = json.loads((FOLDER / "run.json").read_text())
JOURNAL = FOLDER / "sync.jsonl"
ADAPTER = {"r": 8, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "tiny", "peft_type": "LORA"}


def say(kind: str, body: dict) -> None:
    seq = 1 + (len(JOURNAL.read_bytes().splitlines()) if JOURNAL.exists() else 0)
    with JOURNAL.open("a") as stream:
        stream.write(json.dumps({"seq": seq, "time": "", "kind": kind, "body": body}) + "\n")


def note(what: str) -> None:
    with (FOLDER / "attempts.log").open("a") as stream:
        stream.write(f"{what} {os.getpid()}\n")


def state(name: str, message: str = "", code: str = "OK") -> None:
    say("state", {"state": f"JOB_STATE_{name}", "code": code, "message": message})


def falter(how: str) -> None:
    """Fail in the midst of a run."""
    if how == "hang":
        state("FAILED", "watchdog: a step has taken too long", "DEADLINE_EXCEEDED")
        sys.exit(76)
    if how in ("still", "flaky"):
        os.kill(os.getpid(), signal.SIGSTOP if how == "still" else signal.SIGSEGV)


def write_adapter(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))


def fill(weights: Path, training_state: Path) -> None:
    write_adapter(weights)
    (training_state / "optimizer.json").write_text("{}")


def main() -> int:
    behaviour = SPEC["job"].get("displayName", "")
    print("fake worker: key", "set" if os.environ.get("WANDB_API_KEY") else "not set", flush=True)
    state("VALIDATING")
    if behaviour == "crash":
        print("something broke badly", file=sys.stderr, flush=True)
        return 3
    if behaviour == "refuse":
        state("FAILED", "the rows are no rows", "INVALID_ARGUMENT")
        return 2
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))  # whoever reads that it runs may stop it at once
    state("RUNNING")
    say("log", {"line": "hello from the worker"})
    while behaviour == "slow" and not stopped:
        time.sleep(0.02)
    if stopped:
        state("PAUSED", "asked to stop")
        return 75
    pause = 0.15 if behaviour == "paced" else 0.0
    first = not (FOLDER / "checkpoints").exists()
    again = (FOLDER / "attempts.log").read_text().count("began") > 1
    for step in (1, 2) if first else (2, 3):
        say("metrics", {"step": step, "train/loss": 1.0 / step})
        say("progress", {"percent": step * 25, "epoch": 0, "inputTokens": 10 * step})
        time.sleep(pause)
    if not again:
        falter(behaviour)
    made = checkpoints.write(FOLDER / "checkpoints", 1 if first else 3, lora=True, cursor={}, fill=fill)
    say("checkpoint", {"id": made.path.name, "step": made.step, "types": list(made.types), "promotable": True,
                       "path": str(made.path)})  # fmt: skip
    if behaviour == "twice" and first:
        state("PAUSED", "half-way")
        return 75
    time.sleep(pause)
    state("WRITING_RESULTS")
    write_adapter(FOLDER / "model")
    details = {"baseModel": "tiny", "r": 8, "targetModules": ["q_proj", "v_proj"]}
    say("model", {"id": (SPEC["job"].get("outputModel") or SPEC["id"]).rsplit("/", 1)[-1], "kind": "HF_PEFT_ADDON",
                  "path": str(FOLDER / "model"), "baseModel": "tiny", "peftDetails": details,
                  "contextLength": 2048})  # fmt: skip
    say("progress", {"percent": 100, "epoch": 1})
    state("COMPLETED", "done")
    return 0


with (FOLDER / "worker.lock").open("ab") as lock:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note("refused")
        sys.exit("another worker is at work")
    note("began")
    with beating(FOLDER):
        status = main()
    note("ended")
sys.exit(status)
