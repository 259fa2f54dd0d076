"""What it gives to compute the common beginning of a pair once: CPU time without sharing over that with it.

One process, model and set of pairs a line; the two ways take turns, so that the machine's moods fall on both. Lines are
shapes of pairs, random ids, and the pairs that ship. `--least` is the rule on trial: so many tokens in common at least.

    OMP_NUM_THREADS=1 python scripts/bench_shared_prompts.py [--rank 8] [--rounds 5] [--least 1] [--only shipped]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from scripts.bench_dpo import BETA, VOCABULARY, make_model  # noqa: E402
from trainer.data.datum import Datum, from_row  # noqa: E402
from trainer.engine.base import LoraSpec  # noqa: E402
from trainer.engine.batching import LEAST_SHARED, shared_lengths  # noqa: E402
from trainer.engine.local import LocalEngine  # noqa: E402
from trainer.runs import EngineSettings  # noqa: E402

TOKENS = 4096  # of a call, about
SHAPES = {  # tokens of the prompt and of an answer, from and to
    "4 + 12": ((4, 4), (12, 12)),
    "8 + 8": ((8, 8), (8, 8)),
    "8 + 5..60": ((8, 8), (5, 60)),
    "12 + 5..60": ((12, 12), (5, 60)),
    "16 + 16": ((16, 16), (16, 16)),
    "16 + 5..60": ((16, 16), (5, 60)),
    "12 + 100..300": ((12, 12), (100, 300)),
    "20..200 + 10..200": ((20, 200), (10, 200)),
    "100 + 4": ((100, 100), (4, 4)),
    "600 + 50": ((600, 600), (50, 50)),
}


def as_datum(ids: list[int], prompt: int) -> Datum:
    """An answer to the first `prompt` of the ids; the reference's log-probs do not matter here."""
    datum = from_row(np.array(ids, np.int64), np.arange(len(ids)) >= prompt)
    return replace(datum, reference=np.full(datum.length, -6, np.float32))


def random_pairs(prompts: tuple[int, int], answers: tuple[int, int]) -> list[Datum]:
    """About `TOKENS` tokens, seeded."""
    generator = np.random.default_rng(1)

    def ids(low: int, high: int) -> list[int]:
        return generator.integers(6, VOCABULARY, int(generator.integers(low, high + 1))).tolist()

    data: list[Datum] = []
    while sum(datum.length for datum in data) < TOKENS:
        prompt = ids(*prompts)
        data += [as_datum(prompt + ids(*answers), len(prompt)) for _ in range(2)]
    return data


def shipped_pairs() -> list[Datum]:
    """The first of `datasets/pairs`, about `TOKENS` tokens, rendered by the shipped tokenizer's template."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(ROOT / "trainer/models/tiny")

    def rendered(messages: list[Any], *, prompt: bool = False) -> list[int]:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)

    data: list[Datum] = []
    for line in (ROOT / "datasets/pairs/train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked = row["input"]["messages"]
        for side in ("preferred_output", "non_preferred_output"):
            data.append(as_datum(rendered(asked + row[side]), len(rendered(asked, prompt=True))))
        if sum(datum.length for datum in data) >= TOKENS:
            break
    return data


def passes(engine: LocalEngine, data: list[Datum]) -> tuple[float, float]:
    """CPU seconds of a training pass and of a reference pass."""
    start = time.process_time()
    engine.forward_backward("m", data, loss="dpo", loss_config={"beta": BETA})
    middle = time.process_time()
    engine.forward("m", data)
    stop = time.process_time()
    engine.clear_gradient("m")
    return middle - start, stop - middle


def compare(engine: LocalEngine, data: list[Datum], *, least: int, rounds: int) -> list[list[float]]:
    """Ratios of each round after the first: of training passes, of reference passes."""
    ratios: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        found: dict[int, tuple[float, float]] = {}
        for share in (least, 0) if turn % 2 else (0, least):
            engine._share = share
            found[share] = passes(engine, data)
        if turn:
            for kind, apart, shared in zip(ratios, found[0], found[least], strict=True):
                kind.append(apart / shared)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description="Shared prompts of pairs against prompts computed twice.")
    parser.add_argument("--rank", type=int, default=8, help="0 = all parameters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=int, default=LEAST_SHARED, help="fewest tokens in common; 1 shares everything")
    parser.add_argument("--only", action="append", help="a line, by its name")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        engine = LocalEngine(folder, EngineSettings(device="cpu", threads=1))
        engine.create_model("m", lora=LoraSpec(options.rank, 16.0) if options.rank else None)
        print(
            "| prompt + answers, tokens | in common | training (min..max) | reference pass (min..max) |\n"
            + "| --- " * 4
            + "|"
        )
        for name in options.only or [*SHAPES, "shipped"]:
            data = shipped_pairs() if name == "shipped" else random_pairs(*SHAPES[name])
            common = sum(shared_lengths(data, 1)) / sum(datum.length for datum in data)
            ratios = compare(engine, data, least=options.least, rounds=options.rounds)
            shown = " | ".join(f"{statistics.median(r):.2f} ({min(r):.2f}..{max(r):.2f})" for r in ratios)
            print(f"| {name} | {common:.0%} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
