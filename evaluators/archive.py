"""Uploads, read strictly: a tar.gz, tar or zip as files in memory, or refused before anything is written.

The one decision: this reader understands plain files and folders, and nothing else, and does not lean on the
interpreter's `tarfile` and `zipfile`, whose leniency differs by patch level. Links, devices, sparse files, encryption,
names that some system reads otherwise, and bytes that another reader would read otherwise are refused, not repaired.
Everything is counted while it streams, so that no bomb is unpacked further than the limits.
"""

from __future__ import annotations

import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

_BLOCK = 512
_CHUNK = 1 << 16
_FREE_RATIO = 1 << 20  # bytes unpacked before the ratio counts: small texts compress well
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))}
_FORBIDDEN = set('\\:*?"<>|')
_NESTED_SUFFIX = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")
_NESTED_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c",
                 b"\x28\xb5\x2f\xfd", b"Rar!\x1a\x07")  # fmt: skip
_PAX_IGNORED = re.compile(r"(?:mtime|atime|ctime|uid|gid|uname|gname|comment|LIBARCHIVE\..+|SCHILY\.(?:xattr|fflags|dev"
                          r"|ino|nlink)(?:\..+)?)")  # fmt: skip
_PAX_LINE = re.compile(rb"(\d{1,8}) ([^=\n]{1,200})=")


