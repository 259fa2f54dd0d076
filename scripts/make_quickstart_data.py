"""Make the quick start's data: sort the digits of a number, a task that the tiny base model has never seen.

Writes `train.jsonl` and `eval.jsonl` as chat rows, one JSON object a line:
`{"messages": [{"role": "user", "content": "sort 4729"}, {"role": "assistant", "content": "2479"}]}`.
The one decision behind it: the task is easy to read, the base scores zero on it, and a small adapter learns it
in seconds, so that the first run of the trainer shows a difference. The same seed gives byte-identical files
anywhere. No prompt occurs twice, neither within a file nor across the two.

    python scripts/make_quickstart_data.py --out datasets/quickstart --seed 0
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path


def draw_numbers(seed: int, *, count: int) -> list[str]:
    """Draw distinct strings of 3 to 6 digits, each length as likely as another while it lasts."""
    rng = random.Random(seed)
    numbers: dict[str, None] = {}  # a set would lose the order that makes the files repeatable
    while len(numbers) < count:
        numbers["".join(rng.choices("0123456789", k=rng.randint(3, 6)))] = None
    return list(numbers)


def chat_row(digits: str) -> str:
    """One line of the file: the request to sort, and the sorted digits."""
    messages = [
        {"role": "user", "content": f"sort {digits}"},
        {"role": "assistant", "content": "".join(sorted(digits))},
    ]
    return json.dumps({"messages": messages}) + "\n"


def write_rows(path: Path, numbers: list[str]) -> None:
    """Write one row per number."""
    path.write_text("".join(map(chat_row, numbers)), encoding="utf-8")
    print(f"{len(numbers):5d} rows in {path}")


def main() -> None:
    """Draw the numbers once and split them, so that the two files cannot share a prompt."""
    parser = argparse.ArgumentParser(description="Make the quick start's data.")
    parser.add_argument("--out", type=Path, default=Path("datasets/quickstart"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the numbers")
    parser.add_argument("--train-rows", type=int, default=4000, help="rows of train.jsonl")
    parser.add_argument("--eval-rows", type=int, default=200, help="rows of eval.jsonl")
    options = parser.parse_args()

    numbers = draw_numbers(options.seed, count=options.train_rows + options.eval_rows)
    options.out.mkdir(parents=True, exist_ok=True)
    write_rows(options.out / "eval.jsonl", numbers[: options.eval_rows])
    write_rows(options.out / "train.jsonl", numbers[options.eval_rows :])


if __name__ == "__main__":
    main()
