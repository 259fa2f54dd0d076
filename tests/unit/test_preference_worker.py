"""Preference jobs through the real worker: LoRA and all parameters, what the run leaves, and a real file of pairs."""

import json
import shutil
from pathlib import Path

import pytest

from trainer.attempt import EXIT_DONE, Worker
from trainer.compose import compose
from trainer.loops.stop import Stop
from trainer.runs import Inputs, RowSource, RunSpec, shipped

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "preference" / "ifeval_orpo.jsonl"
QUICK = (
    "gateway=off", "engine.device=cpu", "engine.threads=1", "train.sample_rows=0", "train.score_rows=0",
    "train.parity_prompts=1",
)  # fmt: skip


def train(folder: Path, *words: str, base: str | None = None) -> RunSpec:
    composed = compose([*QUICK, *words])
    held_out = composed.data.evaluation
    inputs = Inputs(
        base_model=base or composed.model.path, train=RowSource(name="train", path=composed.job.dataset),
        evaluation=RowSource(name="eval", path=held_out) if held_out else None,
    )  # fmt: skip
    composed.spec("run", inputs, created="2026-01-01T00:00:00Z").save(folder)
    spec = RunSpec.load(folder)
    assert Worker(spec, folder, stop=Stop()).run() == EXIT_DONE
    return spec


def metrics(folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize("job", ["dpo", "orpo"])
def test_a_short_job_from_pairs_to_a_model(tmp_path, job):
    spec = train(tmp_path, f"job={job}", "data.max_rows=128", "job.training_config.lora_target_modules=[q_proj,v_proj]")
    assert spec.job.wire()["lossConfig"]["method"] == job.upper() and spec.kind == "dpo"
    losses = metrics(tmp_path, "loss")
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert metrics(tmp_path, "eval/preference")[0] == 0.46  # of the 200 held-out pairs
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    pieces = list((tmp_path / "reference").glob("*/*.safetensors")) if job == "dpo" else []
    assert len(pieces) == (6 if job == "dpo" else 0)  # 128 and 200 pairs, by 64
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/preference")
def test_real_pairs_train_on_a_base_with_a_long_context(tmp_path):
    base = tmp_path / "long"
    shutil.copytree(shipped("models/tiny"), base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32768}))
    folder = tmp_path / "run"
    train(
        folder, "job=dpo", f"data.train={REAL}", "data.overlong=drop", "data.gates.dropped_rows=1", "data.max_rows=40",
        "job.training_config.max_context_length=4096", "job.training_config.learning_rate=1e-3",
        "job.training_config.epochs=4", "job.training_config.batch_size_samples=4", base=str(base),
    )  # fmt: skip
    ledger = json.loads((folder / "ledger.json").read_text())["totals"]
    assert (ledger["rows"]["read"], ledger["rows"]["used"], ledger["rows"]["dropped"]) == (40, 8, 32)
    assert ledger["tokens"]["total"] == ledger["tokens"]["kept"] + ledger["tokens"]["dropped"] == 619_666
    losses = metrics(folder, "loss")
    assert len(losses) == 8 and losses[0] == pytest.approx(0.6931, abs=1e-3) and losses[-1] < 0.9 * losses[0]