class ArchiveRefused(ValueError):
    """The archive is not taken. `code` is a short name for programs; the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"the upload is refused: {message}")
        self.code = code


@dataclass(frozen=True)
class ArchiveLimits:
    """What an upload may be."""

    archive_bytes: int = 16 << 20  # as uploaded
    total_bytes: int = 24 << 20  # unpacked
    file_bytes: int = 16 << 20  # of one file
    files: int = 2_000  # folders included
    ratio: int = 100  # unpacked over packed, counted from the first MiB on
    depth: int = 16  # folders within folders
    path_bytes: int = 1_024
    name_bytes: int = 255
    nested_archives: bool = False  # an archive within the archive; it is never unpacked


@dataclass
class _Tree:
    """What has been accepted so far."""

    limits: ArchiveLimits
    files: dict[str, bytes] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    parents: set[str] = field(default_factory=set)  # folders that files imply
    folded: dict[str, str] = field(default_factory=dict)  # as a file system without case sees it -> as spelt
    total: int = 0
    count: int = 0

    def enter(self, raw: bytes, *, folder: bool) -> str:
        """Check a name and take its place. Returns the path, "" of the root folder itself."""
        self.count += 1
        if self.count > self.limits.files:
            raise ArchiveRefused("count", f"more than {self.limits.files:,} entries")
        path = _path(raw, self.limits, folder=folder)
        if not path:
            return path
        if path in self.files if not folder else path in self.folders:
            raise ArchiveRefused("duplicate", f"{path!r} stands twice")
        if path in self.files or (not folder and path in self.folders | self.parents):
            raise ArchiveRefused("duplicate", f"{path!r} is a file and a folder")
        for parent in PurePosixPath(path).parents:
            name = str(parent)
            if name == ".":
                continue
            if name in self.files:
                raise ArchiveRefused("duplicate", f"{name!r} is a file and a folder")
            self._fold(name)
            self.parents.add(name)
        self._fold(path)
        if folder:
            self.folders.add(path)
        return path

    def _fold(self, path: str) -> None:
        key = unicodedata.normalize("NFKC", path).casefold()
        if self.folded.setdefault(key, path) != path:
            other = self.folded[key]
            raise ArchiveRefused("case", f"{path!r} and {other!r} are one name on systems without case")

    def size(self, size: int, path: str) -> None:
        """Check a size that is promised or reached."""
        if size > self.limits.file_bytes:
            raise ArchiveRefused("size", f"{path!r} is larger than {self.limits.file_bytes:,} bytes")
        if self.total + size > self.limits.total_bytes:
            raise ArchiveRefused("size", f"more than {self.limits.total_bytes:,} bytes unpacked")

    def add(self, path: str, content: bytes) -> None:
        """Keep a file."""
        if not self.limits.nested_archives and _is_archive(path, content):
            raise ArchiveRefused("nested", f"{path!r} is an archive within the archive; unpack it first")
        self.total += len(content)
        self.files[path] = content


def read_archive(data: bytes | Path, limits: ArchiveLimits | None = None) -> dict[str, bytes]:
    """The files, path -> content. Raises `ArchiveRefused`; nothing has been written then, here or ever."""
    limits = limits or ArchiveLimits()
    if isinstance(data, Path):
        if data.stat().st_size > limits.archive_bytes:
            raise _too_large(limits)
        data = data.read_bytes()
    if len(data) > limits.archive_bytes:
        raise _too_large(limits)
    if not data:
        raise ArchiveRefused("empty", "it has no bytes")
    tree = _Tree(limits)
    if data[:2] == b"\x1f\x8b":
        _read_tar(_Source(_gunzip(data, limits)), tree)
    elif data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        _read_zip(data, tree)
    elif len(data) >= _BLOCK and data[257:262] == b"ustar":
        _read_tar(_Source(iter([data])), tree)
    else:
        raise ArchiveRefused("format", "it is neither tar.gz, tar nor zip")
    if not tree.files:
        raise ArchiveRefused("empty", "it has no files")
    return tree.files


def _too_large(limits: ArchiveLimits) -> ArchiveRefused:
    return ArchiveRefused("size", f"it is larger than {limits.archive_bytes:,} bytes")


def _gunzip(data: bytes, limits: ArchiveLimits) -> Iterator[bytes]:
    """The one gzip member, piece by piece; a second one, or bytes after it, are refused."""
    reader = zlib.decompressobj(wbits=31)
    view, at, out = memoryview(data), 0, 0
    while not reader.eof:
        if not reader.unconsumed_tail and at >= len(view):
            raise ArchiveRefused("truncated", "its gzip stream ends too early")
        piece = reader.unconsumed_tail or view[at : (at := at + _CHUNK)]
        try:
            found = reader.decompress(piece, _CHUNK)
        except zlib.error as error:
            raise ArchiveRefused("corrupt", f"its gzip stream is damaged: {error}") from None
        out += len(found)
        if out > max(_FREE_RATIO, limits.ratio * min(at, len(view))):
            raise ArchiveRefused("ratio", f"it unpacks to more than {limits.ratio} times its size")
        if found:
            yield found
    if reader.unused_data or at < len(view):
        raise ArchiveRefused("trailing", "bytes follow its gzip stream")


class _Source:
    """Bytes on demand from an iterator of pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._held, self._at = pieces, b"", 0

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises `ArchiveRefused` where there are fewer."""
        found = self.some(count)
        if len(found) < count:
            raise ArchiveRefused("truncated", "it ends within an entry")
        return found

    def some(self, count: int) -> bytes:
        """Up to `count` bytes, fewer only at the end."""
        parts, missing = [], count
        while missing:
            if self._at == len(self._held):
                self._held, self._at = next(self._pieces, b""), 0
                if not self._held:
                    break
            part = self._held[self._at : self._at + missing]
            self._at += len(part)
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)


def _read_tar(source: _Source, tree: _Tree) -> None:
    """ustar, GNU and pax headers, by hand."""
    long_name: bytes | None = None
    pax: dict[str, bytes] = {}
    while True:
        header = source.take(_BLOCK)
        if not any(header):
            if long_name is not None or pax:
                raise ArchiveRefused("corrupt", "a long name without its entry")
            break
        kind, name, size = _tar_header(header)
        if kind in (b"x", b"g", b"L"):
            content = _tar_extension(source, size)
            if kind == b"L":
                long_name = content.rstrip(b"\0")
            elif kind == b"x":
                pax = _pax(content)
            else:
                _pax(content, only_comment=True)
            continue
        if "size" in pax:
            size = _pax_size(pax["size"])
        name = pax.get("path", long_name if long_name is not None else name)
        long_name, pax = None, {}
        _tar_entry(source, tree, kind, name, size)
    _check_tar_end(source, tree.limits)


def _tar_entry(source: _Source, tree: _Tree, kind: bytes, name: bytes, size: int) -> None:
    if kind not in _TAR_KINDS:
        what = _TAR_REFUSED.get(kind, f"an entry of unknown kind {kind!r}")
        raise ArchiveRefused("kind", f"{_shown(name)} is {what}; only files and folders are taken")
    folder = kind == b"5"
    if folder and size:
        raise ArchiveRefused("corrupt", f"the folder {_shown(name)} has a size")
    path = tree.enter(name, folder=folder)
    if folder:
        return
    if not path:
        raise ArchiveRefused("name", "a file without a name")
    tree.size(size, path)
    content = source.take(size)
    source.take(-size % _BLOCK)
    tree.add(path, content)


_TAR_KINDS = (b"0", b"\0", b"5")
_TAR_REFUSED = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a pipe",
    b"7": "a contiguous file", b"S": "a sparse file", b"K": "a link with a long name", b"V": "a volume label",
    b"M": "a part of another volume", b"D": "a dumped folder", b"N": "a renaming entry", b"A": "an ACL",
}  # fmt: skip


def _tar_header(header: bytes) -> tuple[bytes, bytes, int]:
    """(kind, name, size); the checksum must be right."""
    stored = _octal(header[148:156], "checksum")
    if stored != sum(header) - sum(header[148:156]) + 8 * 0x20:
        raise ArchiveRefused("corrupt", "a tar header's checksum is wrong")
    if header[257:262] != b"ustar":
        raise ArchiveRefused("format", "a tar header is neither ustar, GNU nor pax")
    name, _, rest = header[:100].partition(b"\0")
    if any(rest):
        raise ArchiveRefused("name", f"NUL within the name {_shown(name)}")
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return header[156:157], b"/".join((prefix, name)) if prefix else name, _octal(header[124:136], "size")


def _octal(digits: bytes, what: str) -> int:
    text = digits.strip(b" \0")
    if not re.fullmatch(rb"[0-7]{0,12}", text):
        raise ArchiveRefused("corrupt", f"a tar header's {what} is not octal")
    return int(text or b"0", 8)


def _tar_extension(source: _Source, size: int) -> bytes:
    if size > 1 << 16:
        raise ArchiveRefused("corrupt", f"a tar header extension of {size:,} bytes")
    content = source.take(size)
    source.take(-size % _BLOCK)
    return content


def _pax(content: bytes, *, only_comment: bool = False) -> dict[str, bytes]:
    """What a pax header changes: `path` and `size`; notes are passed over, all else refused."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(content):
        match = _PAX_LINE.match(content, at)
        if match is None:
            raise ArchiveRefused("corrupt", "a pax header is malformed")
        end = at + int(match[1])
        if end <= match.end() or end > len(content) or content[end - 1 : end] != b"\n":
            raise ArchiveRefused("corrupt", "a pax header is malformed")
        key, value = match[2].decode("utf-8", "replace"), content[match.end() : end - 1]
        at = end
        if only_comment and key != "comment":
            raise ArchiveRefused("kind", f"a pax header for all entries that sets {key[:40]!r}")
        if key in found:
            raise ArchiveRefused("corrupt", f"a pax header sets {key!r} twice")
        if key in ("path", "size"):
            found[key] = value
        elif not _PAX_IGNORED.fullmatch(key):
            raise ArchiveRefused("kind", f"a pax header that sets {key[:40]!r}")
    return found


