"""Packages that try to do harm while they are installed: by build scripts, by what their wheels hold, by links."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from evaluators.build import Build, Builder, BuildState
from evaluators.sandbox.build_jail import BuildLimits
from evaluators.sandbox.interpreter import interpreter
from tests.build_kit import PackageIndex, configured, package_index, wheel
from tests.hostile import ordinary
from tests.hostile.suite import SECRET, World, left_behind, world

_PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
_BACKEND = """
import _socket, array, base64, json, os, socket, subprocess, sys, time, zipfile
ROW = json.loads('''@ROW@''')
def refused(act):
    try:
        return repr(act()) or "done"
    except Exception as error:
        return "refused"
def tcp(host, port):
    one = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    one.connect((host, port))
    return "connected"
def udp(port):
    return _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port))
def unix(name):
    one = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    one.connect(name)
def asked(line):
    near, far = socket.socketpair()
    with socket.socket(fileno=os.dup(int(os.environ["PACKAGE_INDEX_CHANNEL"]))) as channel:
        socket.send_fds(channel, [b"."], [far.fileno()])
    far.close()
    near.settimeout(20)
    near.sendall(line.encode() + b"\\r\\n\\r\\n")
    found = near.recv(1 << 16)
    near.close()
    return found.split(b" ")[1].decode() if found else "closed"
def junk():
    with socket.socket(fileno=os.dup(int(os.environ["PACKAGE_INDEX_CHANNEL"]))) as channel:
        channel.send(b"no connection")
        null = os.open("/dev/null", os.O_RDONLY)
        socket.send_fds(channel, [b"."], [null, null, null])
def daemon():
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    return "refused"
def bomb():
    made = []
    try:
        for _ in range(500):
            pid = os.fork()
            if pid == 0:
                time.sleep(600)
            made.append(pid)
    finally:
        for pid in made:
            os.kill(pid, 9)
def probes():
    yield "tcp", refused(lambda: tcp("127.0.0.1", ROW["port"]))
    yield "index", refused(lambda: tcp("127.0.0.1", ROW["index"]))
    yield "metadata", refused(lambda: tcp("169.254.169.254", 80))
    yield "udp", refused(lambda: udp(ROW["port"]))
    yield "abstract", refused(lambda: unix("\\0" + ROW["abstract"]))
    yield "vsock", refused(lambda: _socket.socket(40, 1))
    yield "names", refused(lambda: _socket.getaddrinfo("localhost.localdomain", 80))
    yield "secret", refused(lambda: open(ROW["secret"]).read())
    yield "proc", refused(lambda: open("/proc/1/environ").read())
    yield "stream", refused(lambda: os.write(3, b"forged"))
    yield "system", refused(lambda: open(os.__file__, "a"))
    yield "bridge", refused(lambda: open("/sandbox/evaluators/sandbox/bridge/sitecustomize.py", "a"))
    yield "marker", refused(lambda: open(ROW["marker"], "w"))
    yield "mount", refused(lambda: subprocess.run(["unshare", "--user", "true"], check=True))
    yield "bomb", refused(bomb)
    yield "daemon", refused(daemon).strip("'")
def build_wheel(folder, config_settings=None, metadata_directory=None):
    junk()
    report = {"probes": dict(probes()), "environment": dict(os.environ), "asked": {}}
    for line in ROW["lines"]:
        report["asked"][line] = asked(line)
    name = "hostile-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as archive:
        archive.writestr("report.json", json.dumps(report))
        info = "hostile-1.0.dist-info"
        archive.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: hostile\\nVersion: 1.0\\n")
        archive.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(info + "/RECORD", "")
    @MORE@
    return name
