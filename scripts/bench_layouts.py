"""How a batch may be laid out on this machine: packed without padding, or padded buckets of rows sorted by length.

One forward and backward pass of the same rows through the model of `bench_sft.py`, by every path: our engine with its
fused layers, with transformers' own layers, and with a block-diagonal mask for packed rows; and plain transformers on
rows sorted by length, padded to the longest of their bucket. Paths take turns; figures are tokens that are not padding
a CPU second, of the best round and the median.

    OMP_NUM_THREADS=1 python scripts/bench_layouts.py [--rounds 5] [--size s]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
ROWS = 32


def engine_path(
    base: Path, rows: list[Any], *, attention: str, fused: bool, tokens: int | None = None
) -> Callable[[], None]:
    """Our engine; `fused=False` puts transformers' own layers back."""
    from trainer.data.datum import from_row
    from trainer.engine.local import LocalEngine
    from trainer.runs import EngineSettings

    engine = LocalEngine(base, EngineSettings(device="cpu", threads=1, attention=attention), micro_batch_tokens=tokens)  # pyright: ignore
    if engine._fused and not fused:
        for layer in engine._decoder.layers:
            del layer.forward
        engine._fused = False
    engine.create_model("m", lora=None)
    data = [from_row(*row) for row in rows]
    return lambda: _clear(engine.forward_backward("m", data), engine)


def _clear(_: Any, engine: Any) -> None:
    engine._find("m").optimizer.clear()


def bucket_path(base: Path, rows: list[Any], micro: int) -> Callable[[], None]:
    """Plain transformers: length-sorted buckets of `micro` rows, padded; the head on trained positions only."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa")
    ordered = sorted(rows, key=lambda row: len(row[0]))
    batches = []
    for start in range(0, len(ordered), micro):
        bucket = ordered[start : start + micro]
        longest = max(len(ids) for ids, _ in bucket)
        ids = np.stack([np.pad(ids, (0, longest - len(ids))) for ids, _ in bucket])
        learnt = np.stack([np.pad(mask, (0, longest - len(mask))) for _, mask in bucket])
        real = np.stack([np.arange(longest) < len(ids) for ids, _ in bucket]).astype(np.int64)
        batches.append(tuple(torch.from_numpy(array) for array in (ids, learnt, real)))

    def run() -> None:
        for ids, learnt, real in batches:
            hidden = model.model(input_ids=ids, attention_mask=real, use_cache=False).last_hidden_state[:, :-1]
            logits = model.lm_head(hidden[learnt[:, 1:]])
            torch.nn.functional.cross_entropy(logits, ids[:, 1:][learnt[:, 1:]], reduction="sum").backward()
        model.zero_grad(set_to_none=True)

    return run


def main() -> None:
    from bench_sft import WORKS, make_model, make_rows

    parser = argparse.ArgumentParser(description="Packed against padded layouts.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="s", choices=("s", "l"))
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    work = next(work for work in WORKS if work.name == f"chats-full-{options.size}")
    rows = make_rows(work, ROWS)
    tokens = sum(len(ids) for ids, _ in rows)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "model"
        make_model(options.size, base, work.vocabulary)
        paths = {
            "packed, fused layers (the default)": engine_path(base, rows, attention="auto", fused=True),
            "packed, transformers' layers": engine_path(base, rows, attention="auto", fused=False),
            "packed, mask, 2,048 tokens": engine_path(base, rows, attention="sdpa", fused=False),
            "packed, mask, 512 tokens": engine_path(base, rows, attention="sdpa", fused=False, tokens=512),
            **{f"padded buckets of {micro} rows": bucket_path(base, rows, micro) for micro in (1, 4, 8, 16)},
        }
        rates: dict[str, list[float]] = {name: [] for name in paths}
        for turn in range(options.rounds + 1):
            for name, run in paths.items():
                started = time.process_time()
                run()
                if turn:
                    rates[name].append(tokens / (time.process_time() - started))
    print("| layout | tokens per CPU s, best | median |\n| --- | --- | --- |")
    for name, found in rates.items():
        print(f"| {name} | {max(found):,.0f} | {statistics.median(found):,.0f} |")


if __name__ == "__main__":
    main()