def _pax_size(value: bytes) -> int:
    if not re.fullmatch(rb"\d{1,15}", value):
        raise ArchiveRefused("corrupt", "a pax size is no number")
    return int(value)


def _check_tar_end(source: _Source, limits: ArchiveLimits) -> None:
    """After the end mark come zeroes, no further archive that another reader would read."""
    left = limits.total_bytes
    while piece := source.some(_CHUNK):
        left -= len(piece)
        if any(piece) or left < 0:
            raise ArchiveRefused("trailing", "bytes follow the end of the tar archive")


_END = struct.Struct("<4s4H2LH")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


def _read_zip(data: bytes, tree: _Tree) -> None:
    """Entries of the central directory, each agreeing with its own header, one after another without gaps."""
    count, start, size, end = _zip_end(data)
    at, expected = start, 0
    for _ in range(count):
        if at + _CENTRAL.size > start + size:
            raise ArchiveRefused("truncated", "its directory ends too early")
        fields = _CENTRAL.unpack_from(data, at)
        name = data[at + _CENTRAL.size : at + _CENTRAL.size + fields[10]]
        _check_extra(data[at + _CENTRAL.size + fields[10] :][: fields[11]], name)
        at += _CENTRAL.size + fields[10] + fields[11] + fields[12]
        expected = _zip_entry(data, tree, (fields, name), expected, limit=start)
    if at != start + size or start + size != end:
        raise ArchiveRefused("corrupt", "its directory and its count of entries disagree")
    if expected != start:
        raise ArchiveRefused("trailing", "bytes between its entries and its directory")


