"""Supervised fine-tuning against TRL's SFTTrainer: useful tokens per second and peak memory, in alternating rounds.

Every arm is a process of its own that builds its model once and then waits; the parent lets one arm at a time work
through a round of rows, in turn, so that the machine's moods fall on all of them, no arm's memory or allocator touches
another's, and start-up is outside the clock. The first round is a warm-up. Before anything is timed, ours and TRL
(padded) train the same rows for a few steps: unless losses, gradient norms and weights agree, nothing is reported.

Arms: `trl-padded`; `trl-packed` (bfd, each at its best length); `trl-grouped`, whose rows come in the order that
transformers' own length-grouped sampler gives for 6,400 rows, its batches dealt over the rounds so that each round
sees all lengths (better for TRL than sampling from the few rows of a round); `ours`: LocalEngine through the steps of
`trainer/loops/sft.py`, on shuffled rows. TRL's batch sizes are those that `--sweep` found fastest. Useful tokens are
tokens that are not padding.

    OMP_NUM_THREADS=1 python scripts/bench_sft.py [--quick] [--work chats-lora] [--out bench.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.turns import Child, Turn, children, in_turn, say

POOL = 6400  # rows; from so many on transformers groups over 50 batches of 32
ROWS_PER_STEP = 32
VOCABULARY = 512  # that of the shipped tiny model, whose tokenizer TRL is given (it only pads with it)
TOLERANCE = {"loss": 1e-5, "grad_norm": 1e-4, "update": 1e-2}  # relative; `update` of all weights, as one vector
SHAPES = {"s": (128, 4, 4, 2, 32, 384), "l": (256, 4, 8, 2, 32, 768)}  # hidden, layers, heads, kv, head size, MLP


@dataclass(frozen=True)
class Work:
    """A workload: model size, adapter rank (0 = all parameters), row lengths, rows in a round, vocabulary."""

    name: str
    size: str
    rank: int
    shortest: int
    longest: int
    rows: int
    vocabulary: int = VOCABULARY


WORKS = (
    Work("chats-full-s", "s", 0, 40, 400, 256),
    Work("chats-lora-s", "s", 8, 40, 400, 256),
    Work("chats-full-l", "l", 0, 40, 400, 96),
    Work("chats-lora-l", "l", 8, 40, 400, 96),
    Work("chats-full-v32k", "s", 0, 40, 400, 96, 32_768),
    Work("chats-lora-v32k", "s", 8, 40, 400, 96, 32_768),
    Work("short-full-s", "s", 0, 15, 15, 2048),
    Work("short-lora-s", "s", 8, 15, 15, 2048),
)


@dataclass(frozen=True)
class Arm:
    """Who trains: `micro` rows in a micro-batch, of `packed` tokens each where they are packed."""

    kind: str
    micro: int = 0
    packed: int = 0

    @property
    def label(self) -> str:
        """For tables."""
        size = f" {self.packed}x{self.micro}" if self.packed else f" bs {self.micro}" if self.micro else ""
        return self.kind + size


CANDIDATES = {
    "trl-padded": [Arm("trl-padded", micro) for micro in (4, 8, 16, 32)],
    "trl-packed": [Arm("trl-packed", 1, packed) for packed in (512, 1024, 2048)],
    "trl-grouped": [Arm("trl-grouped", micro) for micro in (4, 8, 16, 32)],
}
GROUPED = {0: 4, 8: 32}  # by rank


def best(kind: str, work: Work) -> Arm:
    """The fastest of TRL's candidates in the last `--sweep` of chats; of rows of one length, a step's at once."""
    if work.shortest == work.longest:
        return {"trl-padded": Arm(kind, 32), "trl-packed": Arm(kind, 1, 1024)}[kind]
    found = {"trl-padded": Arm(kind, 4), "trl-packed": Arm(kind, 1, 512), "trl-grouped": Arm(kind, GROUPED[work.rank])}
    return found[kind]


OURS = Arm("ours")


# Rows and models


def make_rows(work: Work, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, learnt) of `count` seeded rows; the second half of each is learnt."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        ids = generator.integers(6, work.vocabulary, int(generator.integers(work.shortest, work.longest + 1)))
        rows.append((ids, np.arange(len(ids)) >= len(ids) // 2))
    return rows


def make_model(size: str, folder: Path, vocabulary: int) -> None:
    """Write a random Qwen3 of `size` with the shipped tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    hidden, layers, heads, kv_heads, head, inter = SHAPES[size]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head, intermediate_size=inter, max_position_embeddings=1024,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0, initializer_range=0.06,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "trainer/models/tiny").save_pretrained(folder)