"""
_TOO_MUCH = "more bytes, or have more files, than a build may"
_LINES = {  # what is asked of the first process -> status
    "GET / HTTP/1.1": "404",
    "GET /simple/absent/ HTTP/1.1": "404",
    "GET /etc/passwd HTTP/1.1": "404",
    "GET /simple/../../etc/passwd HTTP/1.1": "404",
    "GET /files/hostile/..%2f..%2fetc%2fpasswd HTTP/1.1": "404",
    "GET //169.254.169.254/latest/meta-data/ HTTP/1.1": "404",
    "GET http://169.254.169.254/ HTTP/1.1": "405",
    "GET /packages/hidden-1.0-py3-none-any.whl HTTP/1.1": "404",
    "POST /simple/hostile/ HTTP/1.1": "405",
    "CONNECT 127.0.0.1:80 HTTP/1.1": "405",
    "GET /simple/hostile/ HTTP/1.1\r\nHost: 169.254.169.254": "200",
}


def source(row: dict[str, object], more: str = "pass") -> bytes:
    """A source distribution whose build script does what it can."""
    backend = _BACKEND.replace("@ROW@", json.dumps(row).replace("\\", "\\\\")).replace("@MORE@", more)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, text in (("pyproject.toml", _PYPROJECT), ("backend.py", backend),
                           ("PKG-INFO", "Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")):  # fmt: skip
            entry = tarfile.TarInfo(f"hostile-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return stream.getvalue()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    with package_index() as found:
        configured(monkeypatch, index_url=found.url.replace("//", f"//user:{SECRET}@"))
        yield found


@pytest.fixture
def decoys() -> Iterator[World]:
    with world() as found:
        yield found


def built(folder: Path, requirement: str = "hostile", **options: object) -> Build:
    return Builder(folder / "environments", source_packages=("hostile",), **options).build(requirement)  # type: ignore[arg-type]


def packages(build: Build) -> Path:
    assert build.python is not None, build.message
    return next(Path(build.python).parents[1].glob("lib/python*/site-packages"))


def test_a_build_script_reaches_nothing(index: PackageIndex, decoys: World, tmp_path: Path) -> None:
    index.add(wheel("hidden"), "hidden-1.0-py3-none-any.whl")
    row = {**decoys.row, "index": int(index.root.rpartition(":")[2]), "lines": list(_LINES)}
    index.add(source(row), "hostile-1.0.tar.gz")
    before = set(left_behind())
    build = built(tmp_path)
    report = json.loads((packages(build) / "report.json").read_text())
    assert {name: found for name, found in report["probes"].items() if found != "refused"} == {}
    assert len(report["probes"]) == 16
    assert report["asked"] == _LINES
    assert SECRET not in json.dumps(report["environment"])
    assert {name for name in report["environment"] if "TOKEN" in name or "INDEX_URL" in name or "KEY" in name} == set()
    assert decoys.visited() == []
    assert {path for path, _ in index.asked} == {
        "/simple/hostile/", "/packages/hostile-1.0.tar.gz", "/simple/absent/",
    }  # fmt: skip
    assert set(left_behind()) - before == set()
    assert build.log is not None and SECRET not in build.log.read_text()
    assert "refused" in build.log.read_text()  # what was asked and not answered


@pytest.mark.parametrize(
    ("more", "words"),
    [
        pytest.param('os.makedirs("/scratch/packages"); os.symlink("/etc", "/scratch/packages/x")', "no plain file",
                     id="symlink"),
        pytest.param('os.makedirs("/scratch/packages"); os.mkfifo("/scratch/packages/x")', "build script", id="pipe",
                     marks=pytest.mark.slow),
        pytest.param('open("/scratch/fill", "wb").write(bytes(80 << 20))', _TOO_MUCH, id="bytes",
                     marks=pytest.mark.slow),
        pytest.param('[open(f"/scratch/{n}", "w").close() for n in range(5000)]', _TOO_MUCH, id="files",
                     marks=pytest.mark.slow),
        pytest.param('os.write(1, b"x" * (20 << 20)); raise SystemExit(1)', "pip printed more than", id="flood",
                     marks=pytest.mark.slow),
        pytest.param("time.sleep(600)", "the build took longer than", id="sleep", marks=pytest.mark.slow),
        pytest.param("bytearray(4 << 30)", "build script", id="memory", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_build_script_that_spoils_its_jail_fails_alone(
    index: PackageIndex, tmp_path: Path, more: str, words: str
) -> None:
    row = {"port": 9, "index": 9, "abstract": "x", "secret": "/x", "marker": "/x", "lines": []}
    index.add(source(row, more), "hostile-1.0.tar.gz")
    seconds = 4.0 if "sleep" in more else 120.0
    limits = BuildLimits(seconds=seconds, most_bytes=64 << 20, most_files=2000, process_bytes=512 << 20)
    build = built(tmp_path, limits=limits)
    assert build.state is BuildState.BUILD_FAILED
    assert re.search(words, build.message), build.message
    assert [path.suffix for path in (tmp_path / "environments").iterdir()] == [".log"]


def test_wheels_stay_where_they_are_put(index: PackageIndex, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    runs = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
    data = "hostile-1.0.data"
    index.add_wheel(
        "hostile",
        {
            "evil.pth": runs, "sitecustomize.py": runs, "pyvenv.cfg": "home = /tmp\n", "link": "/etc/passwd",
            f"{data}/data/bin/python": "#!/bin/sh\n", f"{data}/scripts/python": "#!/bin/sh\n",
            f"{data}/data/pyvenv.cfg": "home = /tmp\n", f"{data}/data/installed": "x", f"{data}/headers/x.h": "x",
            "hostile-1.0.dist-info/RECORD": "../../../../etc/passwd,,\n/etc/passwd,,\n",
        },
        link=0o120777,
    )  # fmt: skip
    build = built(tmp_path)
    assert build.state is BuildState.ACTIVE, build.message
    environment = Path(build.python or "").parents[1]
    assert sorted(path.name for path in environment.iterdir()) == ["bin", "installed", "lib", "pyvenv.cfg"]
    assert [path.name for path in environment.glob("bin/*")] == ["python"]
    assert (environment / "bin/python").samefile(interpreter(None).executable)
    assert "include-system-site-packages" in (environment / "pyvenv.cfg").read_text()
    links = [path for path in environment.rglob("*") if path.is_symlink()]
    assert links == [environment / "bin/python"]
    assert not marker.exists()


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"../../escape.py": "x"}, id="climbs"),
        pytest.param({"/absolute.py": "x"}, id="absolute", marks=pytest.mark.slow),
        pytest.param({"hostile-1.0.data/data/../../../escape": "x"}, id="data climbs", marks=pytest.mark.slow),
        pytest.param({"hostile-1.0.dist-info/entry_points.txt": "[console_scripts]\n../../../escape = os:getcwd\n"},
                     id="script climbs"),
        pytest.param({"hostile/x.py": "x", "hostile/x.py/y.py": "x"}, id="file and folder", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_wheels_that_climb_out_are_refused_or_kept_in(
    index: PackageIndex, tmp_path: Path, files: dict[str, str]
) -> None:
    index.add_wheel("hostile", files)
    build = built(tmp_path)
    assert not list(tmp_path.rglob("escape*")) or build.state is BuildState.ACTIVE
    if build.state is BuildState.ACTIVE:
        assert all(path.is_relative_to(packages(build)) for path in tmp_path.rglob("escape*"))
    else:
        assert "\n" not in build.message and build.message
    assert not Path("/escape").exists() and not Path("/absolute.py").exists()


def test_bombs_are_bounded(index: PackageIndex, tmp_path: Path) -> None:
    limits = BuildLimits(most_bytes=32 << 20, most_files=500)
    index.add_wheel("bomb", {"bomb/zeros": bytes(200 << 20)})
    index.add_wheel("crowd", {f"crowd/{n}.txt": "" for n in range(1000)})
    for name in ("bomb", "crowd"):
        build = built(tmp_path, name, limits=limits)
        assert build.state is BuildState.BUILD_FAILED
        assert _TOO_MUCH in build.message


_ORDINARY = """
import json, sys, tempfile
from pathlib import Path
from evaluators.build import Builder
tier, launcher, url = sys.argv[1:]
folder = Path(tempfile.mkdtemp())
builder = Builder(folder, index_url=url, tier=tier, launcher=launcher, source_packages=("hostile",))
build = builder.build("hostile")
packages = next(Path(build.python).parents[1].glob("lib/python*/site-packages")) if build.python else None
print(json.dumps([build.message, packages and json.loads((packages / "report.json").read_text())["probes"]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user, which only root can")
@pytest.mark.parametrize(
    ("tier", "launcher", "needs"),
    [("standard", "own", ""), ("standard", "bwrap", "bwrap"), ("strong", "own", "runsc"), ("landlock", "own", "")],
)
def test_an_ordinary_users_builds_are_fenced_too(decoys: World, tier: str, launcher: str, needs: str) -> None:
    if needs and not shutil.which(needs):
        pytest.skip(f"{needs} is not installed")
    with package_index() as index:
        row = {**decoys.row, "index": int(index.root.rpartition(":")[2]), "lines": []}
        index.add(source(row), "hostile-1.0.tar.gz")
        done = ordinary.python(["-c", _ORDINARY, tier, launcher, index.url], timeout=1200)
        assert done.returncode == 0, done.stderr
        message, probes = json.loads(done.stdout.splitlines()[-1])
        assert message == "built"
        assert {name: found for name, found in probes.items() if found != "refused"} == {}
        assert decoys.visited() == []


def test_no_build_without_a_fence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from pathlib import Path; from evaluators.build import Builder; "
         f"Builder(Path({str(tmp_path)!r}), tier='none').build('six')"],
        capture_output=True, text=True, check=False, cwd=ordinary.ROOT,
    )  # fmt: skip
    assert done.returncode != 0
    assert "SandboxRefused" in done.stderr
