"""What building an environment in a jail costs: `python scripts/bench_builds.py [--rounds 3] [--packages 1,10]`.

Packages of a few small modules, from an index in a folder; side by side in one run and alternating: a build as
evaluators' are, and pip alone with no fence at all. Counted in CPU seconds of every process involved, since wall time
says little on a shared machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from evaluators.build import Builder, BuildState
from evaluators.sandbox import machine

MODULES = 20  # of each package
_METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: 1.0\n"
_WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def index_of(folder: Path, count: int) -> list[str]:
    """A simple index of `count` packages in `folder`; their names."""
    names = [f"bench{number}" for number in range(count)]
    for name in names:
        place = folder / "simple" / name
        place.mkdir(parents=True)
        file = f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(place / file, "w") as wheel:
            for module in range(MODULES):
                wheel.writestr(f"{name}/m{module}.py", "def value(x):\n    return x + 1\n" * 20)
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", _METADATA.format(name))
            wheel.writestr(f"{name}-1.0.dist-info/WHEEL", _WHEEL)
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
        (place / "index.html").write_text(f'<a href="{file}">{file}</a>')
    return names


def in_a_jail(folder: Path, names: list[str]) -> None:
    """A build as evaluators' are."""
    builder = Builder(Path(tempfile.mkdtemp(dir=folder)), index_url=(folder / "simple").as_uri())
    build = builder.build("\n".join(names))
    assert build.state is BuildState.ACTIVE, build.message


def without(folder: Path, names: list[str]) -> None:
    """pip alone."""
    target = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-m", "pip", "install", "--isolated", "--quiet", "--no-cache-dir", "--no-deps",
               "--index-url", (folder / "simple").as_uri(), "--target", target, *names]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    """Print one line for each number of packages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--packages", default="1,10")
    options = parser.parse_args()
    tier, launcher = machine.choose("auto", allow_none=False)
    print(f"tier {tier}, by {launcher}; CPU seconds (wall), medians of {options.rounds}")
    for count in map(int, options.packages.split(",")):
        spent: dict[str, list[tuple[float, float]]] = {"jail": [], "pip": []}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            names = index_of(folder, count)
            for _ in range(options.rounds):
                for kind, way in (("jail", in_a_jail), ("pip", without)):
                    cpu, wall = sum(os.times()[:4]), time.perf_counter()
                    way(folder, names)
                    spent[kind].append((sum(os.times()[:4]) - cpu, time.perf_counter() - wall))
        medians = {kind: [statistics.median(one) for one in zip(*both, strict=True)] for kind, both in spent.items()}
        told = ", ".join(f"{kind} {cpu:.2f} ({wall:.2f})" for kind, (cpu, wall) in medians.items())
        print(f"{count:>4} packages of {MODULES} modules: {told}; {medians['jail'][0] / medians['pip'][0]:.2f} times")


if __name__ == "__main__":
    main()
