"""Checkpoints are whole or absent, verified by digest, and only the newest whole one is taken."""

import json
from pathlib import Path

import pytest

from trainer import checkpoints


def write(root: Path, step: int, content: bytes = b"weights") -> checkpoints.Checkpoint:
    def fill(weights: Path, state: Path) -> None:
        (weights / "adapter_model.safetensors").write_bytes(content)
        (state / "state.json").write_text("{}")

    return checkpoints.write(root, step, lora=True, cursor={"step": step}, fill=fill)


def test_a_checkpoint_tells_what_it_is_good_for(tmp_path):
    made = write(tmp_path, 7)
    assert made.path == tmp_path / "step-7"
    assert made.types == ("CHECKPOINT_TYPE_TRAINING_LORA", "CHECKPOINT_TYPE_INFERENCE_LORA")
    assert made.resumable and made.promotable
    assert made.cursor == {"step": 7}
    assert made.bytes == len(b"weights") + len("{}")
    checkpoints.verify(checkpoints.read(made.path))


def test_a_failing_fill_leaves_nothing_behind(tmp_path):
    def fill(weights: Path, state: Path) -> None:
        (weights / "half").write_bytes(b"x")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        checkpoints.write(tmp_path, 1, lora=True, cursor={}, fill=fill)
    assert list(tmp_path.iterdir()) == []


def test_pickle_formats_are_refused(tmp_path):
    def fill(weights: Path, state: Path) -> None:
        (weights / "pytorch_model.bin").write_bytes(b"x")

    with pytest.raises(ValueError, match=r"safetensors and JSON only, never \.bin"):
        checkpoints.write(tmp_path, 1, lora=False, cursor={}, fill=fill)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda step: flip(step / "weights" / "adapter_model.safetensors"), "differs from its digest"),
        (lambda step: (step / "weights" / "adapter_model.safetensors").write_bytes(b"w"), "has 1 bytes"),
        (lambda step: (step / "state" / "state.json").unlink(), "is missing"),
        (lambda step: (step / "weights" / "more").write_bytes(b""), "not in the manifest"),
        (lambda step: (step / "manifest.json").write_text("{"), "cannot be read"),
        (lambda step: (step / "manifest.json").unlink(), "cannot be read"),
    ],
)
def test_damage_is_found_and_the_newest_whole_one_taken(tmp_path, harm, says):
    write(tmp_path, 1)
    write(tmp_path, 2, b"other")
    harm(tmp_path / "step-2")
    told = []
    found = checkpoints.newest(tmp_path, damaged=told.append)
    assert found is not None and found.step == 1
    assert len(told) == 1 and says in str(told[0])


def test_newest_is_by_number_not_by_name(tmp_path):
    for step in (9, 10, 100):
        write(tmp_path, step)
    found = checkpoints.newest(tmp_path, damaged=pytest.fail)
    assert found is not None and found.step == 100


def test_the_same_step_again_replaces(tmp_path):
    write(tmp_path, 1, b"old")
    write(tmp_path, 1, b"new")
    assert (tmp_path / "step-1" / "weights" / "adapter_model.safetensors").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_prune_keeps_the_newest_and_the_protected(tmp_path):
    for step in range(1, 7):
        write(tmp_path, step)
    assert checkpoints.prune(tmp_path, keep=2, protect={1}) == [2, 3, 4]
    assert [path.name for path in checkpoints.every(tmp_path)] == ["step-1", "step-5", "step-6"]


def test_clean_removes_what_a_crash_left(tmp_path):
    write(tmp_path, 1)
    (tmp_path / ".writing-step-2-99").mkdir()
    checkpoints.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_the_manifest_is_plain_json(tmp_path):
    made = write(tmp_path, 3)
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert set(manifest["files"]) == {"weights/adapter_model.safetensors", "state/state.json"}
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())
