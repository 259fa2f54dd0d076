"""What every supervised loop is: from the first batch to the output model, whatever the loss.

The story: make or restore the model, answer some held-out rows, then step by step add the gradients of the step's
batches, divide once by the step's denominator, and update; after each step do what is due: evaluate, compare trainer
with sampler, save; at the end answer the same rows again and hand over the weights. The order of rows is a pure
function of the seed, so a checkpoint only needs to say how many steps are done, and which of them is settled (all that
was due after it is done), to go on exactly: wherever a run is killed, it ends with the same files. A loop of one kind
(`sft.py`, `preference.py`) says what a batch's gradient and an evaluation's figures are, and what comes before.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer import checkpoints
from trainer.checkpoints import Checkpoint, CheckpointCorrupt
from trainer.data.batches import Step, plan_epoch
from trainer.data.datum import Datum, Example, Pair
from trainer.data.rows import Row
from trainer.disk import LOCAL_DISK, Disk, write_whole
from trainer.engine.base import AdamParams, Engine, ForwardResult, LoraSpec
from trainer.jobs import JobState
from trainer.loops import evaluation
from trainer.loops.best import EXACT_MATCH, LOSS, SFT_LOGGED, Best, Logged
from trainer.loops.evaluation import Answer, Question
from trainer.loops.parity import GAP, ParityBroken, ParityGate
from trainer.loops.saving import Saver
from trainer.loops.schedule import learning_rate
from trainer.loops.stop import Stop
from trainer.loops.watchdog import EVALUATION, SAVE, STEP
from trainer.report import Reporter
from trainer.runs import RunSpec
from trainer.tracking import PERF, MetricsFiles

MODEL = "policy"
_ROWS_NAMED = 8  # of a batch that gave NaN


class NonFinite(ArithmeticError):
    """A loss or a gradient is NaN or infinite; the message names the step, the rows and what is kept."""


def _unnamed(row: int) -> str:
    return f"row {row}"


@dataclass(frozen=True, eq=False)
class Material:
    """What there is to learn from and to be judged by, datums or pairs. `place(i)` names where train[i] was read;
    `probes` are a few of these rows as they were read."""

    train: Sequence[Example]
    held_out: Sequence[Example] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    place: Callable[[int], str] = _unnamed
    probes: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Cursor:
    """Where the loop stands; a checkpoint stores it.

    settled: the last step after which all that was due is done. best_* and worse serve early stopping, and so does
    watched, the last step's value of its metric, if steps log it. parity_broken: what the parity gate last found.
    """

    step: int = 0
    settled: int = -1
    tokens: int = 0
    best_step: int = 0
    best_value: float | None = None
    worse: int = 0
    stopped_early: bool = False
    skipped_steps: int = 0
    watched: float | None = None
    parity_broken: str = ""


@dataclass(frozen=True, eq=False)
class Outcome:
    """How the loop ended: `paused` when asked to stop; `checkpoint` is the last one, or the one to promote."""

    paused: bool
    cursor: Cursor
    checkpoint: Checkpoint
    before: list[Answer]
    after: list[Answer]


@dataclass(frozen=True)
class Gathered:
    """What the gradients of a step came to: what divides them, metrics to report, and the positions trained."""

    denominator: float
    values: dict[str, float]
    trained: int


class TrainingLoop(ABC):
    """One run on an engine. Knows no gateway, no console and no tensor."""

    logged: Logged = SFT_LOGGED  # what evaluations and steps report

    def __init__(
        self,
        spec: RunSpec,
        material: Material,
        *,
        engine: Engine,
        folder: Path,
        reporter: Reporter,
        files: MetricsFiles,
        decode: Callable[[list[int]], str],
        stop: Stop,
        gate: ParityGate | None = None,
        stage: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
        disk: Disk = LOCAL_DISK,
    ) -> None:
        self.spec, self.material, self.engine, self.folder = spec, material, engine, folder
        self.reporter, self.files, self.decode, self.stop = reporter, files, decode, stop
        self.gate, self.stage, self.disk = gate, stage, disk
        self.root = folder / "checkpoints"
        self.before: list[Answer] = []
        self.train, self.held_out = material.train, material.held_out
        self.best = Best.of(
            spec.train, held_out=len(material.held_out), questions=len(material.questions), logged=self.logged
        )
        self.ready = False
        self.padding = 0  # tokens laid as padding in this step
        self.saver = Saver(
            self.root, lora=spec.hyper.lora_rank != 0, keep=spec.train.keep_checkpoints, reporter=reporter, disk=disk,
            background=spec.train.async_checkpoints,
        )  # fmt: skip
        self.lengths = [example.length for example in material.train]
        self.steps_of_epoch = [len(self.plan(epoch)) for epoch in range(spec.hyper.epochs)]
        self.total = sum(self.steps_of_epoch)

    def run(self) -> Outcome:
        """Train to the end, to an early stop, or to a request to stop. Raises `DiskFull`, `NonFinite`, `NotFinite`
        and, before the first step, `ParityBroken`; the newest checkpoint is whole then."""
        try:
            cursor = self.begin()
            if not self.ready:
                return self.end(cursor)
            self.before = self.answers_before(cursor)
            steps = self.remaining(cursor)
            while True:
                cursor = self.settle(cursor)
                if self.stop.requested or cursor.stopped_early or cursor.step == self.total:
                    break
                cursor = self.advance(cursor, next(steps))
            return self.end(cursor)
        finally:
            self.saver.close()

    def end(self, cursor: Cursor) -> Outcome:
        """The last checkpoint is on disk; where training is finished, the weights to hand over answer once more."""
        last = self.saved(cursor)
        finished = cursor.settled == cursor.step and (cursor.step == self.total or cursor.stopped_early)
        if not (finished and self.ready):
            return Outcome(True, cursor, last, self.before, [])
        chosen = self.choose(cursor, last)
        after = self.answers("after")
        return Outcome(after is None, cursor, chosen, self.before, after or [])

    def plan(self, epoch: int) -> list[Step]:
        """The optimizer steps of one epoch (0 is the first)."""
        hyper, spec = self.spec.hyper, self.spec
        return plan_epoch(
            self.lengths,
            batch_tokens=hyper.batch_tokens,
            batch_rows=hyper.batch_rows,
            accumulation=hyper.accumulation,
            seed=spec.train.seed,
            epoch=epoch,
            shuffle=spec.data.shuffle,
        )

    def begin(self) -> Cursor:
        """Make the model and, where there is a checkpoint, go on from the newest whole one."""
        self.make_model()
        self.ready = self.prepare()
        if self.root.exists():
            checkpoints.clean(self.root, disk=self.disk)
        checkpoint = checkpoints.newest(self.root, damaged=lambda error: self.reporter.log(f"passed over: {error}"))
        for path in checkpoints.every(self.root):
            if checkpoint is None or int(path.name.removeprefix("step-")) > checkpoint.step:
                self.reporter.log(f"set aside as {checkpoints.set_aside(path, disk=self.disk)}")
        if checkpoint is None:
            self.files.cut(0)
            return Cursor()
        cursor = Cursor(**checkpoint.cursor["loop"])
        self.engine.load_state(MODEL, checkpoint.weights, checkpoint.state)
        if missing := self.files.cut(checkpoint.cursor["metrics_bytes"]):
            self.reporter.log(f"metrics.jsonl was changed: {missing:,} bytes of the steps before are missing in it")
        self.saver.last, self.saver.cursor = checkpoint, cursor
        self.saver.prune(self.protected(cursor))
        self.reporter.log(f"resumed after step {cursor.step} of {self.total}")
        return cursor

    def make_model(self) -> None:
        """The model to train: an adapter, all parameters, or the adapter of a warm start."""
        hyper, lora = self.spec.hyper, self.spec.model.lora
        warm = Path(self.spec.inputs.warm_start) if self.spec.inputs.warm_start else None
        spec = None
        if hyper.lora_rank and hyper.lora_alpha:
            targets = lora.targets if isinstance(lora.targets, str) else tuple(lora.targets)
            spec = LoraSpec(hyper.lora_rank, hyper.lora_alpha, lora.dropout, targets, lora.rslora)
        self.engine.create_model(MODEL, lora=spec, seed=self.spec.train.seed, warm_start=warm)

    def prepare(self) -> bool:
        """What is to be done with the untrained model, in every attempt; False = broken off by a request to stop."""
        return True

    @abstractmethod
    def gather(self, batches: Step) -> Gathered:
        """Add the gradients of one step's batches. Raises `FloatingPointError` for a loss that is not finite."""

    @abstractmethod
    def figures(self) -> dict[str, float] | None:
        """What the model is worth on the held-out rows, with `eval/loss`; None = broken off."""

    def remaining(self, cursor: Cursor) -> Iterator[tuple[int, Step]]:
        """(epoch, step) of all that is still to do."""
        done = cursor.step
        for epoch, steps in enumerate(self.steps_of_epoch):
            if done >= steps:
                done -= steps
                continue
            for step in self.plan(epoch)[done:]:
                yield epoch, step
            done = 0

    def settle(self, cursor: Cursor) -> Cursor:
        """All that is due after this step: evaluation, parity, checkpoint. Broken off by a request to stop, it is
        begun again after the resume."""
        self.saver.collect()
        if cursor.settled == cursor.step:
            return cursor
        due = cursor.step == 0 or self.due(cursor.step, self.spec.train.evaluate_every_steps)
        if due and self.held_out:
            with self.stage(EVALUATION):
                judged = self.evaluate(cursor)
            if judged is None:
                return cursor
            cursor = judged
        cursor = replace(cursor, settled=cursor.step)
        save = self.save_due(cursor, evaluated=due)
        if save or cursor.step == 0:
            cursor = self.compare(cursor)
        if save:
            self.save(cursor)
        return cursor

    def advance(self, cursor: Cursor, step: tuple[int, Step]) -> Cursor:
        """One optimizer step: gradients of its batches, summed; one division; one update."""
        started = time.perf_counter()
        epoch, batches = step
        trained = self.padding = 0
        tokens = sum(self.lengths[row] for batch in batches for row in batch)
        values: dict[str, float] = {"epoch": epoch}
        with self.stage(STEP):
            params = self.adam(cursor.step + 1)
            try:
                found = self.gather(batches)
                told = self.engine.optim_step(MODEL, params, denominator=found.denominator)
                values |= {**found.values, "learning_rate": params.learning_rate, **told}
                trained = found.trained
            except FloatingPointError as error:
                cursor = self.skip(cursor, batches, error)
        watched = values.get(self.best.metric)
        cursor = replace(cursor, step=cursor.step + 1, tokens=cursor.tokens + tokens, watched=watched)
        seconds = time.perf_counter() - started
        values |= {"rows": sum(map(len, batches)), "tokens": tokens, "trained_tokens": trained}
        if self.spec.train.on_nonfinite == "skip":
            values["skipped_steps"] = cursor.skipped_steps
        perf = {
            f"{PERF}seconds": seconds, f"{PERF}tokens_per_second": tokens / seconds, f"{PERF}peak_mb": _peak_mb(),
            f"{PERF}padded_tokens": self.padding,
        }  # fmt: skip
        self.reporter.progress(100.0 * cursor.step / self.total, epoch=epoch, input_tokens=cursor.tokens)
        self.reporter.metrics(cursor.step, {**values, **perf})
        return cursor

    def checked(self, data: list[Datum], **loss: Any) -> ForwardResult:
        """Add one batch's gradient. Raises `FloatingPointError` when its loss is not finite."""
        result = self.engine.forward_backward(MODEL, data, **loss)
        self.padding += result.padding
        if not math.isfinite(found := result.metrics["loss:sum"]):
            self.engine.clear_gradient(MODEL)
            raise FloatingPointError(f"the loss is {found}")
        return result

    def skip(self, cursor: Cursor, batches: Step, error: FloatingPointError) -> Cursor:
        """The step is left out, if the policy says so and has not done so too often; else raises `NonFinite`."""
        train, step = self.spec.train, cursor.step + 1
        rows = [row for batch in batches for row in batch]
        named = ", ".join(self.material.place(row) for row in rows[:_ROWS_NAMED])
        more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
        words = f"step {step}: {error}; its rows are {named}{more}"
        if train.on_nonfinite == "skip" and cursor.skipped_steps < train.max_skipped_steps:
            self.reporter.log(f"{words}: left out, no weight has changed")
            return replace(cursor, skipped_steps=cursor.skipped_steps + 1)
        self.saver.wait()
        last = self.saver.last
        kept = f"the last good checkpoint is {last.path}" if last else "there is no checkpoint yet"
        limit = f", and {cursor.skipped_steps} steps were left out before it (train.max_skipped_steps)"
        raise NonFinite(
            f"{words}{limit if cursor.skipped_steps else ''}. No weight has changed; {kept}. Look at these rows, lower "
            "the learning rate, or set train.on_nonfinite=skip to leave such steps out"
        ) from error

    def adam(self, step: int) -> AdamParams:
        """The update's constants and this step's rate."""
        train, hyper = self.spec.train, self.spec.hyper
        rate = learning_rate(
            step, self.total, peak=hyper.learning_rate, warmup=hyper.warmup_steps,
            kind=train.scheduler, min_ratio=train.min_lr_ratio,
        )  # fmt: skip
        return AdamParams(
            rate, train.adam_beta1, train.adam_beta2, train.adam_eps, hyper.weight_decay, train.max_grad_norm
        )

    def due(self, step: int, every: int) -> bool:
        """True at multiples of `every`, or with 0 at the ends of epochs; always at the last step."""
        if step == self.total:
            return True
        if every:
            return step % every == 0
        ends = [sum(self.steps_of_epoch[: n + 1]) for n in range(len(self.steps_of_epoch))]
        return step in ends

    def save_due(self, cursor: Cursor, *, evaluated: bool) -> bool:
        """Save at the interval, and whenever early stopping has just seen its best (be it the untrained weights)."""
        best = evaluated and self.spec.early_stop and cursor.best_step == cursor.step
        return best or (cursor.step > 0 and self.due(cursor.step, self.spec.train.checkpoint_every_steps))

    def evaluate(self, cursor: Cursor) -> Cursor | None:
        """Held-out figures, reported; keeps the best and counts evaluations without a better one. None: broken off."""
        values = self.figures()
        if values is None:
            return None
        if self.spec.train.score_every_evaluation:
            given = self.before if cursor.step == 0 else self.ask()
            if given is None:
                return None
            values[EXACT_MATCH] = evaluation.exact_match(given)
        if not math.isfinite(values[LOSS]):
            self.refuse_evaluation(cursor, values[LOSS])
            values = {name: value for name, value in values.items() if math.isfinite(value)}
        if values:
            self.reporter.metrics(cursor.step, values)
        return self.judge(cursor, values.get(self.best.metric, cursor.watched))

    def refuse_evaluation(self, cursor: Cursor, loss: float) -> None:
        """A held-out loss that is not finite fails the run, or by policy counts as an evaluation that is no better."""
        words = f"the held-out loss after step {cursor.step} is {loss}"
        if self.spec.train.on_nonfinite == "stop":
            raise NonFinite(
                f"{words}; lower the learning rate, look at the held-out rows, or set train.on_nonfinite=skip to go on"
            )
        self.reporter.log(f"{words}: it counts as no better")

    def judge(self, cursor: Cursor, value: float | None) -> Cursor:
        """The cursor after an evaluation; `value` of the metric that early stopping goes by, None = there is none."""
        if value is not None and self.best.improves(value, cursor.best_value):
            return replace(cursor, best_step=cursor.step, best_value=value, worse=0)
        if cursor.step == 0:
            return cursor  # no step has been logged yet
        worse = cursor.worse + 1
        enough = self.spec.early_stop and worse >= self.spec.train.early_stop_patience
        return replace(cursor, worse=worse, stopped_early=enough and cursor.step < self.total)

    def compare(self, cursor: Cursor) -> Cursor:
        """Measure and report the parity gap. Raises `ParityBroken` where it is broken before the first step."""
        if self.gate is None:
            return cursor
        gap = self.gate.gap()
        if gap is not None and math.isfinite(gap):
            self.reporter.metrics(cursor.step, {GAP: gap})
        found = self.gate.breaches(gap)
        if found and cursor.step == 0:
            raise ParityBroken(
                "what is trained and what is sampled are not the same: "
                f"{'; '.join(found)}. Nothing was trained; train.parity_prompts=0 trains regardless"
            )
        return replace(cursor, parity_broken="; ".join(found))

    def save(self, cursor: Cursor) -> None:
        """A checkpoint of this very moment; whether it may become a model is up to the parity gate."""

        def fill(weights: Path, state: Path) -> bool:
            self.engine.save_weights(MODEL, weights)
            self.engine.save_state(MODEL, state)
            found = [cursor.parity_broken, *(self.gate.breaches_of(weights) if self.gate else [])]
            broken = "; ".join(words for words in found if words)
            if broken:
                self.reporter.log(f"the checkpoint of step {cursor.step} cannot be promoted: {broken}")
            return not broken

        with self.stage(SAVE):
            self.saver.save(cursor, metrics_bytes=self.files.position(), fill=fill, protect=self.protected(cursor))

    def protected(self, cursor: Cursor) -> set[int]:
        """Steps whose checkpoints are kept however old they are."""
        return {cursor.best_step} if self.spec.early_stop else set()

    def saved(self, cursor: Cursor) -> Checkpoint:
        """The checkpoint of this very moment, complete on disk."""
        with self.stage(SAVE):
            self.saver.wait()
        if self.saver.cursor != cursor:
            self.save(cursor)
            with self.stage(SAVE):
                self.saver.wait()
        if self.saver.cursor != cursor or self.saver.last is None:
            raise OSError(f"{self.root}: the last checkpoint, of step {cursor.step}, was not written; the log says why")
        return self.saver.last

    def choose(self, cursor: Cursor, last: Checkpoint) -> Checkpoint:
        """The checkpoint that becomes the model: the last, or with early stopping the best."""
        if not self.spec.early_stop or cursor.best_value is None or cursor.best_step == last.step:
            return last
        try:
            best = checkpoints.read(self.root / f"step-{cursor.best_step}")
            checkpoints.verify(best)
        except CheckpointCorrupt as error:
            self.reporter.log(f"the best checkpoint cannot be used, the last one becomes the model: {error}")
            return last
        self.reporter.log(f"the best {self.best.metric} was at step {best.step}: its weights become the model")
        self.engine.load_state(MODEL, best.weights, None)
        return best

    def keep_going(self) -> bool:
        """False once the run was asked to stop."""
        return not self.stop.requested

    def answers_before(self, cursor: Cursor) -> list[Answer]:
        """Answers of the untrained model; a resumed run finds them where the first attempt wrote them."""
        if cursor.step == 0:
            return self.answers("before") or []
        stored = self.samples().get("before", [])
        return [Answer(one["asked"], one["expected"], one["given"]) for one in stored]

    def answers(self, when: str) -> list[Answer] | None:
        """Greedy answers to the held-out questions, written to `samples.json` under `when`; None: broken off."""
        with self.stage(EVALUATION):
            given = self.ask()
        if given is None:
            return None
        known = self.samples() if when != "before" else {}
        known[when] = [one.record() for one in given]
        write_whole(self.folder / "samples.json", json.dumps(known, indent=1, ensure_ascii=False).encode())
        if given and self.spec.train.score_rows:
            self.reporter.log(f"held-out exact match {when}: {evaluation.exact_match(given):.1%} of {len(given)} rows")
        return given

    def samples(self) -> dict[str, list[dict[str, Any]]]:
        """What `samples.json` holds."""
        path = self.folder / "samples.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError as error:
            self.reporter.log(f"{path} was changed and cannot be read ({error}); the earlier answers are lost")
            return {}

    def ask(self) -> list[Answer] | None:
        """Greedy answers to the held-out questions, as the model is now."""
        return evaluation.answer_or_stop(
            self.engine, MODEL, self.material.questions,
            max_tokens=self.spec.train.sample_max_tokens, decode=self.decode, keep_going=self.keep_going,
        )  # fmt: skip


def terminal_state(outcome: Outcome) -> JobState:
    """The job's last state for this outcome."""
    if outcome.paused:
        return JobState.PAUSED
    return JobState.EARLY_STOPPED if outcome.cursor.stopped_early else JobState.COMPLETED


def datums_of(examples: Iterable[Example]) -> list[Datum]:
    """Examples as an engine takes them: a pair as chosen and rejected."""
    return [datum for one in examples for datum in (one.datums if isinstance(one, Pair) else (one,))]


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
