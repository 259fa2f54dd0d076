"""Prove that ORPO trains as TRL's experimental ORPOTrainer does, where both mean the same: each step's loss agrees.

    OMP_NUM_THREADS=1 python scripts/prove_orpo.py

TRL's likelihood term is the mean over all tokens of a micro-batch, prompts counted; ours is the mean over pairs of
each chosen answer's mean. The two are one number where prompts have one token (which nothing predicts), all chosen
answers have one length, and a micro-batch is the whole step: so the pairs here. Rejected answers have any length.
TRL's own code computes its side; only its tokenizing is replaced. Exit 1 when losses differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

PAIRS_PER_STEP = 16
WEIGHT = 0.5  # lambda here, beta there
AGREE = 1e-4
VOCABULARY, CHOSEN, REJECTED = 512, 40, (10, 80)
RATE = 1e-3
Ids = list[int]


def make_pairs(count: int) -> list[tuple[Ids, Ids, Ids]]:
    """(prompt, chosen, rejected) as ids, seeded; a few patterns, so that there is something to learn."""
    generator = np.random.default_rng(0)

    def pair() -> tuple[Ids, Ids, Ids]:
        first = int(generator.integers(6, 26))
        chosen = (first + np.arange(CHOSEN) * 3) % (VOCABULARY - 6) + 6
        rejected = generator.integers(6, VOCABULARY, int(generator.integers(*REJECTED)))
        return [first], chosen.tolist(), rejected.tolist()

    return [pair() for _ in range(count)]


def ours(base: Path, adapter: Path | None, steps: int) -> list[float]:
    """Each step's loss through the local engine, stepped as `PreferenceLoop.gather` does."""
    from trainer.data.datum import from_row
    from trainer.engine.base import AdamParams
    from trainer.engine.local import LocalEngine
    from trainer.runs import EngineSettings

    engine = LocalEngine(base, EngineSettings(device="cpu", threads=1))
    engine.create_model("m", lora=None, warm_start=adapter)
    params = AdamParams(RATE, 0.9, 0.95, 1e-8, 0.0, 1.0)
    pairs, losses = make_pairs(steps * PAIRS_PER_STEP), []
    for start in range(0, len(pairs), PAIRS_PER_STEP):
        rows = [
            from_row(ids := np.array(prompt + answer, np.int64), np.arange(len(ids)) >= len(prompt))
            for prompt, *answers in pairs[start : start + PAIRS_PER_STEP] for answer in answers
        ]  # fmt: skip
        told = engine.forward_backward("m", rows, loss="orpo", loss_config={"orpo_lambda": WEIGHT})
        losses.append(told.metrics["loss:sum"] / PAIRS_PER_STEP)
        engine.optim_step("m", params, denominator=PAIRS_PER_STEP)
    return losses


def trls(base: Path, adapter: Path | None, steps: int) -> list[float]:
    """Each step's loss through TRL's trainer, on the same ids in the same order."""
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    torch.set_num_threads(1)
    disable_progress_bars()
    losses: list[float] = []

    class Tokenized(ORPOTrainer):
        """On rows that are ids written as text; tells the exact loss of each step (the log is rounded)."""

        def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, Ids]:
            return tokenized(*([int(word) for word in feature[name].split()] for name in NAMES))

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)  # pyright: ignore

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss: Any = super().compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

    rows = [dict(zip(NAMES, (" ".join(map(str, ids)) for ids in pair), strict=True))
            for pair in make_pairs(steps * PAIRS_PER_STEP)]  # fmt: skip
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    config = ORPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=PAIRS_PER_STEP, num_train_epochs=1, beta=WEIGHT,
        max_length=1024, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, bf16=False, use_cpu=True,
        gradient_checkpointing=False, report_to="none", logging_strategy="no", save_strategy="no", disable_tqdm=True,
        dataloader_num_workers=0, dataloader_pin_memory=False, seed=0, remove_unused_columns=False,
        learning_rate=RATE, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base)
    Tokenized(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    return losses


NAMES = ("prompt", "chosen", "rejected")


def tokenized(prompt: Ids, chosen: Ids, rejected: Ids) -> dict[str, Ids]:
    """A row as TRL's own tokenizing leaves it."""
    found = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        whole = prompt + answer
        found |= {
            f"{name}_input_ids": whole,
            f"{name}_attention_mask": [1] * len(whole),
            f"{name}_labels": [-100] * len(prompt) + answer,
        }
    return found


def compare(folder: Path, rank: int, steps: int) -> float:
    """Largest difference of a step's loss; both sides start from the same files."""
    from scripts.bench_dpo import prepare

    task = prepare(folder, rank, steps=1, rounds=1)
    base, adapter = Path(task.base), Path(task.adapter) if rank else None
    sides: list[Callable[..., list[float]]] = [ours, trls]
    mine, theirs = (np.array(side(base, adapter, steps)) for side in sides)
    if not len(mine) == len(theirs) == steps:
        raise SystemExit(f"{steps} steps were asked for, ours took {len(mine)} and TRL {len(theirs)}")
    gap = float(np.abs(mine - theirs).max())
    kind = f"LoRA rank {rank}" if rank else "all parameters"
    print(f"{kind}: {steps} steps, loss {mine[0]:.6f} to {mine[-1]:.6f}, TRL {theirs[-1]:.6f}, differ by {gap:.1e}")
    return gap


def main() -> int:
    parser = argparse.ArgumentParser(description="ORPO against TRL, step by step.")
    parser.add_argument("--rank", type=int, action="append", help="0 = all parameters; default: both 8 and 0")
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        worst = max(compare(Path(folder), rank, options.steps) for rank in options.rank or [8, 0])
    return int(worst > AGREE)


if __name__ == "__main__":
    sys.exit(main())
