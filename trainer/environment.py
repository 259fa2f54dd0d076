"""What a run was made with and made from: `environment.json` (each attempt) and `lineage.json` (its inputs).

    environment.json  {"version", "attempts": [{"started", "python", "platform", "cpu", "accelerators", "seed",
                       "threads", "variables", "packages", "code": {"sha256", "files", "git"}}]}, a worker's start each
    lineage.json      {"version", "run_json", "data": [...], "base": {...}, "parent": {...} | null}

Digests are sha256. A file is hashed once: `<home>/cache/digests` remembers its digest by its path, size and time of
change, and a big file of the hub's cache bears its digest as its name. Each entry says `how` it was had: "read",
"remembered" or "hub name".
Secrets stay out: of the environment's variables only those of a fixed list are kept. Imports no tensor library.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.checkpoints import file_sha256
from trainer.runs import RowSource, RunSpec, home

ENVIRONMENT, LINEAGE = "environment.json", "lineage.json"
_PACKAGE = Path(__file__).resolve().parent
_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
    "CUBLAS_WORKSPACE_CONFIG", "TOKENIZERS_PARALLELISM", "PYTHONHASHSEED", "HF_HUB_OFFLINE", "TRAINER_HOME",
)  # fmt: skip
_TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template")
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}
_GIT_SECONDS = 10.0
_ELSEWHERE = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"})  # what a hook has: another repository


def record(spec: RunSpec, folder: Path, *, cache: Path | None = None) -> None:
    """Write both files for the attempt that starts now on the run in `folder`.

    cache: where digests are remembered; None = `<home>/cache/digests`.
    """
    path = folder / ENVIRONMENT
    known = json.loads(path.read_text(encoding="utf-8"))["attempts"] if path.exists() else []
    _write(path, {"version": 1, "attempts": [*known, describe(spec)]})
    if not (folder / LINEAGE).exists():
        _write(folder / LINEAGE, lineage(spec, folder, cache=cache))


def complete(spec: RunSpec, folder: Path, *, cache: Path | None = None) -> None:
    """Fill in the digests of a base model that was fetched from the hub after `record`."""
    path = folder / LINEAGE
    if path.exists():
        document = json.loads(path.read_text(encoding="utf-8"))
        if not document["base"]["files"]:
            _write(path, document | {"base": _model(spec.inputs.base_model, spec.model.revision, _Digests(cache))})


def changed_inputs(spec: RunSpec, folder: Path, *, cache: Path | None = None) -> list[str]:
    """Files of rows and models that are not what `lineage.json` has of them, or not among them, in words; empty where
    there is none or it tells no digests. Raises `ValueError` when it cannot be read."""
    path = folder / LINEAGE
    if not path.exists():
        return []
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        now = lineage(spec, folder, cache=cache)
        pairs = list(zip((*told["data"], told["base"], told["parent"]), (*now["data"], now["base"], now["parent"]),
                         strict=True))  # fmt: skip
        return [
            f"{Path(new['path']) / name if Path(new['path']).is_dir() else new['path']} {how}"
            for old, new in pairs
            if old and new and old["files"]
            for name, how in _differences(old["files"], new["files"])
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({type(error).__name__}: {error}), so nobody can tell whether rows and base are "
            "still those that the run began with; put it back, or remove it to go on without that check"
        ) from error


def _differences(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[tuple[str, str]]:
    before, after = ({one["file"]: one["sha256"] for one in files if _matters(one)} for files in (old, new))
    words = {name: "is gone" if name not in after else "is new" if name not in before else "has changed"
             for name in sorted({*before, *after}) if before.get(name) != after.get(name)}  # fmt: skip
    return list(words.items())


def _matters(entry: dict[str, Any]) -> bool:
    """Rows do, and of a model all but its papers."""
    return entry.get("role") != "configuration" or str(entry["file"]).endswith(".json")


def describe(spec: RunSpec) -> dict[str, Any]:
    """This process's surroundings, as an entry of `environment.json`."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": _cpu(),
        "accelerators": _accelerators(),
        "seed": spec.train.seed,
        "threads": spec.engine.threads,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "packages": packages(),
        "code": code(),
    }


def packages() -> dict[str, str]:
    """Versions of all installed distributions, by name."""
    found = {one.name: one.version for one in metadata.distributions() if one.name}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def code(package: Path = _PACKAGE) -> dict[str, Any]:
    """One sha256 over all .py files of `package` (names and contents, sorted), and the checkout's commit."""
    digest, files = hashlib.sha256(), sorted(package.rglob("*.py"))
    for path in files:
        digest.update(f"{path.relative_to(package).as_posix()} {file_sha256(path)}\n".encode())
    return {"sha256": digest.hexdigest(), "files": len(files), "git": git(package.parent)}


