"""The process that trains: `python -m trainer.worker RUN_FOLDER [--dry-run]`.

Reads `run.json`, reads and renders the rows, wires engine, reporters and loop together, and runs the loop once.
It writes files and nothing else: whoever started it tells the gateway. Exit status: 0 done, 2 the job was refused as
it is written, 75 paused (start it again to go on), 1 anything else, with the traceback in `error.txt`.
"""

from __future__ import annotations

import argparse
import fcntl
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from trainer.data.batches import PlanFigures, plan_figures
from trainer.data.ledger import Ledger
from trainer.engine.base import Engine
from trainer.history import LOCK
from trainer.jobs import JobState
from trainer.loops.material import Prepared, read_material
from trainer.loops.sft import Outcome, SftLoop, terminal_state
from trainer.loops.stop import Stop
from trainer.promotion import describe, lay_out
from trainer.report import Reporter
from trainer.runs import RunSpec
from trainer.tracking import Console, Journal, MetricsFiles, Tee, Wandb

EXIT_DONE, EXIT_CRASH, EXIT_REFUSED, EXIT_PAUSED = 0, 1, 2, 75

# Imported when a run names it, so that rows are read, and refused, before the tensor libraries load.
ENGINES = {"local": "trainer.engine.local:LocalEngine"}
T = TypeVar("T")


class Refused(Exception):
    """The job cannot be run as it is written; the message says why and what to change."""


