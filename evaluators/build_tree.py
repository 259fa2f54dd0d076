"""What a build installed, as it comes out of the jail: written by the host, file by file, into a folder of its own.

The one decision: only plain files with plain relative paths, each made anew (`O_EXCL`) below folders that this made; no
link is ever made, so none can be followed. Owner, modes and times are ours, but for a time within 1970 to 2106, by
which byte code is told to be current, and the right to execute.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from types import TracebackType
from typing import Self

from evaluators.sandbox.build_jail import BuildStopped

_OPEN, _READABLE = 0o755, 0o644  # jails have users of their own
_MOST_PATH, _MOST_NAME, _MOST_DEPTH = 1024, 255, 32


class Tree:
    """Takes files into `top`, which must be empty. A context manager."""

    def __init__(self, top: Path, *, most_bytes: int, most_files: int) -> None:
        """Raises `FileExistsError` where `top` is there already."""
        top.mkdir(mode=_OPEN)
        self._top = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._most_bytes, self._most_files = most_bytes, most_files
        self._folders: set[str] = set()
        self._file: int | None = None
        self._path, self._left, self._modified = "", 0, 0
        self.files = self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
        os.close(self._top)

    def begin(self, path: bytes, size: int, modified: int, executable: bool) -> None:
        """The next file. Raises `BuildStopped` where it is refused."""
        self._finish()
        text = _checked(path)
        self.files += 1
        self.bytes += size
        if self.files > self._most_files:
            raise BuildStopped(f"the packages have more than {self._most_files:,} files")
        if self.bytes > self._most_bytes:
            raise BuildStopped(f"the packages take more than {self._most_bytes:,} bytes")
        self._folder_of(text)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.open(text, flags, _OPEN if executable else _READABLE, dir_fd=self._top)
        except (FileExistsError, NotADirectoryError):
            raise BuildStopped(f"the packages hold {text[:200]!r} twice, or as a file and a folder") from None
        os.fchmod(self._file, _OPEN if executable else _READABLE)
        self._path, self._left, self._modified = text, size, modified

    def add(self, content: bytes) -> None:
        """More of the file. Raises `BuildStopped` where it grows beyond what was told."""
        self._left -= len(content)
        if self._file is None or self._left < 0:
            raise BuildStopped(f"the packages' file {self._path[:200]!r} is larger than its size")
        view = memoryview(content)
        while view:
            view = view[os.write(self._file, view) :]

    def end(self) -> None:
        """That was the last one."""
        self._finish()

    def _finish(self) -> None:
        if self._file is None:
            return
        if self._left:
            raise BuildStopped(f"the packages' file {self._path[:200]!r} is smaller than its size")
        os.utime(self._file, (self._modified, self._modified))
        os.close(self._file)
        self._file = None

    def _folder_of(self, path: str) -> None:
        parts = path.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            folder = "/".join(parts[:count])
            if folder in self._folders:
                continue
            try:
                os.mkdir(folder, _OPEN, dir_fd=self._top)
            except (FileExistsError, NotADirectoryError):
                raise BuildStopped(f"the packages hold {folder[:200]!r} as a file and a folder") from None
            os.chmod(folder, _OPEN, dir_fd=self._top)
            self._folders.add(folder)


def _checked(path: bytes) -> str:
    """The path as text. Raises `BuildStopped` for one that is not plain, relative and short."""
    shown = repr(path[:200].decode("utf-8", "backslashreplace"))
    try:
        text = path.decode("utf-8")
    except UnicodeDecodeError:
        raise BuildStopped(f"the packages' file name {shown} is not UTF-8") from None
    parts = text.split("/")
    if {"", ".", ".."} & set(parts):
        raise BuildStopped(f"the packages' file name {shown} is not a plain relative path")
    if len(path) > _MOST_PATH or len(parts) > _MOST_DEPTH or any(len(one.encode()) > _MOST_NAME for one in parts):
        raise BuildStopped(f"the packages' file name {shown} is too long or too deep")
    if any(unicodedata.category(char) == "Cc" for char in text):
        raise BuildStopped(f"the packages' file name {shown} has control characters")
    return text
