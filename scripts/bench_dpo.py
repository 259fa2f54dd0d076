"""DPO against TRL's DPOTrainer with precomputed reference log-probs: pairs per second and peak memory, in turn.

Every arm is a process of its own that builds its model once, goes through the reference pass, and then waits; the
parent lets one arm at a time work through a round of pairs, so that the machine's moods fall on all of them. The first
round is a warm-up. Arms: TRL with micro-batches of 4, 8 and 16 pairs, and ours: LocalEngine through the steps of
`trainer/loops/preference.py`, once with a pair's common prompt computed once (as it is) and once twice. The reference
pass is not in the times.

With `--parity N` nothing is timed: both train the same pairs in the same order for N steps, in fp32 and from the same
weights, and the exit status is 1 unless the losses of every step agree to 1e-4.

    OMP_NUM_THREADS=1 python scripts/bench_dpo.py [--rank 8] [--rounds 5] [--out bench.json]
    OMP_NUM_THREADS=1 python scripts/bench_dpo.py --parity 50
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.turns import Turn, children, in_turn, say

VOCABULARY = 512  # that of the shipped tiny model, whose tokenizer TRL is given
PAIRS_PER_STEP = 16
BETA = 0.1
AGREE = 1e-4
PROMPT, ANSWER = (20, 200), (10, 200)  # tokens, from and to


@dataclass(frozen=True)
class Task:
    """What a child is told. `micro`: pairs in TRL's micro-batch, 0 = ours, `share` its prompts or compute them twice.
    `steps` in a round; `parity`: train so many steps in one batch each, and tell the losses."""

    micro: int
    rank: int
    steps: int
    rounds: int
    base: str
    adapter: str
    parity: int = 0
    share: bool = True

    @property
    def label(self) -> str:
        """For tables."""
        if self.micro:
            return f"trl, {self.micro} pairs"
        return "ours" if self.share else "ours, prompts twice"

    @property
    def pairs(self) -> int:
        """All that it goes through."""
        return PAIRS_PER_STEP * (self.parity or self.steps * self.rounds)


def make_pairs(count: int) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) as ids, seeded."""
    generator = np.random.default_rng(0)

    def ids(low: int, high: int) -> list[int]:
        return generator.integers(6, VOCABULARY, int(generator.integers(low, high + 1))).tolist()

    return [(ids(*PROMPT), ids(*ANSWER), ids(*ANSWER)) for _ in range(count)]


def make_model(folder: Path) -> None:
    """Write a random Qwen3 of 0.8 million parameters with the shipped tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, intermediate_size=384, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=1, pad_token_id=0, initializer_range=0.06,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "trainer/models/tiny").save_pretrained(folder)


# The children


def run_ours(task: Task) -> None:
    """LocalEngine, stepped as `PreferenceLoop.gather` does."""
    from trainer.data.batches import plan_epoch
    from trainer.data.datum import Pair, from_row
    from trainer.engine.base import AdamParams
    from trainer.engine.local import LocalEngine
    from trainer.loops.training import datums_of
    from trainer.runs import EngineSettings

    def datum(prompt: list[int], answer: list[int]) -> Any:
        ids = np.array(prompt + answer, np.int64)
        return from_row(ids, np.arange(len(ids)) >= len(prompt))

    engine = LocalEngine(task.base, EngineSettings(device="cpu", threads=1))
    if not task.share:
        engine._share = 0
    engine.create_model("m", lora=None, warm_start=Path(task.adapter) if task.rank else None)
    pairs = [Pair(datum(p, c), datum(p, r)) for p, c, r in make_pairs(task.pairs)]
    data = datums_of(pairs)
    found = [row for at in range(0, len(data), 128) for row in engine.forward("m", data[at : at + 128]).logprobs]
    data = [replace(one, reference=row) for one, row in zip(data, found, strict=True)]
    pairs = [Pair(data[at], data[at + 1]) for at in range(0, len(data), 2)]
    plan = plan_epoch(
        [pair.length for pair in pairs], batch_tokens=1 << 16, batch_rows=PAIRS_PER_STEP, seed=0, epoch=0,
        shuffle=not task.parity,
    )  # fmt: skip
    turn, losses = Turn(), []
    for index, step in enumerate(plan):
        if not task.parity and index % task.steps == 0:
            turn.wait()
        loss = 0.0
        for batch in step:
            rows = datums_of(pairs[row] for row in batch)
            result = engine.forward_backward("m", rows, loss="dpo", loss_config={"beta": BETA})
            loss += result.metrics["loss:sum"]
        count = sum(map(len, step))
        engine.optim_step("m", AdamParams(1e-4, 0.9, 0.95, 1e-8, 0.0, 1.0), denominator=count)
        losses.append(loss / count)
        if not task.parity and (index + 1) % task.steps == 0:
            turn.tell(task.steps * PAIRS_PER_STEP)
    if task.parity:
        say({"losses": losses})


def run_trl(task: Task) -> None:
    """DPOTrainer on the same ids, precomputed reference, one call of `train` cut into rounds by a callback."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRL_EXPERIMENTAL_SILENCE="1")
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    torch.set_num_threads(1)
    disable_progress_bars()

    class Tokenized(DPOTrainer):
        """On rows that are ids already."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)  # pyright: ignore

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    columns = dict(zip(names, map(list, zip(*make_pairs(task.pairs), strict=True)), strict=True))
    model: Any = AutoModelForCausalLM.from_pretrained(task.base, dtype=torch.float32)
    if task.rank:
        model = PeftModel.from_pretrained(model, task.adapter, is_trainable=True)
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=task.micro, num_train_epochs=1, beta=BETA,
        gradient_accumulation_steps=PAIRS_PER_STEP // task.micro, precompute_ref_log_probs=True, max_length=None,
        precompute_ref_batch_size=16, learning_rate=1e-4, lr_scheduler_type="constant", adam_beta1=0.9,
        adam_beta2=0.95, adam_epsilon=1e-8, weight_decay=0.0, max_grad_norm=1.0, gradient_checkpointing=False,
        bf16=False, use_cpu=True, report_to="none", logging_strategy="no", save_strategy="no", disable_tqdm=True,
        dataloader_num_workers=0, dataloader_pin_memory=False, seed=0,
    )  # fmt: skip
    trainer = Tokenized(
        model, args=config, train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(task.base),
    )  # fmt: skip
    if task.parity:
        losses = _spy_on_losses(trainer)
        trainer.train()
        say({"losses": losses})
        return

    class Turns(TrainerCallback):
        """Waits before the first step of a round, tells after its last."""

        turn = Turn()

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % task.steps == 0:
                self.turn.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % task.steps == 0:
                self.turn.tell(task.steps * PAIRS_PER_STEP)

    trainer.add_callback(Turns())
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


# The parent


def told_by(task: Task) -> dict[str, Any]:
    """The one report of a child that is not timed."""
    with children(__file__, [(task.label, task)]) as (child,):
        return child.read()


def check_parity(task: Task, steps: int) -> float:
    """Largest difference of a step's loss between ours and TRL."""
    mine = told_by(replace(task, micro=0, parity=steps))["losses"]
    theirs = told_by(replace(task, micro=PAIRS_PER_STEP, parity=steps))["losses"]
    if len(mine) != steps or len(theirs) != steps:
        raise SystemExit(f"{steps} steps were asked for, ours took {len(mine)} and TRL {len(theirs)}")
    gap = float(np.abs(np.array(mine) - np.array(theirs)).max())
    kind = f"LoRA rank {task.rank}" if task.rank else "all parameters"
    print(f"{kind}: {steps} steps, loss {mine[0]:.6f} to {mine[-1]:.6f}, TRL {theirs[-1]:.6f}, differ by {gap:.1e}")
    return gap


