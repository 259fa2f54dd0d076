"""Make the quick start's data: sort the digits of a number, a task that the tiny base model has never seen.

Writes `train.jsonl` and `eval.jsonl` as chat rows, one JSON object a line:
`{"messages": [{"role": "user", "content": "sort 4729"}, {"role": "assistant", "content": "2479"}]}`.
The one decision behind it: the task is easy to read, the base scores zero on it, and a small adapter learns it
in seconds, so that the first run of the trainer shows a difference. One row in four rehearses what the base can do
already (greetings, copy, reverse, sums), without which the adapter unlearns it; `eval.jsonl` asks for sorting alone.
The same seed gives byte-identical files anywhere. No prompt occurs twice, neither within a file nor across the two.

    python scripts/make_quickstart_data.py --out datasets/quickstart --seed 0
"""

from __future__ import annotations

import argparse
import json
import random
from itertools import chain
from pathlib import Path

from make_tiny_model import Turn, arithmetic_turns, draw_turn, instruction_turns


def draw_numbers(seed: int, *, count: int) -> list[str]:
    """Draw distinct strings of 3 to 6 digits, each length as likely as another while it lasts."""
    rng = random.Random(seed)
    numbers: dict[str, None] = {}  # a set would lose the order that makes the files repeatable
    while len(numbers) < count:
        numbers["".join(rng.choices("0123456789", k=rng.randint(3, 6)))] = None
    return list(numbers)


def draw_rehearsal(seed: int, *, count: int) -> list[Turn]:
    """Draw turns with distinct prompts from what the base model was pre-trained on."""
    rng = random.Random(seed)
    arithmetic, instructions = list(chain(*arithmetic_turns().values())), instruction_turns()
    turns: dict[str, Turn] = {}
    while len(turns) < count:
        turn = draw_turn(rng, arithmetic, instructions)
        turns.setdefault(turn[0], turn)
    return list(turns.values())


def sort_turn(digits: str) -> Turn:
    """The request to sort, and the sorted digits."""
    return f"sort {digits}", "".join(sorted(digits))


def write_rows(path: Path, turns: list[Turn]) -> None:
    """Write one chat row per turn."""
    lines = []
    for asked, answered in turns:
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{len(turns):5d} rows in {path}")


def main() -> None:
    """Draw the numbers once and split them, so that the two files cannot share a prompt."""
    parser = argparse.ArgumentParser(description="Make the quick start's data.")
    parser.add_argument("--out", type=Path, default=Path("datasets/quickstart"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the numbers")
    parser.add_argument("--train-rows", type=int, default=3000, help="sorting rows of train.jsonl")
    parser.add_argument("--rehearsal-rows", type=int, default=1000, help="rows of train.jsonl that the base knows")
    parser.add_argument("--eval-rows", type=int, default=200, help="rows of eval.jsonl")
    options = parser.parse_args()

    numbers = draw_numbers(options.seed, count=options.train_rows + options.eval_rows)
    options.out.mkdir(parents=True, exist_ok=True)
    turns = [sort_turn(digits) for digits in numbers]
    train = turns[options.eval_rows :] + draw_rehearsal(options.seed, count=options.rehearsal_rows)
    random.Random(options.seed).shuffle(train)
    write_rows(options.out / "eval.jsonl", turns[: options.eval_rows])
    write_rows(options.out / "train.jsonl", train)


if __name__ == "__main__":
    main()