def git(checkout: Path) -> dict[str, Any] | None:
    """commit, and how many files differ from it; None outside a checkout; `problem` where git cannot tell."""
    if not (checkout / ".git").exists():
        return None
    told = []
    variables = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    for words in (("rev-parse", "HEAD"), ("status", "--porcelain")):
        try:
            done = subprocess.run(  # noqa: S603
                ["git", "-C", str(checkout), *words],  # noqa: S607
                capture_output=True,
                text=True,
                timeout=_GIT_SECONDS,
                check=True,
                env=variables,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return {"problem": f"git {words[0]}: {error}"}
        told.append(done.stdout)
    changed = len(told[1].splitlines())
    return {"commit": told[0].strip(), "dirty": changed > 0, "changed_files": changed}


def lineage(spec: RunSpec, folder: Path, *, cache: Path | None = None) -> dict[str, Any]:
    """What the run is made from, as `lineage.json` has it."""
    digests = _Digests(cache)
    sources = [("train", spec.inputs.train), ("held out", spec.inputs.evaluation)]
    run_json = folder / "run.json"
    parent = spec.inputs.warm_start
    return {
        "version": 1,
        "run_json": {"sha256": file_sha256(run_json), "bytes": run_json.stat().st_size},
        "data": [_rows(role, source, digests) for role, source in sources if source is not None],
        "base": _model(spec.inputs.base_model, spec.model.revision, digests),
        "parent": _model(parent, None, digests) if parent else None,
    }


def model_files(name: str, revision: str | None, *, cache: Path | None = None) -> dict[str, Any]:
    """The files of a model folder or hub id with their digests, as `lineage.json` has them."""
    return _model(name, revision, _Digests(cache))


def digest(path: Path, *, cache: Path | None = None) -> dict[str, Any]:
    """file, bytes, sha256 and how it was had, of one file."""
    return _Digests(cache).entry(path)


class _Digests:
    """sha256 of files, remembered: one small file in `folder` for each (path, size, time of change)."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder or home() / "cache" / "digests"

    def entry(self, path: Path) -> dict[str, Any]:
        """file, bytes, sha256, how."""
        sha256, how = self._of(path)
        return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256, "how": how}

    def _of(self, path: Path) -> tuple[str, str]:
        real = path.resolve()
        if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
            return real.name, "hub name"
        stat = real.stat()
        key = hashlib.sha256(f"{real}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
        known = self.folder / key.hexdigest()
        if known.is_file() and re.fullmatch(r"[0-9a-f]{64}", remembered := known.read_text()):
            return remembered, "remembered"
        digest = file_sha256(real)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = known.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest)
        temporary.replace(known)
        return digest, "read"


def _rows(role: str, source: RowSource, digests: _Digests) -> dict[str, Any]:
    path = Path(source.path)
    entry: dict[str, Any] = {"role": role, "name": source.name, "path": source.path, "files": []}
    if path.is_file():
        entry["files"] = [digests.entry(path)]
        if source.sha256 and source.sha256 != entry["files"][0]["sha256"]:
            entry["note"] = f"the file has changed since the run was described, when it was {source.sha256}"
    elif path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.is_file())
        entry["files"] = [digests.entry(one) | {"file": one.relative_to(path).as_posix()} for one in files]
    else:
        entry["note"] = "no file on this machine: a hub id; the ledger has the sha256 of every row"
    return entry


def _model(name: str, revision: str | None, digests: _Digests) -> dict[str, Any]:
    folder = Path(name) if Path(name).is_dir() else _snapshot(name, revision)
    entry: dict[str, Any] = {"path": name, "files": []}
    if folder is None:
        return entry | {"note": "no folder on this machine: a hub id that was not in the cache when this was written"}
    if not Path(name).is_dir():
        entry["commit"] = folder.name
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."]
    return entry | {"files": [digests.entry(path) | {"role": _role(path)} for path in files]}


def _role(path: Path) -> str:
    if path.name.startswith(_TOKENIZER):
        return "tokenizer"
    return "weights" if path.suffix in _WEIGHTS else "configuration"


def _snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a hub id in the hub's cache on this machine."""
    default = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "hub"
    repository = Path(os.environ.get("HF_HUB_CACHE") or default) / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else (revision or "main")
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None


def _cpu() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    listing = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", listing.read_text()) if listing.exists() else None
    return {
        "name": named[1].strip() if named else platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "usable": usable,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
    }


def _accelerators() -> list[str]:
    """Names of NVIDIA GPUs as the driver lists them; of other accelerators nothing is known here."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        named = re.search(r"Model:\s*(.+)", path.read_text())
        found.append(named[1].strip() if named else path.parent.name)
    return found


def _write(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
