"""Write the recipes as notebooks: `python scripts/export_notebooks.py [--out notebooks]`.

A recipe is a program in percent format: `# %%` opens a code cell, `# %% [markdown]` a text cell whose lines are
comments. The notebooks have no outputs, so the same recipe gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
_MARK = "# %%"


def cells(source: str) -> list[tuple[str, str]]:
    """(kind, text) of each cell, kind being "markdown" or "code"; empty ones are left out."""
    found: list[tuple[str, list[str]]] = []
    for line in source.splitlines():
        if line.startswith(_MARK):
            found.append(("markdown" if "[markdown]" in line else "code", []))
        elif found:
            kind, lines = found[-1]
            lines.append(line.removeprefix("#").removeprefix(" ") if kind == "markdown" else line)
    texts = [(kind, "\n".join(lines).strip("\n")) for kind, lines in found]
    return [(kind, text) for kind, text in texts if text]


def notebook(source: str) -> dict[str, Any]:
    """The notebook document (nbformat 4.5) of a recipe's source."""
    made = []
    for number, (kind, text) in enumerate(cells(source)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = text.splitlines(keepends=True)
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def main() -> None:
    """Write one notebook per recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("notebooks"), help="folder to write (default: %(default)s)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(RECIPES.glob("[0-9]*.py")):
        target = out / f"{path.stem}.ipynb"
        target.write_text(json.dumps(notebook(path.read_text(encoding="utf-8")), indent=1) + "\n", encoding="utf-8")
        print(target)


if __name__ == "__main__":
    main()
