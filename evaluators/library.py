"""An evaluator in a folder: `evaluator.json` says its kind and settings, the other files are its code and its rows.

`evaluator.json` is `{"kind", ...}`: a built-in kind with its `settings`; `snippet` (`entry` `path::function`);
`project` (`entry`; every other file of the folder is uploaded with it); or `assertions`. `reward_weights` is a list of
`name=weight`. The folders that ship are in `evaluators/examples/`, and have names.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.custom import assertions, criteria, project
from evaluators.custom.running import entry_of
from evaluators.kinds.base import Evaluator, Tools
from evaluators.kinds.table import KINDS, make
from evaluators.protocol import Result
from evaluators.rows import Row
from evaluators.scores import reward_weights, weigh

DESCRIPTION = "evaluator.json"
ROWS = "rows.jsonl"
CUSTOM = ("snippet", "project", "assertions")
_NOT_CODE = {DESCRIPTION, "README.md", ROWS}
_KEYS = {"kind", "settings", "entry", "assertions", "reward_weights"}
_MOST_BYTES, _MOST_FILES = 24 << 20, 2_000


@dataclass(frozen=True)
class Weighted:
    """An evaluator whose metrics are combined into the score."""

    inner: Evaluator
    weights: Mapping[str, float]

    def evaluate(self, rows: Sequence[Row], *, groups: Sequence[Hashable] | None = None) -> list[Result]:
        """As the inner one. Raises `ValueError` for a weight whose name no metric has."""
        return weigh(self.inner.evaluate(rows, groups=groups), self.weights)


def examples() -> dict[str, Path]:
    """The worked examples that ship: name -> folder."""
    root = Path(__file__).parent / "examples"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{DESCRIPTION}"))}


def open_folder(folder: Path, tools: Tools, *, python: str | None = None, changes: Mapping[str, Any] | None = None,
                ) -> Evaluator:  # fmt: skip
    """The evaluator that a folder describes. changes: settings put over its own. Raises `ValueError`."""
    description = describe(folder)
    kind = description["kind"]
    settings = {**description.get("settings", {}), **(changes or {})}
    if kind in KINDS:
        found = make(kind, settings, tools)
    elif settings:
        raise ValueError(f"an evaluator of kind {kind!r} has no settings; given: {', '.join(settings)}")
    else:
        found = _custom(folder, description, tools, python)
    weights = reward_weights(description.get("reward_weights", []))
    return Weighted(found, weights) if weights else found


def describe(folder: Path) -> dict[str, Any]:
    """`evaluator.json`, checked. Raises `ValueError` naming what is wrong."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from None
    kinds = (*KINDS, *CUSTOM)
    if not isinstance(description, dict) or description.get("kind") not in kinds:
        raise ValueError(f"{path}: 'kind' must be one of {', '.join(kinds)}")
    if unknown := description.keys() - _KEYS:
        raise ValueError(f"{path}: unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(_KEYS))}")
    return description


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder's files as a program's: path -> content; no hidden ones, no byte code, no links. Raises `ValueError`."""
    found: dict[str, bytes] = {}
    total = 0
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in inner.parts)
        if hidden or not path.is_file() or inner.as_posix() in _NOT_CODE:
            continue
        if path.is_symlink():
            raise ValueError(f"{path} is a link; evaluators are made of plain files")
        total += path.stat().st_size
        if total > _MOST_BYTES or len(found) >= _MOST_FILES:
            raise ValueError(f"{folder}: more than {_MOST_BYTES:,} bytes or {_MOST_FILES:,} files")
        found[inner.as_posix()] = path.read_bytes()
    return found


def _custom(folder: Path, description: Mapping[str, Any], tools: Tools, python: str | None) -> Evaluator:
    kind = description["kind"]
    if kind == "assertions":
        return assertions.evaluator(description.get("assertions", []), tools)
    files = files_of(folder)
    entry = description.get("entry", "")
    if kind == "project":
        return project.evaluator(files, entry, tools.sandbox(kind), python=python)
    path, _, function = entry_of(entry, files).partition("::")
    contents = {name: content.decode() for name, content in files.items() if name.endswith(".py")}
    snippet = {"language": "python", "fileContents": contents, "entryFile": path, "entryFunc": function}
    return criteria.evaluator([{"name": function, "codeSnippets": snippet}], tools.sandbox(kind), python=python)