def measure(tasks: list[Task]) -> list[dict[str, Any]]:
    """One record an arm: median rates, peak memory, and ours over it, round by round."""
    with children(__file__, [(task.label, task) for task in tasks]) as started:
        told = in_turn(started, tasks[0].rounds - 1)
    rates = [[one["done"] / one["cpu"] for one in rounds] for rounds in told]
    records = []
    for task, rounds, mine in zip(tasks, told, rates, strict=True):
        ratios = [ours / theirs for ours, theirs in zip(rates[0], mine, strict=True)]
        records.append(
            {
                "arm": task.label,
                "pairs_per_cpu_second": mine,
                "median": statistics.median(mine),
                "peak_mb": max(one["peak_mb"] for one in rounds),
                "ours_over_it": [statistics.median(ratios), min(ratios), max(ratios)],
            }
        )
    return records


def table(records: list[dict[str, Any]]) -> str:
    """A markdown table."""
    lines = [
        "| arm | pairs per CPU s (min..max) | peak MB | ours is faster by (min..max) |",
        "| --- | --- | --- | --- |",
    ]
    for one in records:
        rates, (middle, low, high) = one["pairs_per_cpu_second"], one["ours_over_it"]
        lines.append(
            f"| {one['arm']} | {one['median']:,.1f} ({min(rates):,.1f}..{max(rates):,.1f}) | {one['peak_mb']:,.0f} "
            f"| {middle:.2f} ({low:.2f}..{high:.2f}) |"
        )
    return "\n".join(lines)


def prepare(folder: Path, rank: int, *, steps: int, rounds: int) -> Task:
    """The model and, with a rank, the adapter that both sides start from."""
    from trainer.engine.base import LoraSpec
    from trainer.engine.local import LocalEngine
    from trainer.runs import EngineSettings

    base, adapter = folder / "s", folder / f"adapter-{rank}"
    if not base.exists():
        make_model(base)
    if rank:
        engine = LocalEngine(base, EngineSettings(device="cpu", threads=1))
        engine.create_model("m", lora=LoraSpec(rank, 2.0 * rank), seed=0)
        engine.save_weights("m", adapter)
    return Task(0, rank, steps, rounds + 1, str(base), str(adapter))


def main() -> int:
    parser = argparse.ArgumentParser(description="DPO throughput and memory against TRL.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, action="append", help="0 = all parameters; default: both 8 and 0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of 16 pairs in a round")
    parser.add_argument("--parity", type=int, default=0, metavar="STEPS", help="compare losses, time nothing")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    if options.child:
        task = Task(**json.loads(options.child))
        (run_trl if task.micro else run_ours)(task)
        return 0
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load_average": os.getloadavg()}
    report: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "ranks": {}}
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for rank in options.rank or [8, 0]:
            task = prepare(Path(folder), rank, steps=options.steps, rounds=options.rounds)
            worst = max(worst, check_parity(task, options.parity or 3))
            if not options.parity and worst <= AGREE:
                records = measure(
                    [task, replace(task, share=False), *(replace(task, micro=micro) for micro in (4, 8, 16))]
                )
                report["ranks"][rank] = records
                print(f"\n{'all parameters' if not rank else f'LoRA rank {rank}'}\n{table(records)}\n", flush=True)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(worst > AGREE)


if __name__ == "__main__":
    sys.exit(main())
