"""A worker that trains nothing, for the tests of sweeps: reports 10 steps of 100 tokens, and pauses when asked to.

The job's learning rate says how it ends: 0.5 fails, 0.25 dies without a word, else its held-out loss is the rate.
At 0.125 the first attempt does 5 steps and then waits to be asked to pause.
Started again it goes on where it stopped, as the real one does.
"""

import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

FOLDER = Path(sys.argv[1])
RATE = json.loads((FOLDER / "run.json").read_text())["job"]["learningRate"]
STEPS, TOKENS, SECONDS = 10, 100, 0.03
asked: list[int] = []


def state(name: str, message: str = "") -> None:
    journal = FOLDER / "sync.jsonl"
    seq = 1 + (len(journal.read_bytes().splitlines()) if journal.exists() else 0)
    body = {"state": f"JOB_STATE_{name}", "code": "OK", "message": message}
    with journal.open("a") as stream:
        stream.write(
            json.dumps({"seq": seq, "time": datetime.now(UTC).isoformat(), "kind": "state", "body": body}) + "\n"
        )


def metrics(values: dict) -> None:
    with (FOLDER / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(values) + "\n")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    (FOLDER / "started").open("a").write(f"{time.time()}\n")
    state("VALIDATING")
    if RATE == 0.5:
        state("FAILED", "learning_rate: <0.5> is too high")
        return 2
    if RATE == 0.25:
        os.kill(os.getpid(), signal.SIGKILL)
    state("RUNNING")
    path = FOLDER / "metrics.jsonl"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    for step in range(done + 1, STEPS + 1):
        while RATE == 0.125 and not done and step == 6 and not asked:
            time.sleep(SECONDS)
        if asked:
            state("PAUSED", f"after step {step - 1}")
            return 75
        time.sleep(SECONDS)
        metrics({"step": step, "loss": 1.0, "tokens": TOKENS})
    metrics({"step": STEPS, "eval/loss": RATE})
    state("COMPLETED", "done")
    return 0


sys.exit(main())
