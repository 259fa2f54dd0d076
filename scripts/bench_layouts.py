"""How a batch may be laid out on this machine: packed without padding, or padded buckets of rows sorted by length.

One forward and backward pass of the same rows through one random model, by every path of our engine: packed with its
fused layers (where the model has them), packed with transformers' own layers, packed with a block-diagonal mask, and
padded; with `--sweep`, padded by other bounds of a bucket, each as tokens, rows, start (`trainer.data.buckets`). Before
anything is timed, all paths must agree on every log-prob. Paths take turns; figures are tokens that are not padding a
CPU second, of the best round and the median, and the median of what each round gave over the first path.

    OMP_NUM_THREADS=1 python scripts/bench_layouts.py [--rounds 5] [--size s] [--rows chats short long] [--sweep]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from trainer.data.buckets import BOUNDS, Bounds, tokens_laid  # noqa: E402
from trainer.data.datum import Datum, from_row  # noqa: E402

ROWS = {"chats": 32, "short": 256, "long": 32}
VOCABULARY = 512
WINDOW = 64  # of the sliding layers of `--model gemma3`
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.3}  # nats
FOUR_ROWS = Bounds(1 << 20, 4, 1 << 20)  # always four rows, whatever they cost
SWEEP = tuple(
    Bounds(tokens, rows, start) for tokens in (512, 1024, 2048) for rows in (16, 64) for start in (0, 64, 256)
)


@dataclass(frozen=True)
class Way:
    """One path: an engine's settings, and what is put in the place of its own."""

    name: str
    settings: dict[str, str]
    tokens: int | None = None
    bounds: Bounds | None = None
    fused: bool = True


def ways(data: Sequence[Datum], *, sweep: bool) -> list[Way]:
    """The paths to compare; of padded ones the name says how many buckets they have, and how much padding."""
    mask, padded = {"attention": "sdpa", "layout": "packed"}, {"layout": "padded"}

    def bucketed(name: str, bounds: Bounds) -> Way:
        lengths = [datum.length for datum in data]
        laid = tokens_laid(lengths, bounds)
        return Way(f"{name} ({len(laid)}, {sum(laid) / sum(lengths) - 1:.1%} padding)", padded, bounds=bounds)

    others = [bucketed(f"{b.tokens:,} tokens, {b.rows} rows, start {b.start}", b) for b in SWEEP] if sweep else []
    return [
        bucketed("padded buckets", BOUNDS["cpu"]),
        Way("packed, as by default", {}),
        Way("packed, transformers' layers", {}, tokens=2048, fused=False),
        Way("packed, mask, 2,048 tokens", mask, tokens=2048),
        Way("packed, mask, 512 tokens", mask, tokens=512),
        bucketed("padded buckets of 4 rows", FOUR_ROWS),
        *others,
    ]


def rows_of(kind: str) -> list[Datum]:
    """Rows of random ids whose second half is learnt."""
    generator, count = np.random.default_rng(0), ROWS[kind]
    if kind == "long":  # a few are many times longer than most
        lengths = np.clip(np.exp(generator.normal(5, 1, count)), 20, 1000).astype(np.int64)
    else:
        lengths = generator.integers(*((40, 401) if kind == "chats" else (8, 33)), count)
    return [from_row(generator.integers(6, VOCABULARY, n), np.arange(n) >= n // 2) for n in lengths.tolist()]


def write_model(model: str, size: str, folder: Path) -> None:
    """A random Qwen3 as `bench_sft.py` has it, or a Gemma 3 of that shape whose every other layer has a window."""
    from bench_sft import SHAPES, make_model

    if model == "qwen3":
        make_model(size, folder, VOCABULARY)
        return
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    hidden, layers, heads, kv_heads, head, inner = SHAPES[size]
    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head, intermediate_size=inner, max_position_embeddings=1024,
        sliding_window=WINDOW, layer_types=[kinds[layer % 2] for layer in range(layers)], eos_token_id=1,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)


def engine_of(way: Way, base: Path, dtype: str) -> Any:
    """An engine that goes this way."""
    from trainer.engine.local import LocalEngine
    from trainer.runs import EngineSettings

    settings = EngineSettings.model_validate({"device": "cpu", "threads": 1, "dtype": dtype, **way.settings})
    engine: Any = LocalEngine(base, settings, micro_batch_tokens=way.tokens)
    if engine._fused and not way.fused:
        for layer in engine._decoder.layers:
            del layer.forward
        engine._fused = False
    engine._bounds = way.bounds or engine._bounds
    engine.create_model("m", lora=None)
    return engine


def one_pass(engine: Any, data: list[Datum]) -> Callable[[], None]:
    """Forward and backward, and the gradient forgotten."""

    def run() -> None:
        engine.forward_backward("m", data)
        engine.clear_gradient("m")

    return run


def compare(kind: str, options: argparse.Namespace) -> None:
    """Print the table of one kind of rows."""
    data = rows_of(kind)
    tokens = sum(datum.length for datum in data)
    chosen = ways(data, sweep=options.sweep)
    with tempfile.TemporaryDirectory() as folder:
        write_model(options.model, options.size, Path(folder))
        engines = {way.name: engine_of(way, Path(folder), options.dtype) for way in chosen}
    found = [np.concatenate(engine.forward("m", data).logprobs) for engine in engines.values()]
    worst = max(float(np.abs(one - found[0]).max()) for one in found)
    if not worst <= TOLERANCE[options.dtype]:
        sys.exit(f"log-probs differ by up to {worst:.2g} nats between the paths: nothing is timed")
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(options.rounds + 1):
        for name, engine in engines.items():
            run = one_pass(engine, data)
            started = time.process_time()
            run()
            if turn:
                rates[name].append(tokens / (time.process_time() - started))
    print(f"\n{kind}: {len(data)} rows, {tokens:,} tokens; log-probs agree to {worst:.1g}\n")
    print("| layout | tokens per CPU s, best | median | of the first |\n| --- | --- | --- | --- |")
    first = rates[chosen[0].name]
    for name, those in rates.items():
        ratio = statistics.median(one / other for one, other in zip(those, first, strict=True))
        print(f"| {name} | {max(those):,.0f} | {statistics.median(those):,.0f} | {ratio:.2f} |", flush=True)


def main() -> None:
    """One table for each kind of rows."""
    parser = argparse.ArgumentParser(description="Packed against padded layouts.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="s", choices=("s", "l"))
    parser.add_argument("--model", default="qwen3", choices=("qwen3", "gemma3"))
    parser.add_argument("--dtype", default="float32", choices=tuple(TOLERANCE))
    parser.add_argument("--rows", nargs="+", default=["chats"], choices=tuple(ROWS))
    parser.add_argument("--sweep", action="store_true", help="other bounds of a bucket, too")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    for kind in options.rows:
        compare(kind, options)


if __name__ == "__main__":
    main()
