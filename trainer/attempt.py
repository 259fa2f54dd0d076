"""One attempt at a run: reads and renders the rows, wires engine, reporters and loop together, and runs the loop once.

It writes files and nothing else: whoever started it tells the gateway. `trainer.worker` is the process around it and
lists the exit statuses.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from trainer import checkpoints, environment
from trainer.beside import beside
from trainer.confession import CONFESSION, confess
from trainer.data.batches import PlanFigures, plan_figures
from trainer.data.ledger import DataRefused, Ledger
from trainer.disk import LOCAL_DISK, Disk, DiskFull, is_full, write_whole
from trainer.engine.base import Engine
from trainer.estimate import Workload, foresee, workload
from trainer.finite import NotFinite
from trainer.history import LOCK, in_short
from trainer.jobs import JobState
from trainer.loops.best import LOSS, PREFERRED, SFT_LOGGED, Best
from trainer.loops.material import HELD_OUT_LEDGER, TRAIN_LEDGER, Prepared, read_material
from trainer.loops.parity import ParityBroken, ParityGate, SavedTokens, gate
from trainer.loops.preference import PreferenceLoop, logged_by
from trainer.loops.reference import made_with
from trainer.loops.schedule import unreached
from trainer.loops.sft import SftLoop
from trainer.loops.stop import Stop
from trainer.loops.training import MODEL, NonFinite, Outcome, TrainingLoop, datums_of, terminal_state
from trainer.loops.watchdog import HAND_OVER, LOADING, READING, Watchdog
from trainer.machine import Look, this_machine
from trainer.promotion import describe, lay_out
from trainer.report import Reporter
from trainer.report_page import write_report
from trainer.runs import RunSpec
from trainer.times import lines_of
from trainer.tracking import Console, Journal, MetricsFiles, Tee, Wandb

EXIT_DONE, EXIT_CRASH, EXIT_REFUSED, EXIT_PAUSED = 0, 1, 2, 75
_RESERVE_BYTES = 1 << 16  # given back when the disk is full, so that the run can still say so

# Imported when a run names it, so that rows are read, and refused, before the tensor libraries load.
ENGINES = {"local": "trainer.engine.local:LocalEngine"}
T = TypeVar("T")


class Refused(Exception):
    """The job cannot be run as it is written; the message says why and what to change."""


def main(arguments: list[str] | None = None, *, stop: Stop | None = None) -> int:
    """Run the worker and return its exit status; `stop` hears signals already."""
    parser = argparse.ArgumentParser(prog="python -m trainer.worker", description="Run or resume the run in a folder.")
    parser.add_argument("run", type=Path, help="the run's folder, holding run.json")
    parser.add_argument("--dry-run", action="store_true", help="read every row, print the batch arithmetic, stop")
    options = parser.parse_args(arguments)
    try:
        spec = RunSpec.load(options.run)
    except (OSError, ValueError) as error:
        print(f"error: {options.run / 'run.json'}: cannot be read by this version ({in_short(error)})", file=sys.stderr)
        return EXIT_REFUSED
    if options.dry_run:
        return _dry_run(spec)
    if told := _unwritable(options.run):
        print(f"error: {told}; mend that, then resume the run", file=sys.stderr)
        return EXIT_CRASH
    with _only_worker(options.run):
        return Worker(spec, options.run, stop=stop).run()


class Worker:
    """One attempt at the run in `folder`."""

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        *,
        look: Look = this_machine,
        disk: Disk = LOCAL_DISK,
        stop: Stop | None = None,
    ) -> None:
        self.spec, self.folder, self.look, self.disk = spec, folder, look, disk
        self.stop = stop or Stop().listen()
        self.files = MetricsFiles(folder)
        journal = Journal(folder)
        if journal.empty and spec.gateway.kind != "off":  # the scheduler begins the log of a job that was posted
            journal.log(json.dumps({"objective": spec.objective}, ensure_ascii=False))
        self.reporter: Reporter = Tee([journal, self.files, Console()])
        self.watchdog = Watchdog(spec.train.watchdog, folder, say=self._hung)
        self.reserve = folder / ".reserve"

    def run(self) -> int:
        """Prepare, train, hand over; every way out is a state in the journal."""
        try:
            return self._run()
        except Refused as error:
            if isinstance(error.__cause__, DataRefused):
                self._keep(error.__cause__.ledger)
            self.reporter.state(JobState.FAILED, str(error), code="INVALID_ARGUMENT")
            return EXIT_REFUSED
        except ParityBroken as error:
            self.reporter.state(JobState.FAILED, str(error), code="FAILED_PRECONDITION")
            return EXIT_REFUSED
        except (NonFinite, NotFinite) as error:
            self.reporter.state(JobState.FAILED, str(error), code="OUT_OF_RANGE")
            return EXIT_CRASH
        except Exception as error:  # noqa: BLE001  (the boundary: recorded as the job's state and in error.txt)
            if is_full(error):
                return self._no_room(error)
            trace = self.folder / "error.txt"
            trace.write_text(traceback.format_exc(), encoding="utf-8")
            what = f"{type(error).__name__}: {error} (traceback: {trace})"
            self.reporter.state(JobState.FAILED, what, code="INTERNAL")
            return EXIT_CRASH
        finally:
            self.watchdog.close()
            self.reserve.unlink(missing_ok=True)
            beside("report.html", lambda: write_report(self.folder))
            self.reporter.close()

    def _keep(self, ledger: Ledger) -> None:
        """The ledger of refused rows, which says what was found in them."""
        trained_on = ledger.source == self.spec.inputs.train
        ledger.save(self.folder / (TRAIN_LEDGER if trained_on else HELD_OUT_LEDGER))

    def _run(self) -> int:
        write_whole(self.reserve, bytes(_RESERVE_BYTES))
        self.reporter.state(JobState.VALIDATING, f"reading {self.spec.inputs.train.name}")
        beside("environment.json", lambda: environment.record(self.spec, self.folder))
        if self.spec.job.wandb_config and self.spec.job.wandb_config.enabled:
            self.reporter = Tee([self.reporter, _or_refuse(lambda: Wandb(self.spec, self.folder))])
        with self.watchdog.stage(READING):
            _or_refuse(self._check_inputs)
            prepared = _or_refuse(lambda: read_material(self.spec))
        for name, ledger in prepared.ledgers.items():
            ledger.save(self.folder / name)
            _tell(ledger, self.reporter.log)
        load = _or_refuse(lambda: _foresee(self.spec, prepared, self.folder, look=self.look, tell=self.reporter.log))
        if self.stop.requested:
            return self._paused("before the model was loaded")
        with self.watchdog.stage(LOADING):
            engine = _or_refuse(lambda: build_engine(self.spec, prepared))
        beside("lineage.json", lambda: environment.complete(self.spec, self.folder))
        parity = self._gate(engine, prepared)
        loop = _or_refuse(lambda: self._loop(engine, prepared, parity))
        if words := _unreached(self.spec, loop.total):
            self.reporter.log(f"note: {words}")
        self.reporter.state(JobState.RUNNING, f"{loop.total} optimizer steps")
        outcome = loop.run()
        if outcome.paused:
            return self._paused(f"after step {outcome.cursor.step} of {loop.total}, all saved")
        self.reporter.state(JobState.WRITING_RESULTS)
        with self.watchdog.stage(HAND_OVER):
            self._hand_over(outcome, prepared, parity)
        self.reporter.progress(100.0)
        for line in _samples(self.spec, outcome):
            self.reporter.log(line)
        told = beside(CONFESSION, lambda: confess(self.spec, self.folder, load=load))
        if told:
            self.reporter.log(told)
        metrics = lines_of(self.folder / "metrics.jsonl")
        preferred = [line[PREFERRED] for line in metrics if PREFERRED in line]
        self.reporter.state(terminal_state(outcome), _summary(self.spec, outcome, preferred))
        return EXIT_DONE

    def _check_inputs(self) -> None:
        """Raise `ValueError` where a run that has a checkpoint would go on with other rows or another base."""
        if not checkpoints.every(self.folder / "checkpoints"):
            return
        if changed := environment.changed_inputs(self.spec, self.folder):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise ValueError(
                f"{changed[0]}{more} since the run began, and its checkpoints were trained with what was there; put "
                "back the old one, or start a new run"
            )

    def _paused(self, where: str) -> int:
        self.reporter.state(JobState.PAUSED, where)
        return EXIT_PAUSED

    def _no_room(self, error: Exception) -> int:
        """The disk is full: the run pauses, and goes on from its newest checkpoint when it is resumed."""
        self.reserve.unlink(missing_ok=True)
        words = str(error) if isinstance(error, DiskFull) else (
            f"{self.folder}: the disk or the quota is full ({error}); free some space, then resume the run"
        )  # fmt: skip
        self.reporter.state(JobState.PAUSED, words, code="RESOURCE_EXHAUSTED")
        return EXIT_PAUSED

    def _hung(self, line: str) -> None:
        """A stage is past its deadline."""
        self.reporter.log(line)
        if self.spec.train.watchdog.policy == "stop":
            self.reporter.state(JobState.FAILED, line, code="DEADLINE_EXCEEDED")

    def _gate(self, engine: Engine, prepared: Prepared) -> ParityGate | None:
        """The parity gate, over the tokenizer as it will be handed over; saved here for that."""
        tokenizer, train = prepared.renderer.tokenizer, self.spec.train
        if self.spec.job.jinja_template:
            tokenizer.chat_template = self.spec.job.jinja_template
        tokenizer.save_pretrained(self.folder / "tokenizer")
        if not train.parity_prompts:
            return None
        tokens = SavedTokens(prepared.renderer, self.folder / "tokenizer", prepared.material.probes)
        return gate(
            engine, MODEL, train=datums_of(prepared.material.train), prompts=train.parity_prompts,
            max_gap=train.parity_max_gap, dtype=self.spec.engine.dtype, seed=train.seed, tokens=tokens,
        )  # fmt: skip

    def _hand_over(self, outcome: Outcome, prepared: Prepared, parity: ParityGate | None) -> None:
        """The checkpoint's weights become the output model's files, with the tokenizer and template trained on.

        Raises `ParityBroken` and `NotFinite` for what must not become a model.
        """
        found = parity.breaches(None) if parity else []
        if found or not outcome.checkpoint.promotable:
            words = "; ".join(found) or outcome.cursor.parity_broken or "the log says why"
            raise ParityBroken(
                f"{outcome.checkpoint.path} cannot become the model: {words}. The checkpoints are kept; a new run "
                "with train.parity_prompts=0 hands over regardless"
            )
        model = lay_out(outcome.checkpoint, self.folder / "model", tokenizer_from=self.folder / "tokenizer")
        self.reporter.model({**describe(self.spec, model), "contextLength": prepared.context_length})

    def _loop(self, engine: Engine, prepared: Prepared, parity: ParityGate | None) -> TrainingLoop:
        parts: dict[str, Any] = {
            "engine": engine, "folder": self.folder, "reporter": self.reporter, "files": self.files,
            "decode": prepared.decode, "stop": self.stop, "gate": parity, "stage": self.watchdog.stage,
            "disk": self.disk,
        }  # fmt: skip
        if self.spec.kind == "dpo":
            depends = made_with(self.spec, prepared.renderer)
            return PreferenceLoop(self.spec, prepared.material, made_with=depends, **parts)
        return SftLoop(self.spec, prepared.material, **parts)


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
        _or_refuse(lambda: _foresee(spec, prepared, None, look=this_machine, tell=print))
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    for line in figures.summary():
        print(line)
    hyper = spec.hyper
    warmup = f"{hyper.warmup_steps} steps of warm-up to {hyper.learning_rate:g}, then {spec.train.scheduler}"
    print(f"learning rate: {_unreached(spec, figures.total_steps) or warmup}")
    rank = "all parameters" if hyper.lora_rank == 0 else f"LoRA rank {hyper.lora_rank or 'of the adapter started from'}"
    print(f"model: {spec.base_name}, {rank}; nothing was started")
    return EXIT_DONE


def _foresee(
    spec: RunSpec, prepared: Prepared, folder: Path | None, *, look: Look, tell: Callable[[str], None]
) -> Workload:
    """What the run will take, told and written down. Raises `ValueError` when this machine cannot hold it, or when
    what is the best is to be judged by something that the run does not log."""
    material = prepared.material
    logged = logged_by(spec.objective["name"]) if spec.kind == "dpo" else SFT_LOGGED
    Best.of(spec.train, held_out=len(material.held_out), questions=len(material.questions), logged=logged)
    prompts = [len(question.prompt) for question in material.questions]
    load = workload(spec, material.train, held_out=material.held_out, prompts=prompts, context=prepared.context_length)
    foresee(spec, load, folder=folder, look=look, tell=tell)
    return load


def _unreached(spec: RunSpec, total: int) -> str:
    return unreached(total, peak=spec.hyper.learning_rate, warmup=spec.hyper.warmup_steps)


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


def _summary(spec: RunSpec, outcome: Outcome, preferred: Sequence[float]) -> str:
    words = [f"{outcome.cursor.step} steps, {outcome.cursor.tokens:,} tokens"]
    if outcome.cursor.best_value is not None:
        metric = "held-out loss" if spec.train.best_metric == LOSS else spec.train.best_metric
        words.append(f"best {metric} {outcome.cursor.best_value:.4f} at step {outcome.cursor.best_step}")
    if preferred:
        words.append(
            f"of held-out pairs {preferred[0]:.1%} before and {preferred[-1]:.1%} at the end have the chosen answer as "
            "the likelier one"
        )
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


def _unwritable(folder: Path) -> str:
    """Which of the files that every attempt goes on with cannot be written, and why; without them no state is kept."""
    for name in (LOCK, "sync.jsonl", "metrics.jsonl", "perf.jsonl"):
        try:
            (folder / name).open("ab").close()
        except OSError as error:
            return f"{folder / name}: cannot be written ({in_short(error)})"
    return ""


@contextmanager
def _only_worker(folder: Path) -> Iterator[None]:
    """Hold the run's lock; the system lets go of it however this process ends."""
    with (folder / LOCK).open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"error: another worker is at work on {folder}") from None
        yield
