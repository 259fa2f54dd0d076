"""What is recorded of an attempt: versions, code, digests that are read once, and no secret."""

import hashlib
import json
import os
from pathlib import Path

from tests.run_folder import described
from trainer import environment
from trainer.environment import code, complete, digest, git, record


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read(path):
    return json.loads(path.read_text())


def test_each_attempt_is_an_entry_and_the_inputs_are_recorded_once(tmp_path):
    spec = described(tmp_path, seed=5)
    record(spec, tmp_path / "run", cache=tmp_path / "cache")
    record(spec, tmp_path / "run", cache=tmp_path / "cache")
    first, second = read(tmp_path / "run/environment.json")["attempts"]
    assert first["seed"] == 5 and first["python"].startswith("CPython 3.")
    assert first["packages"]["torch"]
    # What git says of the checkout may change meanwhile: other tests write below it.
    assert [first["code"][name] for name in ("sha256", "files")] == [
        second["code"][name] for name in ("sha256", "files")
    ]
    lineage = read(tmp_path / "run/lineage.json")
    assert lineage["run_json"]["sha256"] == sha((tmp_path / "run/run.json").read_bytes())
    (rows,) = lineage["data"]
    assert rows["files"][0]["sha256"] == sha((tmp_path / "rows.jsonl").read_bytes())
    roles = {one["file"]: (one["role"], one["sha256"]) for one in lineage["base"]["files"]}
    assert roles == {
        "model.safetensors": ("weights", sha(b"weights")),
        "config.json": ("configuration", sha(b"{}")),
        "tokenizer.json": ("tokenizer", sha(b"{}")),
    }
    assert lineage["parent"] is None


def test_rows_that_changed_after_the_description_are_noted(tmp_path):
    spec = described(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "other"}\n')
    record(spec, tmp_path / "run", cache=tmp_path / "cache")
    assert "has changed since" in read(tmp_path / "run/lineage.json")["data"][0]["note"]


def test_no_secret_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "topsecret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    record(described(tmp_path), tmp_path / "run", cache=tmp_path / "cache")
    text = (tmp_path / "run/environment.json").read_text()
    assert "topsecret" not in text and '"OMP_NUM_THREADS": "1"' in text


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path):
    path, cache = tmp_path / "model.safetensors", tmp_path / "cache"
    path.write_bytes(b"one")
    assert [digest(path, cache=cache)["how"] for _ in range(2)] == ["read", "remembered"]
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert digest(path, cache=cache) == {"file": path.name, "bytes": 3, "sha256": sha(b"two"), "how": "read"}
    for remembered in cache.iterdir():
        remembered.write_text("damaged")
    assert digest(path, cache=cache)["how"] == "read"


def test_a_hub_model_is_found_in_the_hubs_cache_once_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    spec = described(tmp_path, base="org/model")
    record(spec, tmp_path / "run", cache=tmp_path / "cache")
    base = read(tmp_path / "run/lineage.json")["base"]
    assert base["files"] == [] and "hub id" in base["note"]
    repository = tmp_path / "hub/models--org--model"
    snapshot = repository / "snapshots/abc123"
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    name = sha(b"weights")
    (repository / "blobs" / name).write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{name}")
    (repository / "refs/main").write_text("abc123")
    complete(spec, tmp_path / "run", cache=tmp_path / "cache")
    base = read(tmp_path / "run/lineage.json")["base"]
    assert base["commit"] == "abc123"
    assert base["files"] == [
        {"file": "model.safetensors", "bytes": 7, "sha256": name, "how": "hub name", "role": "weights"}
    ]


def test_the_codes_digest_depends_on_names_and_contents(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    first = code(package)
    assert (first["files"], first["git"]) == (1, None)
    (package / "a.py").rename(package / "b.py")
    assert code(package)["sha256"] != first["sha256"]


def test_git_that_cannot_tell_says_why(tmp_path, monkeypatch):
    repository = Path(environment.__file__).parents[1] / ".git"
    monkeypatch.setenv("GIT_DIR", str(repository))  # a hook's, by which git would know a repository everywhere
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))  # not one that the temporary folder is in
    (tmp_path / ".git").mkdir()
    told = git(tmp_path)
    assert told is not None and told["problem"].startswith("git rev-parse")


def test_the_checkouts_state_is_told():
    here = environment.__file__
    told = code()
    assert len(told["sha256"]) == 64 and told["files"] > 20, here