def main(arguments: list[str] | None = None) -> int:
    """Run the worker and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainer.worker", description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder, holding run.json")
    parser.add_argument("--dry-run", action="store_true", help="read every row, print the batch arithmetic, stop")
    options = parser.parse_args(arguments)
    spec = RunSpec.load(options.run)
    if options.dry_run:
        return _dry_run(spec)
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
        except Exception as error:  # noqa: BLE001  (the boundary: recorded as the job's state and in error.txt)
            trace = self.folder / "error.txt"
            trace.write_text(traceback.format_exc(), encoding="utf-8")
            what = f"{type(error).__name__}: {error} (traceback: {trace})"
            self.reporter.state(JobState.FAILED, what, code="INTERNAL")
            return EXIT_CRASH
        finally:
            self.reporter.close()

    def _run(self) -> int:
        self.reporter.state(JobState.VALIDATING, f"reading {self.spec.inputs.train.name}")
        if self.spec.job.wandb_config and self.spec.job.wandb_config.enabled:
            self.reporter = Tee([self.reporter, _or_refuse(lambda: Wandb(self.spec, self.folder))])
        prepared = _or_refuse(lambda: read_material(self.spec))
        for name, ledger in prepared.ledgers.items():
            ledger.save(self.folder / name)
            _tell(ledger, self.reporter.log)
        engine = _or_refuse(lambda: build_engine(self.spec, prepared))
        loop = _or_refuse(lambda: self._loop(engine, prepared))
        self.reporter.state(JobState.RUNNING, f"{loop.total} optimizer steps")
        outcome = loop.run()
        if outcome.paused:
            self.reporter.state(JobState.PAUSED, f"after step {outcome.cursor.step} of {loop.total}, all saved")
            return EXIT_PAUSED
        self.reporter.state(JobState.WRITING_RESULTS)
        self._hand_over(outcome, prepared)
        self.reporter.progress(100.0)
        for line in _samples(self.spec, outcome):
            self.reporter.log(line)
        self.reporter.state(terminal_state(outcome), _summary(self.spec, outcome))
        return EXIT_DONE

    def _hand_over(self, outcome: Outcome, prepared: Prepared) -> None:
        """The checkpoint's weights become the output model's files, with the tokenizer and template trained on."""
        with tempfile.TemporaryDirectory(prefix="trainer-tokenizer-") as place:
            tokenizer = prepared.renderer.tokenizer
            if self.spec.job.jinja_template:
                tokenizer.chat_template = self.spec.job.jinja_template
            tokenizer.save_pretrained(place)
            model = lay_out(outcome.checkpoint, self.folder / "model", tokenizer_from=Path(place))
        self.reporter.model({**describe(self.spec, model), "contextLength": prepared.context_length})

    def _loop(self, engine: Engine, prepared: Prepared) -> SftLoop:
        return SftLoop(
            self.spec, prepared.material, engine=engine, folder=self.folder, reporter=self.reporter, files=self.files,
            decode=prepared.decode, stop=self.stop,
        )  # fmt: skip


def build_engine(spec: RunSpec, prepared: Prepared) -> Engine:
    """The engine that the run names, with its base model loaded."""
    module, _, name = ENGINES[spec.engine.kind].partition(":")
    engine = getattr(import_module(module), name)
    return engine(spec.inputs.base_model, spec.engine, revision=spec.model.revision, decode=prepared.decode)


def _dry_run(spec: RunSpec) -> int:
    """Read and render every row and print what a run would do. Starts and writes nothing."""
    try:
        prepared = _or_refuse(lambda: read_material(spec))
        for ledger in prepared.ledgers.values():
            _tell(ledger, print)
        figures = _or_refuse(lambda: _figures(spec, prepared))
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    for line in figures.summary():
        print(line)
    hyper = spec.hyper
    warmup = min(hyper.warmup_steps, figures.total_steps)
    print(f"learning rate: {warmup} steps of warm-up to {hyper.learning_rate:g}, then {spec.train.scheduler}")
    rank = "all parameters" if hyper.lora_rank == 0 else f"LoRA rank {hyper.lora_rank or 'of the adapter started from'}"
    print(f"model: {spec.model.name}, {rank}; nothing was started")
    return EXIT_DONE


def _figures(spec: RunSpec, prepared: Prepared) -> PlanFigures:
    hyper, train = spec.hyper, prepared.material.train
    return plan_figures(
        [datum.length for datum in train], [datum.trained for datum in train], epochs=hyper.epochs,
        batch_tokens=hyper.batch_tokens, batch_rows=hyper.batch_rows, accumulation=hyper.accumulation,
        seed=spec.train.seed, shuffle=spec.data.shuffle,
    )  # fmt: skip


def _tell(ledger: Ledger, log: Callable[[str], None]) -> None:
    log(ledger.source.name)
    for line in ledger.summary():
        log(f"  {line}")


def _summary(spec: RunSpec, outcome: Outcome) -> str:
    words = [f"{outcome.cursor.step} steps, {outcome.cursor.tokens:,} tokens"]
    if outcome.cursor.best_loss is not None:
        words.append(f"best held-out loss {outcome.cursor.best_loss:.4f} at step {outcome.cursor.best_step}")
    if spec.train.score_rows and outcome.after:
        before, after = (sum(one.exact for one in answers) for answers in (outcome.before, outcome.after))
        rows = len(outcome.after)
        words.append(f"exact match {before / rows:.1%} before, {after / rows:.1%} after, of {rows} held-out rows")
    return "; ".join(words)


def _samples(spec: RunSpec, outcome: Outcome) -> list[str]:
    """A few held-out rows: what was asked, and the answers before and after."""
    pairs = list(zip(outcome.before, outcome.after, strict=False))[: spec.train.sample_rows]
    return [f"  {after.asked!r}: {before.given!r} before, {after.given!r} after" for before, after in pairs]


def _or_refuse(make: Callable[[], T]) -> T:
    """What `make` makes; a ValueError from it is about the job, not about this program."""
    try:
        return make()
    except (ValueError, FileNotFoundError) as error:
        raise Refused(str(error)) from error


@contextmanager
def _only_worker(folder: Path) -> Iterator[None]:
    """Hold the run's lock; the system lets go of it however this process ends."""
    with (folder / LOCK).open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"error: another worker is at work on {folder}") from None
        yield


if __name__ == "__main__":
    sys.exit(main())
