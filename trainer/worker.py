"""The process that trains: `python -m trainer.worker RUN_FOLDER [--dry-run]`.

Reads `run.json`, reads and renders the rows, wires engine, reporters and loop together, and runs the loop once.
It writes files and nothing else: whoever started it tells the gateway. Exit status: 0 done, 2 the job's input was
refused, 75 paused (start it again to go on), 1 anything else, with the traceback in `error.txt`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from trainer.checkpoints import Checkpoint
from trainer.data.batches import arithmetic
from trainer.data.prepare import Prepared, prepare
from trainer.data.render import Renderer, load_tokenizer
from trainer.engine.base import Engine
from trainer.jobs import JobState
from trainer.loops.evaluation import Question, exact_match
from trainer.loops.sft import Material, Outcome, SftLoop, terminal_state
from trainer.loops.stop import Stop
from trainer.report import Reporter
from trainer.runs import RunSpec
from trainer.tracking import Console, Journal, MetricsFiles, Tee, Wandb

EXIT_DONE, EXIT_CRASH, EXIT_REFUSED, EXIT_PAUSED = 0, 1, 2, 75

# Imported when a run names it, so that rows are read and refused before the tensor libraries load.
ENGINES = {"local": "trainer.engine.local:LocalEngine"}


class Refused(ValueError):
    """The job cannot be run as it is written; the message says why and what to change."""


def main(arguments: list[str] | None = None) -> int:
    """Run the worker and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainer.worker", description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder, holding run.json")
    parser.add_argument("--dry-run", action="store_true", help="read every row, print the batch arithmetic, stop")
    options = parser.parse_args(arguments)
    spec = RunSpec.load(options.run)
    if options.dry_run:
        return dry_run(spec)
    with _only_worker(options.run):
        return Worker(spec, options.run).run()


class Worker:
    """One attempt at the run in `folder`."""

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self.stop = Stop().listen()
        self.files = MetricsFiles(folder)
        self.reporter: Reporter = Tee([Journal(folder), self.files, Console()])

    def run(self) -> int:
        """Prepare, train, hand over; every way out is a state in the journal."""
        try:
            return self._run()
        except Refused as error:
            self.reporter.state(JobState.FAILED, str(error), code="INVALID_ARGUMENT")
            return EXIT_REFUSED
        except Exception as error:
            (self.folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            what = f"{type(error).__name__}: {error}"
            self.reporter.state(JobState.FAILED, f"{what} (traceback: {self.folder / 'error.txt'})", code="INTERNAL")
            return EXIT_CRASH
        finally:
            self.reporter.close()

    def _run(self) -> int:
        self.reporter.state(JobState.VALIDATING, f"reading {self.spec.inputs.train.name}")
        if self.spec.job.wandb_config and self.spec.job.wandb_config.enabled:
            self.reporter = Tee([self.reporter, _refusing(lambda: Wandb(self.spec, self.folder))])
        prepared = read_rows(self.spec, log=self.reporter.log, folder=self.folder)
        material = Material(prepared.train.datums, prepared.held_out.datums, questions(self.spec, prepared))
        engine = _refusing(lambda: build_engine(self.spec, prepared.renderer))
        loop = SftLoop(
            self.spec, material, engine=engine, folder=self.folder, reporter=self.reporter, files=self.files,
            decode=prepared.renderer.decode, stop=self.stop,
        )  # fmt: skip
        self.reporter.state(JobState.RUNNING, f"{loop.total} optimizer steps on {engine_words(engine)}")
        outcome = loop.run()
        if outcome.paused:
            self.reporter.state(JobState.PAUSED, f"stopped after step {outcome.cursor.step} of {loop.total}")
            return EXIT_PAUSED
        self.reporter.state(JobState.WRITING_RESULTS)
        hand_over(self.spec, outcome, folder=self.folder, engine=engine, reporter=self.reporter, prepared=prepared)
        self.reporter.state(terminal_state(outcome), summary(self.spec, outcome))
        return EXIT_DONE
