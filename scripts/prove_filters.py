"""Figure 40: random filters end in an answer or in INVALID_ARGUMENT, reach the database as bound values only, and take
time that is linear in their length.

    python scripts/prove_filters.py --count 100000
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.filter_kit import COLLECTION, PARENT, SCHEMA, fill, random_filter, recorded, strange_words
from trainer.gateway.errors import GatewayError
from trainer.gateway.filters import LONGEST, parse
from trainer.gateway.gateway import Gateway
from trainer.gateway.listing import listed


def fuzz(gateway: Gateway, count: int, seed: int) -> tuple[int, int, set[str]]:
    """Answered, refused, and the words of statements that are not this gateway's."""
    draw, answered, refused = random.Random(seed), 0, 0
    strange: set[str] = set()
    with recorded(gateway) as statements:
        for number in range(count):
            text = random_filter(draw)
            query = {"filter": text} if number % 3 else {"filter": text, "orderBy": random_filter(draw)[:200]}
            try:
                listed(gateway, SCHEMA, collection=COLLECTION, parent=PARENT, query=query)
                answered += 1
            except GatewayError as error:
                if error.code != "INVALID_ARGUMENT":
                    raise
                refused += 1
            for statement in set(statements):
                strange |= strange_words(statement)
            statements.clear()
    return answered, refused, strange


def slowest() -> tuple[float, float]:
    """The longest parse of 10,000 characters in milliseconds of CPU, and its ratio to that of 1,000."""
    worst, ratio = 0.0, 0.0
    for unit in ("(", "a=1 OR ", '"', "\\", "a.", "NOT ", "-", "*", '"\\', "2026-01-01T0", "=", "x", "a=1 "):
        times = []
        for length in (LONGEST // 10, LONGEST):
            text = (unit * length)[:length]
            began = time.process_time()
            for _ in range(20):
                try:
                    parse(text)
                except GatewayError:
                    continue
            times.append((time.process_time() - began) / 20)
        worst, ratio = max(worst, times[1] * 1000), max(ratio, times[1] / max(times[0], 1e-4))
    return worst, ratio


def main() -> int:
    """Print the figures; 1 when one of them does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gateway = Gateway(Path(folder) / "gateway")
        fill(gateway)
        answered, refused, strange = fuzz(gateway, options.count, options.seed)
        gateway.close()
    worst, ratio = slowest()
    print(
        f"{options.count} filters: {answered} answered, {refused} refused, {options.count - answered - refused} other"
    )
    print(f"words of statements that are not the gateway's own: {sorted(strange) or 'none'}")
    print(f"slowest parse of {LONGEST} characters: {worst:.2f} ms; {ratio:.1f} times that of a tenth")
    return 1 if strange or worst > 5 else 0


if __name__ == "__main__":
    sys.exit(main())
