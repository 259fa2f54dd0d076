"""Environments for uploaded evaluators: one folder per `requirements.txt`, built once, published whole or not at all.

The one decision: pip runs in a jail as evaluators do, without secrets and without a network; what it asks of the
package index is asked by this process, of the index that the operator configured for pip and of nothing else
(`build_index.py`), and what it installed is written by this process, file by file (`build_tree.py`). Wheels only, so
that nothing of a package runs while it is installed, but for the packages in `Builder.source_packages`, whose build
scripts run in the same jail. The requirements may not name another source (`requirements.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from evaluators.build_index import Index
from evaluators.build_tree import Tree
from evaluators.installed_pip import PipMissing, pip_place
from evaluators.package_sources import Sources, SourcesRefused, read_sources
from evaluators.protocol import Tier
from evaluators.requirements import RequirementRefused, read_requirements
from evaluators.sandbox import machine
from evaluators.sandbox.build_jail import BuildJail, BuildLimits, BuildStopped
from evaluators.sandbox.interpreter import interpreter, is_open
from evaluators.sandbox.jail import BWRAP, JailError

_VERSION = "2"  # of this file's doings; part of the digest
_LOG_BYTES = 1 << 20
_PIP_FAILED = "pip failed"
_TOO_MUCH = "the packages take more bytes, or have more files, than a build may"
_FETCHED = 2  # bytes that may be fetched, over those that may be installed
_FENCES = {
    Tier.LANDLOCK: "weaker: no namespaces; the folder it installs to is limited by looking at it, memory by process",
    Tier.NONE: "none at all, as the operator allows: pip, and build scripts, run with this user's rights",
}
_REASONS = (
    (re.compile(r"ERROR: No matching distribution found for (.+)"), "there is no package that fits {0!r} in the index"),
    (re.compile(r"ERROR: Could not find a version that satisfies the requirement (\S+)"),
     "there is no version of {0!r} that fits, as a wheel for this Python and machine"),
    (re.compile(r"ERROR: Cannot install (.+?) because(?:.|\n)*?The conflict is caused by:\s*\n\s*(.+)"),
     "{0} cannot be installed: no versions fit together (or exist as wheels): {1}"),
    (re.compile(r"ERROR: (?:Invalid requirement: )(.+)"), "not a requirement: {0}"),
    (re.compile(r"No space left on device"), _TOO_MUCH),
    (re.compile(r"× (.+) did not run successfully"), "{0} failed: a package's build script did not run to its end"),
    (re.compile(r"THESE PACKAGES DO NOT MATCH THE HASHES"), "a package does not match its --hash"),
    (re.compile(r"host='(?!localhost')([^']+)', port=\d+\): Max retries exceeded"),
     "a package requires something of {0}; only packages of the configured index are taken"),
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
    """How a build stands. python: of the environment, for `Program`; None = a bare one is enough. log: a file.

    ours: it failed for want of this machine or of the index, not for what is required.
    """

    state: BuildState
    digest: str
    python: str | None = None
    message: str = ""
    log: Path | None = None
    seconds: float = 0.0
    reused: bool = False
    ours: bool = False


@dataclass(frozen=True)
class Builder:
    """Builds below `folder`. index_url: None = as pip is configured on this machine, else that index alone.

    from_source: let every package without wheels run its build scripts, in the jail. source_packages: the packages that
    may do so anyway; antlr4's, since hydra-core, and so eval-protocol, needs its 4.9, of which there are no wheels.
    tier, allow_none, launcher: as `Sandbox` has them. stopped: asked every now and then; once true the build fails.
    """

    folder: Path
    index_url: str | None = None
    from_source: bool = False
    source_packages: tuple[str, ...] = ("antlr4-python3-runtime",)
    limits: BuildLimits = field(default_factory=BuildLimits)
    tier: str = "auto"
    allow_none: bool = False
    launcher: str | None = None
    stopped: Callable[[], bool] = lambda: False

    def build(self, requirements: str, *, tell: Callable[[Build], None] = lambda _: None) -> Build:
        """The environment of a requirements.txt, from the cache or made now; never raises for what is in the text.

        `tell` hears BUILDING when a build begins. A failed build is not kept: the next one tries again. Raises
        `SandboxRefused` where this machine gives no jail to build in.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        digest = "0" * 16
        try:
            lines = read_requirements(requirements)
            sources = read_sources(self.index_url)
        except (RequirementRefused, SourcesRefused) as error:
            log = self._log_of(hashlib.sha256(requirements.encode("utf-8", "replace")).hexdigest()[:16])
            log.write_text(f"{error}\n", encoding="utf-8")
            return Build(BuildState.BUILD_FAILED, digest, message=str(error), log=log,
                         ours=isinstance(error, SourcesRefused))  # fmt: skip
        digest = self._digest(lines, sources)
        log, place = self._log_of(digest), self.folder / digest
        if not lines:
            return Build(
                BuildState.ACTIVE, digest, message="no packages are required", log=_noted(log, "no packages\n")
            )
        if (place / "installed").is_file():
            return Build(BuildState.ACTIVE, digest, _python(place), "ready", log, reused=True)
        fence = machine.choose(self.tier, allow_none=self.allow_none, launcher=self.launcher)
        tell(Build(BuildState.BUILDING, digest, log=log))
        return _Making(self, lines, sources, fence, digest).make(place, log)

    def digest(self, lines: list[str]) -> str:
        """Of all that decides what is installed, as far as it is known before: requirements, interpreter, machine,
        index. Raises `SourcesRefused`."""
        return self._digest(lines, read_sources(self.index_url))

    def _digest(self, lines: list[str], sources: Sources) -> str:
        parts = [_VERSION, str(self.from_source), *self.source_packages, "", *sources.identity, ""]
        parts += [platform.machine(), sys.version, interpreter(None).executable]
        return hashlib.sha256("\0".join([*parts, *sorted(lines)]).encode()).hexdigest()[:32]

    def _log_of(self, digest: str) -> Path:
        return self.folder / f"{digest}.log"


