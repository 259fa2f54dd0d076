"""Time and extra memory of a training pass at a vocabulary of 151,936: our head, TRL's fused head, plain transformers.

One layer of Qwen3, hidden size 256, 1,024 tokens in one row, fp32; a pass is forward and backward. Each arm is a
process of its own: its first pass gives the extra memory (peak resident size during the pass, over that just before),
the further ones, taken in turns with the other arms, the time. Losses must agree, else nothing is reported.

    OMP_NUM_THREADS=1 python scripts/bench_head.py [--trained 1.0] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, HIDDEN, TOKENS = 151_936, 256, 1024
ARMS = ("plain", "trl-fused", "trl-fused-logprobs-only", "ours")
MARK = "@@"


def make_model(folder: str) -> None:
    """Write the random model."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=2,
        head_dim=32, intermediate_size=768, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)


def make_pass(arm: str, base: str, trained: float) -> Callable[[], float]:
    """A function that makes one pass and returns the mean loss."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    ids = np.random.default_rng(0).integers(2, VOCABULARY, TOKENS + 1)
    mask = np.arange(TOKENS + 1) >= (1 - trained) * TOKENS
    if arm == "ours":
        return _ours(base, ids, mask)
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    labels = torch.from_numpy(np.where(mask, ids, -100))[None]
    tokens, extra = torch.from_numpy(ids)[None], {}
    if arm != "plain":
        from trl.trainer.utils import add_fused_lm_head

        wanted = ("log_probs",) if arm.endswith("only") else ("log_probs", "entropy", "is_top1")  # SFTTrainer's
        add_fused_lm_head(model, outputs=wanted)
        extra = {"fused_lm_head": True}

    def one() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, labels=labels, use_cache=False, **extra).loss
        loss.backward()
        return float(loss)

    return one


def _ours(base: str, ids: np.ndarray, mask: np.ndarray) -> Callable[[], float]:
    from trainer.data.datum import from_row
    from trainer.engine.local import LocalEngine
    from trainer.runs import EngineSettings

    engine = LocalEngine(base, EngineSettings(device="cpu", threads=1))
    engine.create_model("m", lora=None)
    datum = from_row(ids, mask)

    def one() -> float:
        engine.clear_gradient("m")
        return engine.forward_backward("m", [datum]).metrics["loss:sum"] / datum.trained

    return one


def child(arm: str, base: str, trained: float) -> None:
    """Answer each line on standard input with one pass's figures."""
    one = make_pass(arm, base, trained)
    for _ in sys.stdin:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        cpu = time.process_time()
        loss = one()
        cpu = time.process_time() - cpu
        print(MARK + json.dumps({"loss": loss, "cpu": cpu, "extra_mb": _status("VmHWM") - before}), flush=True)


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    """One pass of a child."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith(MARK):
            return json.loads(line[len(MARK) :])
    raise SystemExit("an arm ended early; run it with --child ARM to see why")


def main() -> None:
    parser = argparse.ArgumentParser(description="The LM head at a large vocabulary.")
    parser.add_argument("--child", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    parser.add_argument("--trained", type=float, default=1.0, help="share of the positions that are trained")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.base, options.trained)
        return
    with tempfile.TemporaryDirectory() as base:
        make_model(base)
        started = {}
        for arm in ARMS:
            command = [sys.executable, __file__, "--child", arm, "--base", base, "--trained", str(options.trained)]
            started[arm] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
            )  # fmt: skip
        first = {arm: ask(process) for arm, process in started.items()}
        told = [{arm: ask(process) for arm, process in started.items()} for _ in range(options.rounds)]
        for process in started.values():
            process.communicate("")
    spread = max(one["loss"] for one in first.values()) / min(one["loss"] for one in first.values()) - 1
    if spread > 1e-5:
        raise SystemExit(f"losses differ by {spread:.2g}: {first}")
    print(f"{options.trained:.0%} of {TOKENS} positions trained; losses agree to {spread:.1e}")
    print("| arm | CPU s a pass (min..max) | extra MB | of plain |\n| --- | --- | --- | --- |")
    for arm in ARMS:
        times, extra = [one[arm]["cpu"] for one in told], first[arm]["extra_mb"]
        share = extra / first["plain"]["extra_mb"]
        median = statistics.median(times)
        print(f"| {arm} | {median:.2f} ({min(times):.2f}..{max(times):.2f}) | {extra:,.0f} | {share:.2f} |")


if __name__ == "__main__":
    main()
