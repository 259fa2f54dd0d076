"""The report's lineage: sha256 of what a run was made from (run.json, code, data, base, parent) and of what it made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.checkpoints import file_sha256
from trainer.environment import digest
from trainer.run_files import RunFiles

_MODELS = (("base", "base model"), ("parent", "parent adapter"))


def lineage(files: RunFiles) -> dict[str, Any]:
    """`rows` (what, file, bytes, sha256, how), `places` (what, path) and `notes` of what is missing or has changed."""
    told = files.lineage
    rows, notes = [], []
    now = file_sha256(files.folder / "run.json")
    recorded = told.get("run_json", {}).get("sha256", now)
    if recorded != now:
        notes.append(f"run.json has changed since the worker first started; it was {recorded}.")
    if not told:
        notes.append("No lineage.json was written: the hashes of data and base model are not known.")
    rows.append(_row("run.json", {"file": "run.json", "sha256": now, "how": "read"}))
    for attempt in files.attempts[-1:]:
        code = attempt.get("code", {})
        words = f"the trainer package, {code.get('files')} .py files"
        rows.append(_row("code", {"file": words, "sha256": code.get("sha256"), "how": "read"}))
    places = []
    for what, group in _groups(told):
        commit = f" (commit {group['commit']})" if "commit" in group else ""
        places.append((what, f"{group.get('path')}{commit}"))
        notes += [f"{what}: {group['note']}."] if "note" in group else []
        rows += [_row(f"{what}, {one['role']}" if "role" in one else what, one) for one in group.get("files", [])]
    return {"rows": [*rows, *_checkpoints(files), *_model(files)], "places": places, "notes": notes}


def _groups(told: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for group in told.get("data", []):
        yield f"data, {group.get('role')}", group
    for key, what in _MODELS:
        if told.get(key):
            yield what, told[key]


def _checkpoints(files: RunFiles) -> Iterator[dict[str, str]]:
    for checkpoint in files.checkpoints:
        for name, entry in checkpoint.files.items():
            told = {"file": name, "bytes": entry.get("size"), "sha256": entry.get("sha256"), "how": "manifest"}
            yield _row(f"checkpoint {checkpoint.path.name}", told)


def _model(files: RunFiles) -> Iterator[dict[str, str]]:
    """The output model's files. Most are a checkpoint's own (hard links), whose digests the manifest has."""
    folder = files.folder / "model"
    if not folder.is_dir():
        return
    linked: dict[tuple[int, int], str] = {}
    for checkpoint in files.checkpoints:
        for name, entry in checkpoint.files.items():
            if (path := checkpoint.path / name).is_file():
                linked[(path.stat().st_dev, path.stat().st_ino)] = str(entry.get("sha256"))
    for path in sorted(one for one in folder.iterdir() if one.is_file()):
        stat = path.stat()
        told = {"file": path.name, "bytes": stat.st_size, "how": "manifest"}
        sha256 = linked.get((stat.st_dev, stat.st_ino))
        yield _row("model", told | {"sha256": sha256} if sha256 else digest(path))


def _row(what: str, entry: Mapping[str, Any]) -> dict[str, str]:
    size = entry.get("bytes")
    return {
        "what": what,
        "file": str(entry.get("file")),
        "bytes": f"{size:,}" if isinstance(size, int) else "",
        "sha256": str(entry.get("sha256") or "not known"),
        "how": str(entry.get("how", "")),
    }