@dataclass
class _Making:
    """One build, from an empty folder to one that is published."""

    builder: Builder
    lines: list[str]
    sources: Sources
    fence: tuple[Tier, str]  # tier and launcher
    digest: str
    begun: float = field(default_factory=time.monotonic)
    index: Index | None = None

    def make(self, place: Path, log: Path) -> Build:
        """Build, and publish at `place`."""
        making = Path(tempfile.mkdtemp(prefix=f".{self.digest}.", dir=self.builder.folder))
        ours = False
        try:
            environment = making / "environment"
            with log.open("wb", buffering=0) as out:
                try:
                    problem = self._install(environment, out)
                except JailError as error:
                    problem, ours = str(error), True
            text = _shortened(log)
            if problem == _PIP_FAILED:
                problem, ours = self._why(text)
            if problem:
                _noted(log, f"\n{problem}\n", append=True)
            if not problem:
                (environment / "installed").write_text("\n".join(self.lines) + "\n", encoding="utf-8")
                _publish(environment, place)
        finally:
            shutil.rmtree(making, ignore_errors=True)
        seconds = time.monotonic() - self.begun
        if problem:
            return Build(BuildState.BUILD_FAILED, self.digest, message=problem, log=log, seconds=seconds, ours=ours)
        return Build(BuildState.ACTIVE, self.digest, _python(place), "built", log, seconds)

    def _install(self, environment: Path, out: BinaryIO) -> str:
        """Install into a new environment; what went wrong, in words, or ""."""
        limits, index = self.builder.limits, self._opened(out)
        out.write(self._introduction().encode())
        files = {"requirements.txt": _lines(self.lines)}
        if self.sources.constraints:
            files["constraints.txt"] = _lines(list(self.sources.constraints))
        packages = _new_environment(environment)
        try:
            with contextlib.closing(index), _jail(files, limits, self.fence) as jail:
                tree = Tree(packages, most_bytes=limits.most_bytes, most_files=limits.most_files)
                with tree:
                    status = jail.install(index, tree, printed=out.write, check=self._check)
        except BuildStopped as error:
            return str(error)
        if status:
            return _PIP_FAILED
        out.write(f"\ninstalled {tree.files:,} files of {tree.bytes:,} bytes\n".encode())
        return ""

    def _opened(self, out: BinaryIO) -> Index:
        builder = self.builder
        shown = None if builder.from_source else builder.source_packages
        self.index = Index(
            self.sources, most_bytes=_FETCHED * builder.limits.most_bytes, sources_of=shown, check=self._check,
            note=lambda words: _note(out, words),
        )  # fmt: skip
        return self.index

    def _introduction(self) -> str:
        tier, launcher = self.fence
        fence = f"tier {tier}, by {launcher}" if tier is Tier.STANDARD else f"tier {tier}"
        fence += f" ({_FENCES[tier]})" if tier in _FENCES else ""
        taken = "wheels, and source distributions" if self.builder.from_source else "wheels only"
        more = "" if self.builder.from_source else f" (also from source: {', '.join(self.builder.source_packages)})"
        kept = f"constraints: {'; '.join(self.sources.constraints)}\n" if self.sources.constraints else ""
        return f"jail: {fence}\nnetwork: none but {self.sources.shown}\ntaken: {taken}{more}\n{kept}\n"

    def _check(self) -> None:
        if time.monotonic() - self.begun > self.builder.limits.seconds:
            raise BuildStopped(f"the build took longer than {self.builder.limits.seconds:g} s")
        if self.builder.stopped():
            raise BuildStopped("the build was stopped")

    def _why(self, text: str) -> tuple[str, bool]:
        """Why pip failed, in one readable line; whether that is ours. The index knows what pip was not told."""
        index, found = self.index, reason(text)
        if index is not None and index.failed:
            return index.failed, True
        if found == _TOO_MUCH:
            most = self.builder.limits
            return f"{found}: {most.most_bytes:,} bytes, {most.most_files:,} files, with what is downloaded", False
        for project, count in index.only_sources.items() if index is not None else ():
            spelt = "[-_.]+".join(map(re.escape, project.split("-")))
            if re.search(rf"\b{spelt}\b", found, re.IGNORECASE):
                return f"{found}: the index has no wheel of it, but {count} source distributions, which are not " \
                       "installed; ask for a package or version that has wheels", False  # fmt: skip
        return found, False


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