def grouped_order(lengths: list[int], rounds: int, steps: int) -> list[int]:
    """Rows as the length-grouped sampler orders all of them, its batches dealt over `rounds` of `steps` batches."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    order = get_length_grouped_indices(lengths, ROWS_PER_STEP, generator=torch.Generator().manual_seed(0))
    batches = [order[at : at + ROWS_PER_STEP] for at in range(0, len(order), ROWS_PER_STEP)]
    batches = [batch for batch in batches if len(batch) == ROWS_PER_STEP]
    stride = len(batches) // steps
    shuffle = random.Random(0)
    dealt: list[int] = []
    for turn in range(rounds):
        chosen = [batches[(turn * 7 % stride) + k * stride] for k in range(steps)]
        shuffle.shuffle(chosen)
        dealt += [row for batch in chosen for row in batch]
    return dealt


# The two children


@dataclass(frozen=True)
class Task:
    """What a child is told. `rounds` includes the warm-up; with `save` it trains so many steps, then saves."""

    work: Work
    arm: Arm
    rounds: int
    base: str
    adapter: str
    save: str = ""


def run_ours(task: Task) -> None:
    """LocalEngine, stepped as `SftLoop.advance` does."""
    from trainer.data.batches import plan_epoch
    from trainer.data.datum import from_row
    from trainer.engine.base import AdamParams
    from trainer.engine.local import LocalEngine
    from trainer.runs import EngineSettings

    work = task.work
    steps = task.rounds if task.save else task.rounds * work.rows // ROWS_PER_STEP
    data = [from_row(*row) for row in make_rows(work, POOL)[: steps * ROWS_PER_STEP]]
    engine = LocalEngine(task.base, EngineSettings(device="cpu", threads=1))
    engine.create_model("m", lora=None, warm_start=Path(task.adapter) if work.rank else None)
    plan = plan_epoch(
        [datum.length for datum in data], batch_tokens=8192 * 2, batch_rows=ROWS_PER_STEP, seed=0, epoch=0,
        shuffle=not task.save,
    )  # fmt: skip
    turn, told = Turn(), []
    per_round = work.rows // ROWS_PER_STEP
    tokens = 0
    for index, step in enumerate(plan):
        if not task.save and index % per_round == 0:
            turn.wait()
            tokens = 0
        loss = trained = 0.0
        for batch in step:
            rows = [data[row] for row in batch]
            loss += engine.forward_backward("m", rows).metrics["loss:sum"]
            trained += sum(float(row.weights.sum()) for row in rows)
            tokens += sum(row.length + 1 for row in rows)
        norm = engine.optim_step("m", AdamParams(1e-4, 0.9, 0.95, 1e-8, 0.0, 1.0), denominator=trained)["grad_norm"]
        told.append((loss / trained, norm))
        if not task.save and (index + 1) % per_round == 0:
            turn.tell(tokens)
    if task.save:
        engine.save_weights("m", Path(task.save))
        say({"steps": told})


def run_trl(task: Task) -> None:
    """SFTTrainer on rows with ids and labels; one call of `train`, its steps cut into rounds by a callback."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRL_EXPERIMENTAL_SILENCE="1")
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    torch.set_num_threads(1)
    disable_progress_bars()
    work, arm = task.work, task.arm
    per_round = work.rows // ROWS_PER_STEP
    rows = make_rows(work, POOL)
    order = list(range(task.rounds * (ROWS_PER_STEP if task.save else work.rows)))
    if arm.kind == "trl-grouped" and work.shortest != work.longest:
        order = grouped_order([len(ids) for ids, _ in rows], task.rounds, per_round)
    columns = {
        "input_ids": [rows[index][0].tolist() for index in order],
        "labels": [np.where(rows[index][1], rows[index][0], -100).tolist() for index in order],
    }
    model: Any = AutoModelForCausalLM.from_pretrained(task.base, dtype=torch.float32)
    if work.rank:
        model = PeftModel.from_pretrained(model, task.adapter, is_trainable=True)
    accumulation = ROWS_PER_STEP // arm.micro
    if arm.packed:
        per_step = ROWS_PER_STEP * (work.shortest + work.longest) / 2
        accumulation = max(1, round(per_step / arm.packed / arm.micro))
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=arm.micro, gradient_accumulation_steps=accumulation,
        max_length=arm.packed or 1024, packing=bool(arm.packed), num_train_epochs=1,
        dataset_kwargs=None if arm.packed else {"skip_prepare_dataset": True},
        train_sampling_strategy="random" if arm.packed else "sequential", learning_rate=1e-4,
        lr_scheduler_type="constant", adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, weight_decay=0.0,
        max_grad_norm=1.0, gradient_checkpointing=False, bf16=False, use_cpu=True, report_to="none",
        logging_strategy="steps" if task.save else "no", logging_steps=1, save_strategy="no", disable_tqdm=True,
        dataloader_num_workers=0, dataloader_pin_memory=False, dataloader_drop_last=True, seed=0,
    )  # fmt: skip
    trainer = SFTTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(task.base),
    )
    if task.save:
        losses = _spy_on_losses(trainer)
        trainer.train()
        norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        trainer.save_model(task.save)
        say({"steps": list(zip(losses, [float(norm) for norm in norms], strict=True))})
        return
    if arm.packed:
        per_round = len(trainer.train_dataset) // (accumulation * task.rounds)  # pyright: ignore
    trainer.add_callback(_turns(trainer, per_round))
    trainer.train()


