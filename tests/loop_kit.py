"""What the loop's tests share: a run of a few steps on the toy engine, and what it left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.crashing_disk import QuickDisk
from trainer.data.datum import Datum
from trainer.disk import Disk
from trainer.engine.base import ForwardResult
from trainer.engine.toy import ToyEngine
from trainer.jobs import SupervisedFineTuningJob
from trainer.loops.evaluation import Question
from trainer.loops.parity import ParityGate
from trainer.loops.sft import SftLoop
from trainer.loops.stop import Stop
from trainer.loops.training import MODEL, Material, Outcome, datums_of
from trainer.objectives import OBJECTIVES
from trainer.report import Reporter
from trainer.runs import (
    DataSettings,
    EngineSettings,
    GatewaySettings,
    Hyperparameters,
    Inputs,
    LaunchSettings,
    LoraSettings,
    ModelSettings,
    RowSource,
    RunSpec,
    TrainSettings,
)
from trainer.tracking import Journal, MetricsFiles, Quiet, Tee

VOCABULARY = 8
QUICK = QuickDisk()


def make_spec(*, job: dict[str, Any] | None = None, train: dict[str, Any] | None = None) -> RunSpec:
    """18 rows in batches of 4: 5 steps an epoch, 3 epochs, 15 steps."""
    wanted = SupervisedFineTuningJob.model_validate(
        {
            "dataset": "rows",
            "base_model": "toy",
            "epochs": 3,
            "learning_rate": 0.1,
            "batch_size_samples": 4,
            **(job or {}),
        }
    )
    return RunSpec(
        id="run", kind="sft", created="now", trainer_version="0", job=wanted,
        model=ModelSettings(name="toy", path="toy"), data=DataSettings(), train=TrainSettings(**(train or {})),
        engine=EngineSettings(), launch=LaunchSettings(), gateway=GatewaySettings(kind="off"),
        inputs=Inputs(base_model="toy", train=RowSource(name="rows", path="rows")),
        hyper=Hyperparameters.of(wanted, LoraSettings()), objective=OBJECTIVES["sft"],
    )  # fmt: skip


def rows(count: int, seed: int) -> list[Datum]:
    """Rows in which each token is followed by its double, modulo the vocabulary; the first position is not trained."""
    random = np.random.default_rng(seed)
    data = []
    for _ in range(count):
        ids = [int(random.integers(1, VOCABULARY))]
        for _ in range(int(random.integers(2, 6))):
            ids.append(ids[-1] * 2 % VOCABULARY or 1)
        weights = np.ones(len(ids) - 1, np.float32)
        weights[0] = 0
        data.append(Datum(np.array(ids[:-1], np.int64), np.array(ids[1:], np.int64), weights))
    return data


def material(**changes: Any) -> Material:
    """18 rows to learn, 5 held out, one question."""
    return Material(rows(18, 0), rows(5, 1), [Question(np.array([3]), "3", "6")], **changes)


class OnMetrics(Quiet):
    """Calls `then(stop)` once `name` of step `step` has been reported."""

    def __init__(self, stop: Stop, step: int, name: str, then: Callable[[Stop], None]) -> None:
        self.stop, self.step, self.name, self.then = stop, step, name, then

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if step == self.step and self.name in values:
            self.then(self.stop)


def request(stop: Stop) -> None:
    """As a SIGTERM does."""
    stop.requested = True


def run(
    folder: Path,
    spec: RunSpec,
    *,
    engine: ToyEngine | None = None,
    given: Material | None = None,
    stop_at: int = -1,
    disk: Disk = QUICK,
    stop: Stop | None = None,
    loop: Any = SftLoop,
    **more: Any,
) -> Outcome:
    """Run the loop in `folder`; asked to stop once step `stop_at` has been reported."""
    folder.mkdir(exist_ok=True)
    stop, files = stop or Stop(), MetricsFiles(folder)
    reporter: Reporter = Tee([Journal(folder), files, OnMetrics(stop, stop_at, "tokens", request)])
    engine, given = engine or ToyEngine(VOCABULARY), given or material()
    parity = ParityGate(engine, MODEL, [datum.tokens[:1] for datum in datums_of(given.train[:2])], 1e-3)
    try:
        made = loop(
            spec, given, engine=engine, folder=folder, reporter=reporter, files=files,
            decode=lambda ids: " ".join(map(str, ids)), stop=stop, gate=parity, disk=disk, **more,
        )  # fmt: skip
        return made.run()
    finally:
        reporter.close()


def lines(folder: Path, name: str = "") -> list[dict[str, Any]]:
    """The metrics, those that have `name`."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if not name or name in line]


def log(folder: Path) -> str:
    """Everything the run said."""
    return (folder / "sync.jsonl").read_text()


def assert_equal(one: Path, other: Path) -> None:
    """Metrics, samples and the newest checkpoints' files are equal bit by bit."""
    for pattern in ("metrics.jsonl", "samples.json", "checkpoints/*/weights/*", "checkpoints/*/state/*"):
        mine, theirs = (
            {path.relative_to(top): path.read_bytes() for path in top.glob(pattern)} for top in (one, other)
        )
        assert mine and mine == theirs, pattern


class Poisoned(ToyEngine):
    """The loss of the datums at `loss_at` (counted over all training calls) is NaN, the gradient at `gradient_at`."""

    def __init__(self, *, loss_at: tuple[int, ...] = (), gradient_at: tuple[int, ...] = (), **settings: Any) -> None:
        super().__init__(VOCABULARY, **settings)
        self.loss_at, self.gradient_at, self.calls = loss_at, gradient_at, 0

    def forward_backward(self, model: str, data: Any, **more: Any) -> ForwardResult:
        self.calls += 1
        result = super().forward_backward(model, data, **more)
        if self.calls in self.gradient_at:
            self._models[model].gradient_VV[0, 0] = np.inf
        if self.calls in self.loss_at:
            return ForwardResult(result.logprobs, {**result.metrics, "loss:sum": float("nan")})
        return result