def _new_environment(environment: Path) -> Path:
    """An environment's folders, as far as a jail needs them; where its packages go, which is not made yet."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    executable = interpreter(None).executable
    for folder in ("bin", f"lib/{version}"):
        (environment / folder).mkdir(parents=True)
    for folder in (environment, *environment.rglob("*")):
        folder.chmod(0o755)
    (environment / "bin" / "python").symlink_to(executable)
    settings = f"home = {os.path.dirname(executable)}\ninclude-system-site-packages = false\n"  # noqa: PTH120
    (environment / "pyvenv.cfg").write_text(settings, encoding="utf-8")
    return environment / "lib" / version / "site-packages"


@contextlib.contextmanager
def _jail(files: dict[str, bytes], limits: BuildLimits, fence: tuple[Tier, str]) -> Iterator[BuildJail]:
    try:
        pip = pip_place()
    except PipMissing as error:
        raise JailError(str(error)) from None
    if os.geteuid() == 0 and (fence[0] in (Tier.LANDLOCK, Tier.NONE) or fence[1] == BWRAP):
        closed = [path for path in (Path(interpreter(None).executable), pip) if not is_open(path)]
        if closed:  # there the jail's user goes by the host's paths
            raise JailError(f"{closed[0]} lies where not every user may read it, as this tier needs when root builds; "
                            "install Python and this program outside closed folders")  # fmt: skip
    jail = BuildJail(files, pip, limits, tier=fence[0], launcher=fence[1])
    try:
        yield jail
    finally:
        jail.close()


def _note(out: BinaryIO, words: str) -> None:
    out.write(f"index: {words}\n".encode())


def _lines(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


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