def _spy_on_losses(trainer: Any) -> list[float]:
    """The exact loss of each step (the log is rounded); one micro-batch a step."""
    losses: list[float] = []
    inner: Callable[..., Any] = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = inner(*args, **kwargs)
        losses.append(float(loss))
        return loss

    trainer.compute_loss = compute_loss
    return losses


def _turns(trainer: Any, per_round: int) -> Any:
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        """Waits before the first step of a round, tells after its last."""

        def __init__(self) -> None:
            self.turn, self.seen = Turn(), 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % per_round == 0:
                self.turn.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % per_round == 0:
                total = int(trainer._total_train_tokens)  # TRL's own count of tokens that are not padding
                self.turn.tell(total - self.seen)
                self.seen = total

    return Turns()


# The parent


def check_numerics(task: Task, folder: Path, steps: int) -> dict[str, float]:
    """Largest relative differences between ours and TRL (padded) after `steps` steps; ends the program if too large."""
    from safetensors.numpy import load_file

    told, moved = [], []
    name = "adapter_model.safetensors" if task.work.rank else "model.safetensors"
    before = load_file(Path(task.adapter if task.work.rank else task.base) / name)
    for arm in (OURS, Arm("trl-padded", ROWS_PER_STEP)):
        out = folder / f"numerics-{task.work.name}-{arm.kind}"
        with arms([replace(task, arm=arm, rounds=steps, save=str(out))]) as (child,):
            told.append(np.asarray(child.read()["steps"]))
        after = load_file(out / name)
        moved.append(np.concatenate([(after[key] - before[key]).ravel() for key in sorted(before)]))
    relative = np.abs(told[0] / told[1] - 1).max(axis=0)
    update = float(np.linalg.norm(moved[0] - moved[1]) / np.linalg.norm(moved[1]))
    found = {"loss": float(relative[0]), "grad_norm": float(relative[1]), "update": update}
    for key, limit in TOLERANCE.items():
        if not found[key] <= limit:
            raise SystemExit(f"{task.work.name}: {key} differs by {found[key]:.2g} (limit {limit}): no times reported")
    return found


def pick(task: Task, kind: str, rounds: int) -> Arm:
    """TRL's fastest candidate of this kind, by its best round."""
    rates = {}
    for arm in CANDIDATES[kind]:
        if arm.packed > POOL or (arm.packed and arm.packed < task.work.longest):
            continue
        with arms([replace(task, arm=arm, rounds=rounds)]) as (child,):
            told = [child.round() for _ in range(rounds)][1:]
        rates[arm] = max(one["done"] / one["cpu"] for one in told)
        print(f"  {arm.label}: {rates[arm]:,.0f} tokens per CPU second", flush=True)
    return max(rates, key=lambda arm: rates[arm])


def arms(tasks: list[Task]) -> AbstractContextManager[list[Child[Task]]]:
    """The arms' processes."""
    return children(__file__, [(task.arm.label, task) for task in tasks])