def _zip_end(data: bytes) -> tuple[int, int, int, int]:
    """(entries, start and size of the directory, where the end record is); the record must end the file."""
    at = data.rfind(b"PK\x05\x06", max(0, len(data) - 65_535 - _END.size))
    if at < 0 or at + _END.size > len(data):
        raise ArchiveRefused("truncated", "it has no end record")
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(data, at)
    if at + _END.size + comment != len(data):
        raise ArchiveRefused("trailing", "bytes follow its end record")
    if disk or first_disk or here != count or 0xFFFF in (count,) or 0xFFFFFFFF in (size, start):
        raise ArchiveRefused("kind", "it is in several parts or zip64")
    return count, start, size, at


def _zip_entry(data: bytes, tree: _Tree, entry: tuple[tuple[Any, ...], bytes], expected: int, *, limit: int) -> int:
    """Take one entry; returns where the next must begin."""
    fields, name = entry
    mark, made_by, _, flags, method, _, _, crc, packed, size, *_, attributes, offset = fields
    if mark != b"PK\x01\x02":
        raise ArchiveRefused("corrupt", "an entry of its directory is damaged")
    _check_zip_kind(name, made_by, flags, method, attributes)
    if offset != expected or offset + _LOCAL.size > limit:
        raise ArchiveRefused("overlap", f"{_shown(name)} does not begin where the entry before it ends")
    local = _LOCAL.unpack_from(data, offset)
    begin = offset + _LOCAL.size + local[9] + local[10]
    own = data[offset + _LOCAL.size : offset + _LOCAL.size + local[9]]
    _check_extra(data[begin - local[10] : begin], name)
    if local[0] != b"PK\x03\x04" or own != name or local[2] != flags or local[3] != method:
        raise ArchiveRefused("mismatch", f"{_shown(name)} is told otherwise by its own header")
    described = bool(flags & 8)
    if (local[6], local[7], local[8]) != (crc, packed, size) and not (described and not any(local[6:9])):
        raise ArchiveRefused("mismatch", f"{_shown(name)} is told otherwise by its own header")
    folder = name.endswith(b"/")
    path = tree.enter(name, folder=folder)
    if folder and (size or packed > 2):
        raise ArchiveRefused("corrupt", f"the folder {_shown(name)} has a size")
    if begin + packed > limit:
        raise ArchiveRefused("truncated", f"{_shown(name)} ends beyond the entries")
    if not folder:
        tree.size(size, path)
        if size > max(_FREE_RATIO, tree.limits.ratio * packed):
            raise ArchiveRefused("ratio", f"{path!r} unpacks to more than {tree.limits.ratio} times its size")
        tree.add(path, _inflate(data[begin : begin + packed], method, size, crc, path))
    return begin + packed + (_descriptor(data, begin + packed, (crc, packed, size), name) if described else 0)


