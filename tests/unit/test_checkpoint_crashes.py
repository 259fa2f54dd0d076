"""A save dies at every one of its operations, and what is left is always a whole checkpoint; damage is always found."""

import errno
import json
import random
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.crashing_disk import Crash, CrashingDisk, FullDisk, QuickDisk
from trainer import checkpoints
from trainer.checkpoints import Checkpoint
from trainer.disk import Disk, DiskFull, is_full

QUICK = QuickDisk()
LORA = {"weights/adapter_model.safetensors": 40, "weights/adapter_config.json": 7, "state/optimizer.safetensors": 64,
        "state/state.json": 9}  # fmt: skip
FULL = {f"weights/model-{n}.safetensors": 30 + n for n in range(4)} | {
    "state/optimizer.safetensors": 11,
    "state/s.json": 5,
}
# files; steps there before; the step saved; how many are kept
SHAPES = {
    "the first": (LORA, (), 4, 3),
    "one more": (LORA, (2,), 4, 3),
    "the same step again": (LORA, (2, 4), 4, 3),
    "the only one again": (FULL, (4,), 4, 1),
    "a prune of two": (FULL, (1, 2, 3), 4, 2),
    "the same step again, and a prune": (FULL, (1, 2, 4), 4, 1),
}


@pytest.fixture
def tmp_path():
    """In memory, where there is such a place: thousands of small files are made here."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        yield Path(place)


def content(name: str, size: int, version: str) -> bytes:
    return (f"{version}:{name}:" * size).encode()[:size]


def save(
    root: Path, step: int, files: dict[str, int], version: str, *, keep: int = 9, disk: Disk = QUICK
) -> Checkpoint:
    def fill(weights: Path, state: Path) -> None:
        for name, size in files.items():
            disk.write(weights.parent / name, content(name, size, version))

    made = checkpoints.write(root, step, lora=True, cursor={"version": version}, fill=fill, disk=disk)
    checkpoints.prune(root, keep=keep, protect=set(), disk=disk)
    return made


def start(root: Path, shape: str) -> tuple[dict[str, int], int, int]:
    files, before, step, keep = SHAPES[shape]
    root.mkdir(parents=True)
    for old in before:
        save(root, old, files, "old")
    return files, step, keep


def operations(tmp_path: Path, shape: str) -> int:
    files, step, keep = start(tmp_path / "count", shape)
    disk = CrashingDisk(tmp_path / "count")
    save(tmp_path / "count", step, files, "new", keep=keep, disk=disk)
    return disk.count


def load(root: Path) -> Checkpoint | None:
    """As a resumed run does it; nothing may be passed over, for only whole checkpoints bear a name."""
    checkpoints.clean(root, disk=QUICK)
    return checkpoints.newest(root, damaged=pytest.fail)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_save_that_dies_at_any_operation_leaves_the_old_checkpoint_or_the_new(tmp_path, shape):
    points = operations(tmp_path, shape)
    checked = 0
    for point in range(1, points + 2):  # one past the last: nothing happens
        root = tmp_path / f"at-{point}"
        files, step, keep = start(root, shape)
        before = max(SHAPES[shape][1], default=None)
        disk = CrashingDisk(root, point)
        try:
            save(root, step, files, "new", keep=keep, disk=disk)
        except Crash:
            assert point <= points
        for mode, seed in (("kept", 0), ("lost", 0), *(("torn", seed) for seed in range(3))):
            image = disk.image(tmp_path / "image", mode, random.Random(f"{point}:{seed}"))
            found = load(image)
            if found is None:
                assert before is None and point <= points, (point, mode)
            else:
                version = found.cursor["version"]
                assert (found.step, version) in {(before, "old"), (step, "new")}, (point, mode)
                for name, size in files.items():
                    assert (found.path / name).read_bytes() == content(name, size, version)
                assert point <= points or version == "new"
            assert all(path.name.startswith("step-") for path in image.iterdir())
            shutil.rmtree(image)
            checked += 1
        shutil.rmtree(root)
    print(f"{shape}: {points} operations, {checked}/{checked} crash points give the old or the new")
    assert points >= 15 and checked == 5 * (points + 1)


def test_a_failing_rename_puts_the_old_one_back(tmp_path):
    save(tmp_path, 4, LORA, "old")

    class NoRename(CrashingDisk):
        def rename(self, source: Path, target: Path) -> None:
            if source.name.startswith(".writing-step"):
                raise OSError(errno.EIO, "Input/output error")
            super().rename(source, target)

    with pytest.raises(OSError, match="Input/output"):
        save(tmp_path, 4, LORA, "new", disk=NoRename(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["step-4"]
    assert checkpoints.read(tmp_path / "step-4").cursor == {"version": "old"}


# --- Damage ---


def damaged(root: Path) -> tuple[Checkpoint | None, list[str]]:
    told: list[str] = []
    return checkpoints.newest(root, damaged=lambda error: told.append(str(error))), told


def two(root: Path) -> Path:
    save(root, 1, LORA, "old")
    return save(root, 2, LORA, "new").path


def test_one_flipped_bit_anywhere_is_found(tmp_path):
    newest = two(tmp_path)
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.name != "manifest.json")
    chance = random.Random(0)
    for _ in range(100):
        path = chance.choice(files)
        whole = path.read_bytes()
        bit = chance.randrange(8 * len(whole))
        harmed = bytearray(whole)
        harmed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(harmed)
        found, told = damaged(tmp_path)
        assert found is not None and found.step == 1, (path, bit)
        assert len(told) == 1 and path.name in told[0] and "differs from its digest" in told[0]
        path.write_bytes(whole)
    assert damaged(tmp_path)[0].step == 2


def test_a_truncated_file_is_found_at_any_length(tmp_path):
    newest = two(tmp_path)
    path = newest / "state" / "optimizer.safetensors"
    whole = path.read_bytes()
    for length in random.Random(1).sample(range(len(whole)), 20):
        path.write_bytes(whole[:length])
        found, told = damaged(tmp_path)
        assert found is not None and found.step == 1 and f"has {length} bytes" in told[0]


def test_a_missing_file_and_swapped_files_are_found(tmp_path):
    newest = two(tmp_path)
    for path in sorted(path for path in newest.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        path.unlink()
        found, told = damaged(tmp_path)
        assert found is not None and found.step == 1 and len(told) == 1, path
        path.write_bytes(whole)
    one, other = newest / "weights" / "adapter_model.safetensors", newest / "state" / "optimizer.safetensors"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert damaged(tmp_path)[0].step == 1
    (newest / "weights").rename(newest / "w")
    assert damaged(tmp_path)[0].step == 1


def test_a_flipped_bit_in_the_manifest_is_found(tmp_path):
    newest = two(tmp_path)
    path = newest / "manifest.json"
    whole, chance = path.read_bytes(), random.Random(2)
    for _ in range(100):
        harmed = bytearray(whole)
        bit = chance.randrange(8 * len(harmed))
        harmed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(harmed)
        found, told = damaged(tmp_path)
        assert found is not None
        if found.path == newest:  # white space became other white space
            assert json.loads(harmed) == json.loads(whole)
        else:
            assert len(told) == 1 and "manifest.json cannot be read" in told[0]


# --- A full disk ---


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_operation_keeps_the_old_one_and_says_what_to_do(tmp_path, code):
    refused = 0
    for point in range(1, operations(tmp_path, "the same step again") + 1):
        root = tmp_path / f"at-{point}"
        files, step, keep = start(root, "the same step again")
        disk = FullDisk(root, point, code=code)
        try:
            save(root, step, files, "new", keep=keep, disk=disk)
        except DiskFull as error:
            refused += 1
            assert is_full(error)
            assert str(root) in str(error) and "1,234 are free" in str(error) and "resume the run" in str(error)
            needed = int(re.search(r"about ([\d,]+) bytes", str(error))[1].replace(",", ""))
            assert 120 <= needed < 1200  # the last one's files took 40 + 7 + 64 + 9; the manifest may be among them
            assert sorted(path.name for path in root.iterdir()) == ["step-2", "step-4"]
        found = load(root)
        assert found is not None and found.step == 4
        disk.full_at = 0  # space has been freed
        assert save(root, step, files, "newer", keep=keep, disk=disk).cursor == {"version": "newer"}
    assert refused >= 10


def test_errors_out_of_rust_are_known_for_what_they_are():
    class SafetensorError(Exception): ...

    assert is_full(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_full(SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)"))
    assert not is_full(ValueError("(os error 28)"))
