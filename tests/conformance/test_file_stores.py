"""One suite for every place where the gateway's files can lie: its folder, S3, and Azure Blob."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bucket_kit import azure_server, azurite, has_moto, new_bucket, new_container, s3_server
from trainer.gateway.errors import GatewayError
from trainer.gateway.files import FileStore, content_digest

NAME = "accounts/local/datasets/d"
Open = Callable[[str], FileStore]


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    if not has_moto():
        pytest.skip("moto and s3fs are not installed")
    with s3_server() as environment:
        yield environment


@pytest.fixture(scope="module")
def azure() -> Iterator[dict[str, str]]:
    program = azurite()
    if program is None:
        pytest.skip("azurite-blob (npm install azurite; AZURITE_BLOB) and adlfs are not both here")
    with azure_server(program) as environment:
        yield environment


@pytest.fixture(params=["folder", "s3", pytest.param("azure", marks=pytest.mark.slow)])
def open_files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens the same files; a bucket's from any machine, each with a state folder of its own."""
    if request.param == "folder":
        return lambda _machine: FileStore(tmp_path / "one")
    for name, value in request.getfixturevalue(request.param).items():
        monkeypatch.setenv(name, value)
    url = new_bucket() if request.param == "s3" else new_container()
    return lambda machine: FileStore(tmp_path / machine, url)


def receive(files: FileStore, filename: str, content: bytes, **settings: object) -> str:
    with files.incoming(NAME, filename, size=len(content), **settings) as incoming:  # pyright: ignore[reportArgumentType]
        incoming.write(content)
        incoming.finish()
        incoming.place()
        return incoming.sha256


def test_what_came_is_there_for_everybody(open_files: Open) -> None:
    here, there = open_files("here"), open_files("there")
    assert receive(here, "a/b.jsonl", b"rows") == hashlib.sha256(b"rows").hexdigest()
    receive(here, "empty", b"")
    receive(here, "a/b.jsonl.2", b"others")
    assert there.names(NAME) == ["a/b.jsonl", "a/b.jsonl.2", "empty"]
    assert there.path(NAME, "a/b.jsonl").read_bytes() == b"rows"
    assert (there.folder(NAME) / "empty").read_bytes() == b""
    assert not there.path(NAME, "other").exists()
    assert there.names(f"{NAME}2") == []


def test_a_file_can_be_replaced_and_removed(open_files: Open) -> None:
    here, there = open_files("here"), open_files("there")
    receive(here, "f", b"one")
    assert there.path(NAME, "f").read_bytes() == b"one"
    receive(here, "f", b"two!")
    assert there.path(NAME, "f").read_bytes() == b"two!"
    receive(here, "g", b"g")
    here.discard(NAME, "f")
    here.discard(NAME, "f")
    assert open_files("third").names(NAME) == ["g"]
    assert not open_files("third").path(NAME, "f").exists()
    here.remove(NAME)
    assert open_files("fourth").names(NAME) == []


def test_what_did_not_end_has_never_been(open_files: Open) -> None:
    here = open_files("here")
    receive(here, "f", b"old")
    with pytest.raises(RuntimeError), here.incoming(NAME, "f", size=3) as incoming:
        incoming.write(b"new")
        incoming.finish()
        raise RuntimeError("before it took its place")
    with pytest.raises(GatewayError, match=r"5 bytes .*, 3 came"), here.incoming(NAME, "f", size=5) as incoming:
        incoming.write(b"new")
        incoming.finish()
    with pytest.raises(GatewayError, match="more than that came"), here.incoming(NAME, "f", size=2) as incoming:
        incoming.write(b"new")
    assert open_files("there").path(NAME, "f").read_bytes() == b"old"
    assert open_files("there").names(NAME) == ["f"]


