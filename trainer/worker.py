"""The process that trains: `python -m trainer.worker RUN_FOLDER [--dry-run]`; `run.json` in there is its only input.

A folder with an `evaluation.json` instead is an evaluation job's, and its rows are scored.

It hears SIGTERM and SIGINT from its first moment to its last, so that a request to stop is answered by a pause however
early it comes, and does not change the status of a worker that is done. Exit status: 0 done, 2 the job was refused as
it is written or its model must not be trained or handed over, 75 paused (start it again to go on; a full disk pauses
too), 76 a hung stage was ended (start it again), 1 anything else, with the traceback in `error.txt`.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

from trainer.launch.beat import beating
from trainer.loops.stop import Stop
from trainer.output import steady

EVALUATION_FILE = "evaluation.json"  # of `trainer.evaluation_run`, which is too slow to load before signals are heard


def main() -> int:
    """Listen and show signs of life, then load everything else and make the attempt."""
    stop = Stop().listen()
    folder = Path(sys.argv[-1])  # a dry run's last word is --dry-run: it writes nothing
    evaluates = (folder / EVALUATION_FILE).is_file()
    with beating(folder) if evaluates or (folder / "run.json").is_file() else nullcontext():
        if evaluates:
            status: int = import_module("trainer.evaluation_worker").main(stop=stop, folder=folder)
        else:
            status = import_module("trainer.attempt").main(stop=stop)
    stop.ignore()
    return status


if __name__ == "__main__":
    steady()
    sys.exit(main())
