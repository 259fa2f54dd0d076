"""Supervised fine-tuning, from the first batch to the output model.

The story: make or restore the model, answer some held-out rows, then step by step add the gradients of the step's
batches, divide once by the step's trained tokens, and update; evaluate and save at their intervals; at the end answer
the same rows again and hand over the weights. The order of rows is a pure function of the seed, so a checkpoint only
needs to say how many steps are done to go on exactly.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from trainer import checkpoints
from trainer.checkpoints import Checkpoint
from trainer.data.batches import Step, plan_epoch
from trainer.data.datum import Datum
from trainer.engine.base import AdamParams, Engine, LoraSpec
from trainer.jobs import JobState
from trainer.loops import evaluation
from trainer.loops.evaluation import Answer, Question
from trainer.loops.schedule import learning_rate
from trainer.loops.stop import Stop
from trainer.report import Reporter
from trainer.runs import RunSpec
from trainer.tracking import PERF, MetricsFiles

MODEL = "policy"


@dataclass(frozen=True, eq=False)
class Material:
    """What there is to learn from and to be judged by."""

    train: list[Datum]
    held_out: list[Datum] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


@dataclass(frozen=True)
class Cursor:
    """Where the loop stands; a checkpoint stores it. `best_*` and `worse` serve early stopping."""

    step: int = 0
    tokens: int = 0
    best_step: int = 0
    best_loss: float | None = None
    worse: int = 0
    stopped_early: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """How the loop ended: `paused` when asked to stop; `checkpoint` is the last one, or the one to promote."""

    paused: bool
    cursor: Cursor
    checkpoint: Checkpoint
    before: list[Answer]
    after: list[Answer]


class SftLoop:
    """One supervised run on an engine. Knows no gateway, no console and no tensor."""

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
    ) -> None:
        self.spec, self.material, self.engine, self.folder = spec, material, engine, folder
        self.reporter, self.files, self.decode, self.stop = reporter, files, decode, stop
        self.root = folder / "checkpoints"
        self.lengths = [datum.length for datum in material.train]
        self.steps_of_epoch = [len(self.plan(epoch)) for epoch in range(spec.hyper.epochs)]
        self.total = sum(self.steps_of_epoch)

    def run(self) -> Outcome:
        """Train to the end, to an early stop, or to a request to stop."""
        cursor, checkpoint = self.begin()
        before = self.answers_before(cursor)
        if cursor.step == 0:
            cursor = self.evaluate(cursor)
            if self.spec.job.early_stop:
                checkpoint = self.save(cursor)  # the untrained weights may turn out to be the best
        for step in self.remaining(cursor):
            if self.stop.requested or cursor.stopped_early:
                break
            cursor = self.advance(cursor, step)
            due = self.due(cursor.step, self.spec.train.evaluate_every_steps)
            if due:
                cursor = self.evaluate(cursor)
            if self.save_due(cursor, evaluated=due):
                checkpoint = self.save(cursor)
        finished = cursor.step == self.total or cursor.stopped_early
        if checkpoint is None or checkpoint.step != cursor.step:
            checkpoint = self.save(cursor)
        if not finished:
            return Outcome(True, cursor, checkpoint, before, [])
        checkpoint = self.choose(cursor, checkpoint)
        return Outcome(False, cursor, checkpoint, before, self.answers("after"))

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

    def begin(self) -> tuple[Cursor, Checkpoint | None]:
        """Make the model and, where there is a checkpoint, go on from the newest whole one."""
        self.make_model()
        if self.root.exists():
            checkpoints.clean(self.root)
        checkpoint = checkpoints.newest(self.root, damaged=lambda error: self.reporter.log(f"passed over: {error}"))
        if checkpoint is None:
            self.files.cut(0)
            return Cursor(), None
        cursor = Cursor(**checkpoint.cursor["loop"])
        self.engine.load_state(MODEL, checkpoint.weights, checkpoint.state)
        self.files.cut(checkpoint.cursor["metrics_bytes"])
        self.reporter.log(f"resumed after step {cursor.step} of {self.total}")
        return cursor, checkpoint

    def make_model(self) -> None:
        """The model to train: an adapter, all parameters, or the adapter of a warm start."""
        hyper, lora = self.spec.hyper, self.spec.model.lora
        warm = Path(self.spec.inputs.warm_start) if self.spec.inputs.warm_start else None
        spec = None
        if hyper.lora_rank and hyper.lora_alpha:
            targets = lora.targets if isinstance(lora.targets, str) else tuple(lora.targets)
            spec = LoraSpec(hyper.lora_rank, hyper.lora_alpha, lora.dropout, targets, lora.rslora)
        self.engine.create_model(MODEL, lora=spec, seed=self.spec.train.seed, warm_start=warm)

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

    def advance(self, cursor: Cursor, step: tuple[int, Step]) -> Cursor:
        """One optimizer step: gradients of its batches, summed; one division; one update."""
        started = time.perf_counter()
        epoch, batches = step
        loss = trained = 0.0
        tokens = rows = 0
        for batch in batches:
            data = [self.material.train[row] for row in batch]
            loss += self.engine.forward_backward(MODEL, data).metrics["loss:sum"]
            trained += sum(float(datum.weights.sum()) for datum in data)
            tokens += sum(datum.length for datum in data)
            rows += len(data)
        params = self.adam(cursor.step + 1)
        told = self.engine.optim_step(MODEL, params, denominator=trained)
        cursor = replace(cursor, step=cursor.step + 1, tokens=cursor.tokens + tokens)
        seconds = time.perf_counter() - started
        values = {
            "epoch": epoch, "loss": loss / trained, "learning_rate": params.learning_rate,
            "grad_norm": told["grad_norm"], "rows": rows, "tokens": tokens, "trained_tokens": int(trained),
            f"{PERF}seconds": seconds, f"{PERF}tokens_per_second": tokens / seconds, f"{PERF}peak_mb": _peak_mb(),
        }  # fmt: skip
        self.reporter.progress(100.0 * cursor.step / self.total, epoch=epoch, input_tokens=cursor.tokens)
        self.reporter.metrics(cursor.step, values)
        return cursor

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
        """Save at the interval, and whenever early stopping has just seen its best."""
        best = evaluated and self.spec.job.early_stop and cursor.best_step == cursor.step
        return best or self.due(cursor.step, self.spec.train.checkpoint_every_steps)

    def evaluate(self, cursor: Cursor) -> Cursor:
        """Held-out loss, reported; keeps the best and counts evaluations without a better one."""
        if not self.material.held_out:
            return cursor
        loss = evaluation.held_out_loss(self.engine, MODEL, self.material.held_out)
        self.reporter.metrics(cursor.step, {"eval/loss": loss})
        if cursor.best_loss is None or loss < cursor.best_loss:
            return replace(cursor, best_step=cursor.step, best_loss=loss, worse=0)
        worse = cursor.worse + 1
        enough = self.spec.job.early_stop and worse >= self.spec.train.early_stop_patience
        return replace(cursor, worse=worse, stopped_early=enough and cursor.step < self.total)

    def save(self, cursor: Cursor) -> Checkpoint:
        """Write a checkpoint of this very moment, then let go of old ones."""

        def fill(weights: Path, state: Path) -> None:
            self.engine.save_weights(MODEL, weights)
            self.engine.save_state(MODEL, state)

        stands = {"loop": asdict(cursor), "metrics_bytes": self.files.position()}
        lora = self.spec.hyper.lora_rank != 0
        checkpoint = checkpoints.write(self.root, cursor.step, lora=lora, cursor=stands, fill=fill)
        protect = {cursor.best_step} if self.spec.job.early_stop else set()
        checkpoints.prune(self.root, keep=self.spec.train.keep_checkpoints, protect=protect)
        self.reporter.checkpoint(
            {
                "id": f"step-{cursor.step}",
                "step": cursor.step,
                "types": list(checkpoint.types),
                "promotable": checkpoint.promotable,
                "path": str(checkpoint.path),
            }
        )
        return checkpoint

    def choose(self, cursor: Cursor, last: Checkpoint) -> Checkpoint:
        """The checkpoint that becomes the model: the last, or with early stopping the best."""
        if not self.spec.job.early_stop or cursor.best_step == last.step:
            return last
        best = checkpoints.read(self.root / f"step-{cursor.best_step}")
        checkpoints.verify(best)
        self.reporter.log(f"the best held-out loss was at step {best.step}: its weights become the model")
        self.engine.load_state(MODEL, best.weights, None)
        return best

    def answers_before(self, cursor: Cursor) -> list[Answer]:
        """Answers of the untrained model; a resumed run finds them where the first attempt wrote them."""
        path = self.folder / "samples.json"
        if cursor.step and path.exists():
            stored = json.loads(path.read_text(encoding="utf-8")).get("before", [])
            return [Answer(one["asked"], one["expected"], one["given"]) for one in stored]
        return self.answers("before")

    def answers(self, when: str) -> list[Answer]:
        """Greedy answers to the held-out questions, written to `samples.json` under `when`."""
        longest = self.spec.train.sample_max_tokens
        questions = self.material.questions
        given = evaluation.answer(self.engine, MODEL, questions, max_tokens=longest, decode=self.decode)
        path = self.folder / "samples.json"
        known = json.loads(path.read_text(encoding="utf-8")) if when != "before" and path.exists() else {}
        known[when] = [one.record() for one in given]
        path.write_text(json.dumps(known, indent=1, ensure_ascii=False), encoding="utf-8")
        if given and self.spec.train.score_rows:
            self.reporter.log(f"held-out exact match {when}: {evaluation.exact_match(given):.1%} of {len(given)} rows")
        return given


def terminal_state(outcome: Outcome) -> JobState:
    """The job's last state for this outcome."""
    if outcome.paused:
        return JobState.PAUSED
    return JobState.EARLY_STOPPED if outcome.cursor.stopped_early else JobState.COMPLETED


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
