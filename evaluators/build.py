"""Environments for uploaded evaluators: one folder per `requirements.txt`, built once, published whole or not at all.

The one decision: nothing of a package runs while it is being installed. Wheels only (`--only-binary :all:`), so that
no build script runs, but for the packages in `Builder.source_packages`; the requirements may not name another source
(`requirements.py`); pip runs as a process of its own with an environment made by hand, without secrets, at most
`seconds` long and within `most_bytes`. What was installed is first imported inside the sandbox. The network of that
process is not fenced: it is pip, not the package, that uses it, and it goes to the index that the operator configured
for pip, or to `index_url`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from evaluators.requirements import RequirementRefused, read_requirements

_VERSION = "1"  # of this file's doings; part of the digest
_LOG_BYTES = 1 << 20
_PASSED = ("PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY",
           "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")  # fmt: skip
_REASONS = (
    (re.compile(r"ERROR: No matching distribution found for (.+)"), "there is no package that fits {0!r} in the index"),
    (re.compile(r"ERROR: Could not find a version that satisfies the requirement (\S+)"),
     "there is no version of {0!r} that fits, as a wheel for this Python and machine"),
    (re.compile(r"ERROR: Cannot install (.+?) because(?:.|\n)*?The conflict is caused by:\s*\n\s*(.+)"),
     "{0} cannot be installed: no versions fit together (or exist as wheels): {1}"),
    (re.compile(r"ERROR: (?:Invalid requirement: )(.+)"), "not a requirement: {0}"),
    (re.compile(r"No space left on device"), "the disk is full"),
    (re.compile(r"THESE PACKAGES DO NOT MATCH THE HASHES"), "a package does not match its --hash"),
    (re.compile(r"(?:ConnectionError|NewConnectionError|Max retries exceeded|Temporary failure in name resolution)"),
     "the package index cannot be reached"),
    (re.compile(r"ERROR: (.+)"), "{0}"),
)  # fmt: skip


class BuildState(StrEnum):
    """As the gateway's evaluator states."""

    BUILDING = "BUILDING"
    ACTIVE = "ACTIVE"
    BUILD_FAILED = "BUILD_FAILED"


@dataclass(frozen=True)
class Build:
    """How a build stands. python: of the environment, for `Program`; None = a bare one is enough. log: a file."""

    state: BuildState
    digest: str
    python: str | None = None
    message: str = ""
    log: Path | None = None
    seconds: float = 0.0
    reused: bool = False


