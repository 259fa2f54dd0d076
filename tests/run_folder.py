"""A run's folder made by hand, in any state, with hostile text where a stranger's text can come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.checkpoints import file_sha256
from trainer.jobs import JobState, SupervisedFineTuningJob
from trainer.objectives import OBJECTIVES
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

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\"'&{{ 7*7 }}\u202e\x00\x1b[31m"


def described(top: Path, *, base: str | None = None, seed: int = 0, **job: Any) -> RunSpec:
    """A run described in `top/run`, with its rows and a base model's files beside it."""
    rows, model = top / "rows.jsonl", top / "base"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    model.mkdir(exist_ok=True)
    for name, content in (("model.safetensors", b"weights"), ("config.json", b"{}"), ("tokenizer.json", b"{}")):
        (model / name).write_bytes(content)
    wanted = SupervisedFineTuningJob.model_validate({"dataset": str(rows), "base_model": "toy", **job})
    where = base or str(model)
    spec = RunSpec(
        id="run", kind="sft", created="2026-01-01T00:00:00Z", trainer_version="0", job=wanted,
        model=ModelSettings(name="toy", path=where), data=DataSettings(), train=TrainSettings(seed=seed),
        engine=EngineSettings(), launch=LaunchSettings(), gateway=GatewaySettings(kind="off"),
        inputs=Inputs(
            base_model=where, train=RowSource(name=str(rows), path=str(rows), sha256=file_sha256(rows))
        ),
        hyper=Hyperparameters.of(wanted, LoraSettings()), objective=OBJECTIVES["sft"],
        overrides=["data.train=rows.jsonl"], sources={"job.dataset": "typed (as data.train)"},
    )  # fmt: skip
    spec.save(top / "run")
    return spec


def journal(folder: Path, *states: JobState, message: str = "") -> None:
    """`sync.jsonl` with one event a second for each state; the last one has `message`."""
    lines = []
    for number, state in enumerate(states, start=1):
        body = {"state": state, "code": "OK", "message": message if number == len(states) else ""}
        time = f"2026-01-01T00:00:{number:02d}Z"
        lines.append(json.dumps({"seq": number, "time": time, "kind": "state", "body": body}))
    (folder / "sync.jsonl").write_text("".join(f"{line}\n" for line in lines))


def lines(path: Path, values: list[dict[str, Any]]) -> None:
    """A .jsonl file."""
    path.write_text("".join(f"{json.dumps(one)}\n" for one in values))
