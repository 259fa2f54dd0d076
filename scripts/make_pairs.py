"""Make the shipped preference pairs: two right answers to each prompt, of which one is punctuated as wanted.

Writes `train.jsonl` and `eval.jsonl`, one pair a line in the gateway's shape:
`{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}`.
The one decision behind it: both answers have the right digits, so what is learnt is a preference and nothing else, and
whether the digits stay right shows what the training broke. `copy` and `max` are to end in a full stop, `reverse` and
`min` in an exclamation mark: the base model, which ends in neither, has no more liking for the wanted mark than for the
other, and no liking for one mark over the other can satisfy both. The same seed gives byte-identical files anywhere.
No prompt occurs twice, neither within a file nor across the two.

    python scripts/make_pairs.py --out datasets/pairs --seed 0
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

TASKS: dict[str, tuple[Callable[[str], str], str]] = {  # the answer, and the mark it is to end in
    "copy": (lambda digits: digits, "."),
    "max": (max, "."),
    "reverse": (lambda digits: digits[::-1], "!"),
    "min": (min, "!"),
}
_OTHER = {".": "!", "!": "."}


def draw_prompts(seed: int, *, count: int) -> list[tuple[str, str]]:
    """(task, digits): distinct prompts of 3 to 6 digits, the tasks in turn."""
    rng = random.Random(seed)
    prompts: dict[tuple[str, str], None] = {}  # a set would lose the order that makes the files repeatable
    names = list(TASKS)
    while len(prompts) < count:
        prompts[names[len(prompts) % len(names)], "".join(rng.choices("0123456789", k=rng.randint(3, 6)))] = None
    return list(prompts)


def pair(task: str, digits: str) -> dict[str, object]:
    """One row."""
    answer, mark = TASKS[task]
    right = answer(digits)
    return {
        "input": {"messages": [{"role": "user", "content": f"{task} {digits}"}]},
        "preferred_output": [{"role": "assistant", "content": right + mark}],
        "non_preferred_output": [{"role": "assistant", "content": right + _OTHER[mark]}],
    }


def write_rows(path: Path, prompts: list[tuple[str, str]]) -> None:
    """Write one pair a line."""
    path.write_text("".join(json.dumps(pair(*prompt)) + "\n" for prompt in prompts), encoding="utf-8")
    print(f"{len(prompts):5d} pairs in {path}")


def main() -> None:
    """Draw the prompts once and split them, so that the two files cannot share one."""
    parser = argparse.ArgumentParser(description="Make the shipped preference pairs.")
    parser.add_argument("--out", type=Path, default=Path("datasets/pairs"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the numbers")
    parser.add_argument("--train-pairs", type=int, default=1920, help="pairs of train.jsonl")
    parser.add_argument("--eval-pairs", type=int, default=200, help="pairs of eval.jsonl")
    options = parser.parse_args()

    prompts = draw_prompts(options.seed, count=options.train_pairs + options.eval_pairs)
    options.out.mkdir(parents=True, exist_ok=True)
    write_rows(options.out / "eval.jsonl", prompts[: options.eval_pairs])
    write_rows(options.out / "train.jsonl", prompts[options.eval_pairs :])


if __name__ == "__main__":
    main()
