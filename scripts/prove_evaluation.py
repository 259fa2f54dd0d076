"""Prove that an evaluation job of many rows holds few of them, and that kill -9 costs no row and repeats none.

    python scripts/prove_evaluation.py [--rows 20000] [--kills 5]

The real worker scores a tenth of the rows, then all of them, killed again and again on the way. What it prints: the
peak of the worker's resident memory in both, and what `scores.jsonl` and `output.jsonl` hold in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from trainer.evaluation_run import EvaluationRun, EvaluatorSource
from trainer.scored_rows import OUTPUT, SCORES

_SOURCE = """
def evaluate(messages, ground_truth=None, **kwargs):
    text = messages[-1]["content"]
    return {"score": float(text.endswith(str(ground_truth))), "reason": "r" * 200, "metrics": {"length": len(text)}}
"""
_TEXT = "word " * 400  # 2 kB a row
_MOST_GROWTH = 16 << 20  # bytes of peak memory, from a tenth of the rows to all of them


def main() -> int:
    """Print the figures; 1 where one is beyond its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="default: %(default)s")
    parser.add_argument("--kills", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        few, _, _ = scored(Path(top) / "few", options.rows // 10, kills=0)
        many, attempts, seconds = scored(Path(top) / "many", options.rows, kills=options.kills)
        problems = faults(Path(top) / "many", options.rows)
    growth = many - few
    print(
        f"{options.rows:,} rows of 2 kB in {seconds:.0f} s and {attempts} attempts ({options.kills} kill -9)\n"
        f"peak resident memory of the worker: {few / 2**20:.1f} MiB with {options.rows // 10:,} rows, "
        f"{many / 2**20:.1f} MiB with {options.rows:,}: {growth / 2**20:+.1f} MiB, bound {_MOST_GROWTH / 2**20:.0f}\n"
        f"{'; '.join(problems) or 'every row scored once, handed on once, in order'}"
    )
    return 1 if problems or growth > _MOST_GROWTH else 0


def scored(folder: Path, rows: int, *, kills: int) -> tuple[int, int, float]:
    """(peak memory in bytes, attempts, seconds) of a job with that many rows."""
    describe(folder, rows)
    begun, peak, attempts, draw = time.monotonic(), 0, 0, random.Random(0)
    marks = sorted(draw.randrange(rows // 20, rows) for _ in range(kills))
    while True:
        attempts += 1
        command = [sys.executable, "-m", "trainer.worker", str(folder)]
        worker = subprocess.Popen(command, start_new_session=True)
        if marks:
            _wait_for(folder / SCORES, marks.pop(0), worker)
            os.killpg(worker.pid, signal.SIGKILL)
        _, status, used = os.wait4(worker.pid, 0)
        worker.returncode = os.waitstatus_to_exitcode(status)
        peak = max(peak, used.ru_maxrss * 1024)
        if worker.returncode == 0:
            return peak, attempts, time.monotonic() - begun
        if worker.returncode != -signal.SIGKILL:
            raise SystemExit(f"the worker ended with {worker.returncode}: see {folder}")


def describe(folder: Path, rows: int) -> None:
    """The job's folder."""
    folder.mkdir()
    with (folder / "rows.jsonl").open("w") as stream:
        for index in range(rows):
            messages = [{"role": "user", "content": f"{index}?"}, {"role": "assistant", "content": f"{_TEXT}{index}"}]
            stream.write(json.dumps({"messages": messages, "ground_truth": str(index)}) + "\n")
    criterion = {"name": "right", "codeSnippets": {"fileContents": {"main.py": _SOURCE}}}
    evaluator = EvaluatorSource(name="accounts/a/evaluators/e", version="v1", criteria=[criterion])
    EvaluationRun(
        id="prove", created="", trainer_version="", rows=[str(folder / "rows.jsonl")], input_dataset="in",
        output_dataset="out", evaluator=evaluator,
    ).save(folder)  # fmt: skip


def faults(folder: Path, rows: int) -> list[str]:
    """What is wrong with the rows that came out."""
    with (folder / SCORES).open("rb") as stream:
        times = Counter(json.loads(line)["index"] for line in stream)
    found = [] if len(times) == rows and set(times.values()) == {1} else ["a row has no score, or more than one"]
    count = 0
    with (folder / OUTPUT).open("rb") as stream:
        for index, line in enumerate(stream):
            row = json.loads(line)
            count += row["ground_truth"] == str(index) and row["evals"] == {"score": 1.0}
    return found + ([] if count == rows else [f"{count:,} of {rows:,} rows were handed on in their place"])


def _wait_for(path: Path, lines: int, worker: subprocess.Popen[bytes]) -> None:
    while worker.poll() is None:
        if path.exists():
            with path.open("rb") as stream:
                if sum(1 for _ in stream) >= lines:
                    return
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