def measure(task: Task, compared: list[Arm], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Reports of each arm's timed rounds."""
    with arms([replace(task, arm=arm, rounds=rounds + 1) for arm in compared]) as started:
        return dict(zip([arm.kind for arm in compared], in_turn(started, rounds), strict=True))


def summary(told: dict[str, list[dict[str, Any]]], arms: list[Arm]) -> list[dict[str, Any]]:
    """One record an arm: median rates, peak memory, and ours over it, round by round."""
    rates = {kind: [one["done"] / one["cpu"] for one in rounds] for kind, rounds in told.items()}
    walls = {kind: [one["done"] / one["wall"] for one in rounds] for kind, rounds in told.items()}
    records = []
    for arm in arms:
        ratios = [mine / theirs for mine, theirs in zip(rates["ours"], rates[arm.kind], strict=True)]
        records.append(
            {
                "arm": arm.label,
                "per_cpu_second": rates[arm.kind],
                "median_per_cpu_second": statistics.median(rates[arm.kind]),
                "median_per_wall_second": statistics.median(walls[arm.kind]),
                "peak_mb": max(one["peak_mb"] for one in told[arm.kind]),
                "peak_over_idle_mb": max(one["peak_mb"] - one["idle_mb"] for one in told[arm.kind]),
                "ours_over_it": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
            }
        )
    return records


def table(records: list[dict[str, Any]]) -> str:
    """A markdown table."""
    lines = [
        "| arm | tokens per CPU s (min..max) | per wall s | peak MB (above idle) | ours is faster by (min..max) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in records:
        rates, ratio = one["per_cpu_second"], one["ours_over_it"]
        lines.append(
            f"| {one['arm']} | {one['median_per_cpu_second']:,.0f} ({min(rates):,.0f}..{max(rates):,.0f}) "
            f"| {one['median_per_wall_second']:,.0f} | {one['peak_mb']:,.0f} ({one['peak_over_idle_mb']:,.0f}) "
            f"| {ratio['median']:.2f} ({ratio['min']:.2f}..{ratio['max']:.2f}) |"
        )
    return "\n".join(lines)


def prepare(work: Work, folder: Path) -> Task:
    """The workload's model and, with a rank, the adapter that both sides start from."""
    from trainer.engine.base import LoraSpec
    from trainer.engine.local import LocalEngine
    from trainer.runs import EngineSettings

    name = f"{work.size}-{work.vocabulary}"
    base, adapter = folder / name, folder / f"{name}-adapter"
    if not base.exists():
        make_model(work.size, base, work.vocabulary)
    if work.rank and not adapter.exists():
        engine = LocalEngine(base, EngineSettings(device="cpu", threads=1))
        engine.create_model("m", lora=LoraSpec(work.rank, 2.0 * work.rank), seed=0)
        engine.save_weights("m", adapter)
    return Task(work, OURS, 0, str(base), str(adapter))


def run(work: Work, folder: Path, *, rounds: int, quick: bool, sweep: bool) -> dict[str, Any]:
    """Everything about one workload."""
    print(f"\n## {work.name}", flush=True)
    work = replace(work, rows=max(64, work.rows // 4)) if quick else work
    task = prepare(work, folder)
    numerics = check_numerics(task, folder, 3)
    print("numerics, relative: " + ", ".join(f"{key} {value:.1e}" for key, value in numerics.items()), flush=True)
    kinds = (
        ["trl-padded", "trl-packed", "trl-grouped"] if work.shortest != work.longest else ["trl-padded", "trl-packed"]
    )
    picked = [pick(task, kind, 2) if sweep else best(kind, work) for kind in kinds]
    if sweep and quick:
        return {"work": asdict(work), "picked": [arm.label for arm in picked]}
    arms = [*picked, OURS]
    records = summary(measure(task, arms, rounds), arms)
    print(table(records), flush=True)
    return {"work": asdict(work), "numerics": numerics, "arms": records}


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    packages = ("torch", "transformers", "trl", "peft", "accelerate")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "load_average": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="SFT throughput and memory against TRL.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--work", action="append", choices=[work.name for work in WORKS], help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one workload, few rows, 3 rounds")
    parser.add_argument("--sweep", action="store_true", help="try TRL's batch sizes (with --quick: only that)")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    if options.child:
        told = json.loads(options.child)
        told["work"], told["arm"] = Work(**told["work"]), Arm(**told["arm"])
        task = Task(**told)
        (run_ours if task.arm.kind == "ours" else run_trl)(task)
        return
    wanted = options.work or (["chats-full-s"] if options.quick else [work.name for work in WORKS])
    rounds = min(3, options.rounds) if options.quick else options.rounds
    report: dict[str, Any] = {"machine": machine(), "rounds": rounds, "workloads": []}
    print(json.dumps(report["machine"]))
    with tempfile.TemporaryDirectory() as folder:
        for work in WORKS:
            if work.name in wanted:
                report["workloads"].append(
                    run(work, Path(folder), rounds=rounds, quick=options.quick, sweep=options.sweep)
                )
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