def test_adopted(open_files: Open, tmp_path: Path) -> None:
    here = open_files("here")
    (tmp_path / "source").write_bytes(b"weights")
    assert here.adopt(NAME, "model.safetensors", tmp_path / "source") == hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "source").unlink()
    assert open_files("there").path(NAME, "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("by", ["digest", "session"])
def test_pieces(open_files: Open, by: str) -> None:
    here, content = open_files("here"), bytes(range(256)) * 40
    key = content_digest(hashlib.sha256(content).hexdigest()) if by == "digest" else "s1"
    settings = {"size": len(content), "digest" if by == "digest" else "session": key}
    for start, end in ((0, 1000), (1000, 7000)):
        with here.incoming(NAME, "f", start=start, **settings) as incoming:  # pyright: ignore[reportArgumentType]
            incoming.write(content[start:end])
        assert here.held(NAME, "f", key) == end
    with pytest.raises(GatewayError, match="less than 8000 bytes"), here.incoming(
        NAME, "f", start=8000, **settings  # pyright: ignore[reportArgumentType]
    ):  # fmt: skip
        pass
    with here.incoming(NAME, "f", start=6000, **settings) as incoming:  # pyright: ignore[reportArgumentType]
        incoming.write(content[6000:])
        incoming.finish()
        incoming.place()
    assert open_files("there").path(NAME, "f").read_bytes() == content


def test_a_copy_that_was_changed_here_is_not_used(open_files: Open) -> None:
    here = open_files("here")
    if here._bucket is None:
        pytest.skip("the folder has no copies")
    receive(here, "f", b"right")
    here.path(NAME, "f").write_bytes(b"wrong, and longer")
    assert here.path(NAME, "f").read_bytes() == b"right"


def test_a_bucket_with_other_bytes_is_found_out(open_files: Open, tmp_path: Path) -> None:
    here = open_files("here")
    if here._bucket is None:
        pytest.skip("the folder has no digests of its own; records have")
    receive(here, "f", b"right")
    (tmp_path / "evil").write_bytes(b"wrong")
    here._bucket.put(tmp_path / "evil", NAME, "f", hashlib.sha256(b"right").hexdigest())
    with pytest.raises(GatewayError, match="DATA_LOSS"):
        open_files("there").path(NAME, "f")


def test_a_folder_knows_where_its_files_are(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    url = new_bucket()
    receive(FileStore(tmp_path / "a", url), "f", b"x")
    assert FileStore(tmp_path / "a").names(NAME) == ["f"]  # without a word: the mark says where
    monkeypatch.setenv("TRAINER_GATEWAY_FILES", url)
    assert FileStore(tmp_path / "b").names(NAME) == ["f"]
    with pytest.raises(GatewayError, match="are in s3://"):
        FileStore(tmp_path / "a", "s3://other/x")
    monkeypatch.delenv("TRAINER_GATEWAY_FILES")
    receive(FileStore(tmp_path / "c"), "f", b"x")
    with pytest.raises(GatewayError, match="move them first"):
        FileStore(tmp_path / "c", url)


def test_what_is_deleted_elsewhere_is_not_found_here(open_files: Open) -> None:
    here, there = open_files("here"), open_files("there")
    receive(here, "f", b"rows")
    assert there.path(NAME, "f").is_file()
    while here.take_away(NAME):
        pass
    assert not there.path(NAME, "f").exists()
    assert not here.path(NAME, "f").exists()


def test_a_reader_finds_the_old_file_or_the_new_one(open_files: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = open_files("here"), open_files("there")
    if there._bucket is None:
        pytest.skip("the folder's files are renamed")
    receive(here, "f", b"old")
    bring, late = there._bucket._bring, [b"new"]

    def after_another_came(*arguments: object) -> None:
        if late:
            receive(here, "f", late.pop())
        bring(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(there._bucket, "_bring", after_another_came)
    assert there.path(NAME, "f").read_bytes() == b"new"


def test_bytes_that_the_bucket_names_and_has_not(open_files: Open) -> None:
    here = open_files("here")
    if here._bucket is None:
        pytest.skip("the folder names nothing")
    receive(here, "f", b"right")
    bucket = here._bucket._bucket
    bucket.remove([entry.key for entry in bucket.entries(f"{NAME}/f") if not entry.key.endswith("/=")])
    with pytest.raises(GatewayError, match=r"DATA_LOSS.*has not its bytes"):
        open_files("there").path(NAME, "f")


def test_two_who_send_the_same_file_do_not_spoil_it(open_files: Open) -> None:
    here, again, content = open_files("here"), open_files("here"), bytes(range(256))
    settings = {"size": len(content), "session": "s1"}
    with here.incoming(NAME, "f", **settings) as first:  # pyright: ignore[reportArgumentType]
        first.write(content)
        first.finish()
        with pytest.raises(GatewayError, match=r"ABORTED.*another request"), again.incoming(
            NAME, "f", start=10, **settings  # pyright: ignore[reportArgumentType]
        ):  # fmt: skip
            pass
        first.place()
        with again.incoming(NAME, "f", **settings) as late:  # pyright: ignore[reportArgumentType]
            late.write(b"other")  # into a file of its own
    assert open_files("there").path(NAME, "f").read_bytes() == content


def test_of_two_who_go_on_with_a_file_one_does(open_files: Open) -> None:
    here, again = open_files("here"), open_files("here")
    with here.incoming(NAME, "f", size=8, session="s") as first:
        first.write(b"1234")
        with again.incoming(NAME, "f", size=8, session="s", start=2) as second:
            second.write(b"345678")
            with pytest.raises(GatewayError, match=r"ABORTED.*sending it too"):
                first.write(b"xxxx")
            second.finish()
            second.place()
    assert open_files("there").path(NAME, "f").read_bytes() == b"12345678"


def test_what_was_left_is_swept_after_a_day_and_what_is_on_its_way_is_not(tmp_path: Path) -> None:
    files = FileStore(tmp_path / "state")
    left, linked, old = files.scratch(), files.scratch(), tmp_path / "trained-last-week"
    work, fresh = tmp_path / "state/tmpabcdefgh", tmp_path / "state/tmp12345678"
    for folder in (work, fresh):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep/weights").write_bytes(b"w")
    for path in (left, old):
        path.write_bytes(b"x")
    linked.hardlink_to(old)  # as `adopt` has it while it reads the digest
    for path in (left, old, work / "deep/weights", work / "deep", work, fresh):
        os.utime(path, (1, 1))
    (files.scratch().parent / "gone-1").mkdir()
    FileStore(tmp_path / "state")
    assert not left.exists()
    assert linked.exists()
    assert not work.exists()
    assert (fresh / "deep/weights").exists()
    assert [path.name for path in (tmp_path / "state/partial").iterdir()] == [linked.name]