@dataclass(frozen=True)
class Builder:
    """Builds below `folder`. index_url: None = as pip is configured on this machine.

    from_source: let packages without wheels run their build scripts; only for requirements of one's own.
    source_packages: the packages that may do so anyway; antlr4's, since hydra-core, and so eval-protocol, needs its
    4.9, of which there are no wheels. stopped: asked every now and then; once true the build ends, as failed.
    """

    folder: Path
    index_url: str | None = None
    from_source: bool = False
    source_packages: tuple[str, ...] = ("antlr4-python3-runtime",)
    seconds: float = 600.0
    most_bytes: int = 4 << 30
    python: str = sys.executable
    stopped: Callable[[], bool] = lambda: False

    def build(self, requirements: str, *, tell: Callable[[Build], None] = lambda _: None) -> Build:
        """The environment of a requirements.txt, from the cache or made now; never raises for what is in the text.

        `tell` hears BUILDING when a build begins. A failed build is not kept: the next one tries again.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = "0" * 16
        try:
            lines = read_requirements(requirements)
            digest = self.digest(lines)
        except RequirementRefused as error:
            log = self._log_of(hashlib.sha256(requirements.encode("utf-8", "replace")).hexdigest()[:16])
            log.write_text(f"{error}\n", encoding="utf-8")
            return Build(BuildState.BUILD_FAILED, digest, message=str(error), log=log)
        log, place = self._log_of(digest), self.folder / digest
        if not lines:
            return Build(
                BuildState.ACTIVE, digest, message="no packages are required", log=_noted(log, "no packages\n")
            )
        if (place / "installed").is_file():
            return Build(BuildState.ACTIVE, digest, _python(place), "ready", log, reused=True)
        tell(Build(BuildState.BUILDING, digest, log=log))
        return self._make(lines, digest, place, log)

    def digest(self, lines: list[str]) -> str:
        """Of all that decides what is installed, as far as it is known before."""
        parts = [_VERSION, self.index_url or "", str(self.from_source), *self.source_packages]
        parts += [platform.machine(), sys.version, os.path.realpath(self.python)]  # python, python3: the same
        return hashlib.sha256("\0".join([*parts, *sorted(lines)]).encode()).hexdigest()[:32]

    def _make(self, lines: list[str], digest: str, place: Path, log: Path) -> Build:
        begun = time.monotonic()
        making = Path(tempfile.mkdtemp(prefix=f".{digest}.", dir=self.folder))
        try:
            environment = making / "environment"
            venv.EnvBuilder(with_pip=False, symlinks=True).create(environment)
            (making / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            problem = self._install(making, environment, log)
            if problem:
                return Build(BuildState.BUILD_FAILED, digest, message=problem, log=log,
                             seconds=time.monotonic() - begun)  # fmt: skip
            (environment / "installed").write_text("\n".join(lines) + "\n", encoding="utf-8")
            _publish(environment, place)
            return Build(BuildState.ACTIVE, digest, _python(place), "built", log, time.monotonic() - begun)
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _install(self, making: Path, environment: Path, log: Path) -> str:
        """Run pip; returns what went wrong, in words, or ""."""
        command = [self.python, "-m", "pip", "--python", _python(environment), "install", "--no-input", "--no-color",
                   "--disable-pip-version-check", "--progress-bar", "off", "--no-cache-dir",
                   "--no-warn-script-location", "-r", str(making / "requirements.txt")]  # fmt: skip
        if not self.from_source:
            command += ["--only-binary", ":all:"]
            command += ["--no-binary", ",".join(self.source_packages)] if self.source_packages else []
        command += ["--index-url", self.index_url] if self.index_url else []
        with log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - our own pip
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=making,
                env=self._environment(making), start_new_session=True,
                preexec_fn=_fence(self.most_bytes),  # noqa: PLW1509 - it only sets limits
            )  # fmt: skip
            problem = self._wait(process, making)
        text = _shortened(log)
        return problem or ("" if process.returncode == 0 else reason(text))

    def _wait(self, process: subprocess.Popen[bytes], making: Path) -> str:
        deadline = time.monotonic() + self.seconds
        pause, problem = 0.05, ""
        while process.poll() is None and not problem:
            try:
                process.wait(pause)
            except subprocess.TimeoutExpired:
                pause = min(2.0, pause * 1.5)
            if time.monotonic() > deadline:
                problem = f"the build took longer than {self.seconds:g} s"
            elif self.stopped():
                problem = "the build was stopped"
            elif _size(making) > self.most_bytes:
                problem = f"the packages take more than {self.most_bytes:,} bytes"
        if problem:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return problem

    def _environment(self, making: Path) -> dict[str, str]:
        """Made by hand: what finds the index, and no secret of this process."""
        kept = {name: value for name, value in os.environ.items() if name in _PASSED or name.startswith("PIP_")}
        home = making / "home"
        home.mkdir()
        return {**kept, "HOME": str(home), "TMPDIR": str(home), "PYTHONNOUSERSITE": "1"}

    def _log_of(self, digest: str) -> Path:
        return self.folder / f"{digest}.log"


def check_import(build: Build, imports: Callable[[str], str]) -> Build:
    """The build, or BUILD_FAILED where the evaluator does not load: `imports(python)` says in words what is wrong."""
    if build.state is not BuildState.ACTIVE:
        return build
    problem = imports(build.python or "")
    if not problem:
        return build
    if build.log is not None:
        _noted(build.log, f"\nthe evaluator does not load: {problem}\n", append=True)
    return Build(BuildState.BUILD_FAILED, build.digest, build.python, problem, build.log, build.seconds, build.reused)


def reason(log: str) -> str:
    """Why pip failed, in one readable line."""
    for pattern, words in _REASONS:
        match = pattern.search(log)
        if match:
            return words.format(*(group.strip()[:200] for group in match.groups()))
    last = [line for line in log.splitlines() if line.strip()]
    return f"pip failed: {last[-1][:200]}" if last else "pip failed without a word"


def _python(environment: Path) -> str:
    return str(environment / "bin" / "python")


def _publish(environment: Path, place: Path) -> None:
    try:
        environment.rename(place)
    except OSError:
        if not (place / "installed").is_file():  # else another process was first
            raise


def _fence(most_bytes: int) -> Callable[[], None]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return limit


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(f"{root}/{name}").st_size
            except FileNotFoundError:
                continue  # pip moves its files about
    return total


def _shortened(log: Path) -> str:
    """The log's text; one that is too long keeps its end."""
    if log.stat().st_size > _LOG_BYTES:
        with log.open("rb") as file:
            file.seek(-_LOG_BYTES, os.SEEK_END)
            kept = file.read()
        log.write_bytes(b"[the beginning was cut]\n" + kept)
    return log.read_text(encoding="utf-8", errors="replace")


def _noted(log: Path, text: str, *, append: bool = False) -> Path:
    with log.open("a" if append else "w", encoding="utf-8") as file:
        file.write(text)
    return log
