"""Environments are built in a jail, from an index on this machine: what arrives, what it costs, what is said of it."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from evaluators.build import Build, Builder, BuildState
from evaluators.build_index import Index
from evaluators.build_tree import Tree
from evaluators.package_sources import Sources
from evaluators.protocol import Limits, Program
from evaluators.sandbox import Sandbox, build_wire
from evaluators.sandbox.build_jail import BuildJail, BuildLimits, BuildStopped
from evaluators.sandbox.jail import JailError
from tests.build_kit import PackageIndex, configured, package_index
from trainer.evaluation_sandbox import new_builder

SECRET = "planted-secret-token"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    """An index that pip is configured for on this machine."""
    with package_index() as found:
        configured(monkeypatch, index_url=found.url.replace("//", f"//user:{SECRET}@"))
        monkeypatch.setenv("PLANTED_TOKEN", SECRET)
        yield found


def test_packages_arrive_and_are_used_in_the_evaluators_jail(index: PackageIndex, tmp_path: Path) -> None:
    index.add_wheel("planted", {"planted/__init__.py": "from needed import VALUE\n"}, requires="needed>=1")
    index.add_wheel("needed", version="2.0")
    index.add_wheel("needed", {"needed.py": "VALUE = 1\n"}, version="0.9")
    told: list[Build] = []
    builder = Builder(tmp_path / "environments")
    asked = "planted==1.0\nabsent; python_version < '3'\n"
    build = builder.build(asked, tell=told.append)
    assert (build.state, build.reused, build.ours) == (BuildState.ACTIVE, False, False), build.message
    assert [one.state for one in told] == [BuildState.BUILDING]
    program = Program({"e.py": b"import planted\ndef f(): return planted.VALUE\n"}, "e.py::f", python=build.python)
    with Sandbox(workers=1) as sandbox:
        [result] = sandbox.evaluate(program, [{}], limits=Limits.bundle())
    assert result.score is not None and result.score.score == 7.0, result.message
    assert build.python is not None and build.log is not None
    packages = next(Path(build.python).parents[1].glob("lib/python*/site-packages"))
    assert {path.stat().st_uid for path in packages.rglob("*")} == {os.geteuid()}
    assert {path.stat().st_mode & 0o777 for path in packages.rglob("*") if path.is_file()} == {0o644}
    compiled = next(packages.glob("planted/__pycache__/*.pyc")).read_bytes()
    when = int((packages / "planted/__init__.py").stat().st_mtime)
    assert int.from_bytes(compiled[8:12], "little") == when  # byte code is current
    log = build.log.read_text()
    assert "network: none but http://127.0.0.1" in log and "Successfully installed needed-2.0 planted-1.0" in log
    assert SECRET not in log
    assert {path for path, _ in index.asked} == {
        "/simple/planted/", "/simple/needed/", "/packages/planted-1.0-py3-none-any.whl",
        "/packages/needed-2.0-py3-none-any.whl",
    }  # fmt: skip
    index.asked.clear()
    assert builder.build("# the same\n" + asked).reused
    assert index.asked == []
    assert sorted(path.suffix for path in builder.folder.iterdir()) == ["", ".log"]


def test_the_digest_is_of_requirements_and_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder(tmp_path)
    configured(monkeypatch, index_url="https://i/simple")
    first = builder.digest(["six"])
    assert builder.digest(["six"]) == first != builder.digest(["six<2"])
    configured(monkeypatch, index_url="https://user:word@i/simple")
    assert builder.digest(["six"]) == first
    configured(monkeypatch, index_url="https://j/simple")
    assert builder.digest(["six"]) != first
    assert Builder(tmp_path, index_url="https://i/simple").digest(["six"]) == first
    assert Builder(tmp_path, source_packages=()).digest(["six"]) != builder.digest(["six"])


def test_failures_are_readable(index: PackageIndex, tmp_path: Path) -> None:
    index.add(b"source", "very_old-2.0.tar.gz")
    index.failing["/simple/locked/"] = 401
    index.add_wheel("huge", {"huge/data.bin": bytes(48 << 20)})
    index.add_wheel("leads_away", requires="other @ https://192.0.2.7/other-1.0-py3-none-any.whl")
    limits = BuildLimits(most_bytes=32 << 20)
    for requirement, words, ours in (
        ("Very.Old", "there is no package that fits 'Very.Old' in the index: the index has no wheel of it", False),
        ("leads-away", "a package requires something of 192.0.2.7; only packages of the configured index", False),
        ("locked", "the package index cannot be read", True),
        ("huge", "the packages take more bytes, or have more files, than a build may", False),
    ):  # fmt: skip
        build = Builder(tmp_path / "environments", limits=limits).build(requirement)
        assert build.state is BuildState.BUILD_FAILED
        assert build.message.startswith(words), build.message
        assert "\n" not in build.message
        assert build.ours == ours
        assert build.log is not None and requirement in build.log.read_text()
    assert {path.suffix for path in (tmp_path / "environments").iterdir()} == {".log"}


def test_the_operator_may_allow_more_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new_builder(tmp_path).limits.most_bytes == 2 << 30
    monkeypatch.setenv("TRAINER_EVALUATOR_BUILD_BYTES", "4000")
    monkeypatch.setenv("TRAINER_SANDBOX_TIER", "none")
    builder = new_builder(tmp_path)
    assert (builder.limits.most_bytes, builder.tier, builder.allow_none) == (4000, "none", True)
    monkeypatch.setenv("TRAINER_EVALUATOR_BUILD_BYTES", "4G")
    with pytest.raises(ValueError, match="TRAINER_EVALUATOR_BUILD_BYTES: got '4G'"):
        new_builder(tmp_path)


def test_a_build_can_be_stopped(tmp_path: Path) -> None:
    with package_index() as index:
        asked = threading.Event()
        answer = index.answer

        def slowly(path: str) -> tuple[int, str, bytes]:
            asked.set()
            return answer(path)

        index.answer = slowly  # type: ignore[method-assign]
        begun = time.monotonic()
        builder = Builder(tmp_path / "environments", index_url=index.url, stopped=asked.is_set)
        build = builder.build("planted")
        assert (build.state, build.message) == (BuildState.BUILD_FAILED, "the build was stopped")
        assert time.monotonic() - begun < 600
        late = Builder(tmp_path / "environments", index_url=index.url, limits=BuildLimits(seconds=0.0)).build("planted")
        assert late.message == "the build took longer than 0 s"


class Forged(BuildJail):
    """A jail whose stream says `frames`, and then ends."""

    def __init__(self, frames: bytes) -> None:
        self._host, self._open = os.getpid(), ExitStack()
        self.socket, far = map(self._open.enter_context, socket.socketpair())
        far.sendall(frames)
        far.close()
        self.usable, self.folder, self.cgroup, self._killed_at_end, self.way = True, None, None, False, "own"
        self._most = BuildLimits(printed_bytes=100)


def framed(kind: bytes, payload: bytes = b"", *, size: int | None = None) -> bytes:
    return build_wire.FRAME.pack(kind, len(payload) if size is None else size) + payload


ABOUT = build_wire.ABOUT.pack(1, 0, 0)
ENDED = framed(b"E", build_wire.STATUS.pack(0))


@pytest.mark.parametrize(
    ("frames", "error", "words"),
    [
        (b"", JailError, "the stream ended"),
        (framed(b"?"), JailError, "unknown kind"),
        (framed(b"P", size=1 << 30), JailError, "a frame of"),
        (framed(b"P", b"x" * 101), BuildStopped, "pip printed more than 100 bytes"),
        (framed(b"E", b"00"), JailError, "requires a buffer of 4"),
        (framed(b"N", b"0"), JailError, "requires a buffer of"),
        (framed(b"C", b"0"), BuildStopped, "larger than its size"),
        (framed(b"N", ABOUT + b"../x"), BuildStopped, "not a plain relative path"),
        (framed(b"N", ABOUT + b"x") + framed(b"C", b"12"), BuildStopped, "larger than its size"),
        (framed(b"N", ABOUT + b"x") + ENDED + framed(b"D"), BuildStopped, "smaller than its size"),
        (framed(b"S", b"link\xff"), BuildStopped, "no plain file"),
        (ENDED[:-1], JailError, "the stream ended"),
    ],
)
def test_forged_frames_end_the_build(tmp_path: Path, frames: bytes, error: type[Exception], words: str) -> None:
    jail = Forged(frames)
    index = Index(Sources(()), most_bytes=1)
    with Tree(tmp_path / "top", most_bytes=100, most_files=10) as tree, pytest.raises(error, match=words):
        jail.install(index, tree, printed=lambda _: None, check=lambda: None)
    assert not jail.usable


def test_an_end_without_a_status_is_a_failure(tmp_path: Path) -> None:
    jail, index = Forged(framed(b"D")), Index(Sources(()), most_bytes=1)
    with Tree(tmp_path / "top", most_bytes=100, most_files=10) as tree:
        assert jail.install(index, tree, printed=lambda _: None, check=lambda: None) != 0
    jail.close()


@pytest.mark.parametrize(
    ("path", "words"),
    [(b"../x", "plain relative path"), (b"/etc/x", "plain relative path"), (b"a//b", "plain relative path"),
     (b"a/./b", "plain relative path"), (b"", "plain relative path"), (b"\xff", "not UTF-8"),
     (b"a\nb", "control characters"), (b"a\x00b", "control characters"), (b"x" * 256, "too long"),
     (b"/".join([b"d"] * 33), "too deep"), (b"here", "twice"), (b"here/below", "as a file and a folder"),
     (b"folder", "twice, or as a file and a folder")],
)  # fmt: skip
def test_a_file_that_is_not_plain_is_refused(tmp_path: Path, path: bytes, words: str) -> None:
    with Tree(tmp_path / "top", most_bytes=100, most_files=10) as tree:
        for first in (b"here", b"folder/inner"):
            tree.begin(first, 1, 0, False)
            tree.add(b"1")
        with pytest.raises(BuildStopped, match=words):
            tree.begin(path, 1, 0, False)
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["folder", "here", "inner", "top"]


def test_a_tree_is_bounded_and_exact(tmp_path: Path) -> None:
    def tree() -> Tree:
        return Tree(tmp_path / str(time.monotonic_ns()), most_bytes=10, most_files=2)

    with tree() as one, pytest.raises(BuildStopped, match="more than 10 bytes"):
        one.begin(b"a", 11, 0, False)
    with tree() as one, pytest.raises(BuildStopped, match="more than 2 files"):
        for name in (b"a", b"b", b"c"):
            one.begin(name, 0, 0, False)
    with tree() as one, pytest.raises(BuildStopped, match="larger than its size"):
        one.begin(b"a", 1, 0, False)
        one.add(b"12")
    with tree() as one, pytest.raises(BuildStopped, match="smaller than its size"):
        one.begin(b"a", 2, 0, False)
        one.add(b"1")
        one.end()
    with tree() as one:
        one.begin(b"bin/a", 1, 4711, True)
        one.add(b"1")
        one.end()
    [path] = tmp_path.glob("*/bin/a")
    assert (path.stat().st_mode & 0o777, path.stat().st_mtime) == (0o755, 4711.0)