def _check_extra(extra: bytes, name: bytes) -> None:
    """Extra fields are passed over, but for those that change an entry's name, size or kind."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind in (0x0001, 0x7075, 0x9901):  # zip64, another name, AES
            raise ArchiveRefused("kind", f"{_shown(name)} has the extra field {kind:#06x}")
        at += 4 + size
    if at != len(extra):
        raise ArchiveRefused("corrupt", f"the extra fields of {_shown(name)} are damaged")


def _check_zip_kind(name: bytes, made_by: int, flags: int, method: int, attributes: int) -> None:
    if flags & 0x2041:
        raise ArchiveRefused("kind", f"{_shown(name)} is encrypted")
    if method not in (0, 8):
        raise ArchiveRefused("kind", f"{_shown(name)} is packed by method {method}; 0 and 8 are taken")
    if flags & ~0x080E:
        raise ArchiveRefused("kind", f"{_shown(name)} has flags that are not understood")
    if not flags & 0x800 and not name.isascii():
        raise ArchiveRefused("name", f"{_shown(name)} is not marked as UTF-8")
    mode = (attributes >> 16) & 0o170000 if made_by >> 8 == 3 else 0
    if mode not in (0, 0o100000, 0o040000):
        raise ArchiveRefused("kind", f"{_shown(name)} is a link or a device; only files and folders are taken")


def _inflate(packed: bytes, method: int, size: int, crc: int, path: str) -> bytes:
    if method == 0:
        content = packed
    else:
        reader = zlib.decompressobj(wbits=-15)
        try:
            content = reader.decompress(packed, size + 1)
        except zlib.error as error:
            raise ArchiveRefused("corrupt", f"{path!r} is damaged: {error}") from None
        if not reader.eof or reader.unused_data or reader.unconsumed_tail:
            raise ArchiveRefused("mismatch", f"{path!r} is not of the size that is told")
    if len(content) != size:
        raise ArchiveRefused("mismatch", f"{path!r} is not of the size that is told")
    if zlib.crc32(content) != crc:
        raise ArchiveRefused("corrupt", f"the checksum of {path!r} is wrong")
    return content


def _descriptor(data: bytes, at: int, told: tuple[int, int, int], name: bytes) -> int:
    """Length of the data descriptor after an entry; it must agree with the directory."""
    for mark in (b"PK\x07\x08", b""):
        words = mark + struct.pack("<3L", *told)
        if data[at : at + len(words)] == words:
            return len(words)
    raise ArchiveRefused("mismatch", f"{_shown(name)} is told otherwise by its data descriptor")


def _path(raw: bytes, limits: ArchiveLimits, *, folder: bool) -> str:
    """The path, checked. `./` before it and `/` after a folder are as tar writes them; all else must be plain."""
    if len(raw) > limits.path_bytes:
        raise ArchiveRefused("name", f"a path longer than {limits.path_bytes:,} bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ArchiveRefused("name", f"{_shown(raw)} is not UTF-8") from None
    if text.startswith("/"):
        raise ArchiveRefused("absolute", f"{text[:80]!r} is an absolute path")
    if folder:
        text = text.removesuffix("/")
        if text in (".", ""):
            return ""
    parts = text.removeprefix("./").split("/")
    if len(parts) > limits.depth:
        raise ArchiveRefused("depth", f"a path of {len(parts)} parts; {limits.depth} are allowed")
    for part in parts:
        _check_part(part, text, limits)
    return "/".join(parts)


def _check_part(part: str, text: str, limits: ArchiveLimits) -> None:
    shown = repr(text[:80])
    if part == "..":
        raise ArchiveRefused("traversal", f"{shown} climbs out")
    if part in ("", "."):
        raise ArchiveRefused("name", f"{shown} has an empty part")
    if len(part.encode()) > limits.name_bytes:
        raise ArchiveRefused("name", f"a name longer than {limits.name_bytes} bytes")
    if part != part.strip() or part.endswith("."):
        raise ArchiveRefused("name", f"{shown}: a name begins or ends with a space, or ends with a dot")
    if _FORBIDDEN.intersection(part):
        raise ArchiveRefused("name", f"{shown}: a name has one of {' '.join(sorted(_FORBIDDEN))}")
    if any(unicodedata.category(char)[0] == "C" or unicodedata.category(char) in ("Zl", "Zp") for char in part):
        raise ArchiveRefused("name", f"{shown}: a name has a control, format or unassigned character")
    folded = unicodedata.normalize("NFKC", part)
    if unicodedata.normalize("NFC", part) != part or "/" in folded or folded in (".", "..") or "\\" in folded:
        raise ArchiveRefused("name", f"{shown}: a name that systems spell differently")
    if part.partition(".")[0].strip().casefold() in _RESERVED:
        raise ArchiveRefused("name", f"{shown}: a name that some systems reserve")


def _is_archive(path: str, content: bytes) -> bool:
    return path.casefold().endswith(_NESTED_SUFFIX) or content.startswith(_NESTED_MAGIC) or content[257:262] == b"ustar"


def _shown(raw: bytes) -> str:
    return repr(raw[:80].decode("utf-8", "backslashreplace"))
