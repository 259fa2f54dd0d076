"""Uploads: what clients really send is read, and every hostile archive is refused before anything is written."""

# ruff: noqa: E501 - one hostile archive a line

import gzip
import io
import random
import resource
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from evaluators.archive import ArchiveLimits, ArchiveRefused, read_archive

FILES = {"test_len.py": b"def f(): pass\n", "data/rows.jsonl": b"{}\n" * 100}
Entry = tuple[str, bytes]


def tar(*entries: Entry | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT, pack: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return gzip.compress(buffer.getvalue(), mtime=0) if pack else buffer.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def pax(name: str, **headers: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.pax_headers = headers
    return info


def packed(*entries: Entry, method: int = zipfile.ZIP_DEFLATED, mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = method, mode << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def header(name: bytes, size: int, *, kind: bytes = b"0", magic: bytes = b"ustar\x0000") -> bytes:
    """A tar header by hand, with a right checksum."""
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")
    block[100:108], block[124:136] = b"0000644\0", b"%011o\0" % size
    block[156:157], block[257:265] = kind, magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def by_hand(*blocks: bytes) -> bytes:
    return gzip.compress(b"".join(blocks) + bytes(1024), mtime=0)


def pax_bytes(*records: bytes) -> bytes:
    content = b"".join(records)
    return header(b"pax", len(content), kind=b"x") + content.ljust(-(-len(content) // 512) * 512, b"\0")


def damaged_zip(change: Callable[[bytearray], object], *entries: Entry) -> bytes:
    data = bytearray(packed(*(entries or (("a.py", b"x" * 100),))))
    change(data)
    return bytes(data)


def at(mark: bytes, offset: int, value: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        place = data.index(mark) + offset
        data[place : place + len(value)] = value

    return change


def overlapping() -> bytes:
    """Two directory entries that point at one local entry: the way of bombs that need no recursion."""
    data = packed(("a.py", b"x" * 5000))
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    central = data[start:end]
    other = central.replace(b"a.py", b"b.py")
    record = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(central) * 2, start, 0)
    return data[:start] + central + other + record


@cache
def gzip_bomb() -> bytes:
    """128 MiB of zeroes in 128 KiB, said to be 1 GiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = bytes(1 << 20)
    head = header(b"a", 1 << 30)
    return packer.compress(head) + b"".join(packer.compress(piece) for _ in range(1 << 7)) + packer.flush()


def noise(seed: int) -> bytes:
    """6 MiB that do not compress; always the same, for one file in 65,536 that chance made would begin as an archive."""
    return random.Random(seed).randbytes(6 << 20)


@cache
def many_files() -> bytes:
    return by_hand(*(header(b"f%d" % number, 0) for number in range(10_000)))


def first_tar() -> bytes:
    return tar(("a.py", b"1"))


def _with_prefix(name: bytes, prefix: bytes) -> bytes:
    block = bytearray(header(name, 0))
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _with_size(size: bytes) -> bytes:
    block = bytearray(header(b"a", 0))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _with_extra(extra: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("a.py")
        info.extra = extra
        archive.writestr(info, b"1")
    return buffer.getvalue()


def _with_gap() -> bytes:
    """Ten bytes between the entries and the directory are told of by nobody."""
    data = bytearray(packed(("a.py", b"1"), ("b.py", b"2")))
    second = data.index(b"PK\x03\x04", 4)
    data[second:second] = b"0123456789"
    start = struct.unpack_from("<L", data, data.index(b"PK\x05\x06") + 16)[0]
    struct.pack_into("<L", data, data.index(b"PK\x05\x06") + 16, start + 10)
    place = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    struct.pack_into("<L", data, place + 42, second + 10)
    return bytes(data)


_CLIMB = "../../etc/cron.d/x"
HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "tar: climbs out": ("traversal", lambda: tar((_CLIMB, b"x"))),
    "tar: climbs out in the midst": ("traversal", lambda: tar(("a/../../b", b"x"))),
    "tar: climbs by ./..": ("traversal", lambda: tar(("./../b", b"x"))),
    "tar: is ..": ("traversal", lambda: tar(special("..", tarfile.DIRTYPE))),
    "tar: absolute": ("absolute", lambda: by_hand(header(b"/etc/passwd", 0))),
    "tar: two slashes": ("absolute", lambda: by_hand(header(b"//etc/passwd", 0))),
    "tar: climbs by a pax path": ("traversal", lambda: by_hand(pax_bytes(b"23 path=../../etc/pass\n"), header(b"a", 0))),
    "tar: absolute by a pax path": ("absolute", lambda: by_hand(pax_bytes(b"15 path=/etc/x\n"), header(b"a", 0))),
    "tar: absolute by a GNU long name": (
        "absolute",
        lambda: by_hand(header(b"././@LongLink", 7, kind=b"L", magic=b"ustar  \0") + b"/etc/x\0".ljust(512, b"\0"), header(b"a", 0)),
    ),
    "tar: climbs by the prefix": (
        "traversal",
        lambda: by_hand(_with_prefix(b"b", b"..")),
    ),
    "tar: symbolic link": ("kind", lambda: tar(special("a", tarfile.SYMTYPE, "/etc/passwd"))),
    "tar: harmless symbolic link": ("kind", lambda: tar(("b", b"1"), special("a", tarfile.SYMTYPE, "b"))),
    "tar: hard link": ("kind", lambda: tar(special("a", tarfile.LNKTYPE, "/etc/shadow"))),
    "tar: character device": ("kind", lambda: tar(special("a", tarfile.CHRTYPE))),
    "tar: block device": ("kind", lambda: tar(special("a", tarfile.BLKTYPE))),
    "tar: pipe": ("kind", lambda: tar(special("a", tarfile.FIFOTYPE))),
    "tar: contiguous file": ("kind", lambda: tar(special("a", tarfile.CONTTYPE))),
    "tar: GNU sparse file": ("kind", lambda: tar(special("a", tarfile.GNUTYPE_SPARSE), form=tarfile.GNU_FORMAT)),
    "tar: pax sparse file": ("kind", lambda: tar(pax("a", **{"GNU.sparse.major": "1"}))),
    "tar: pax link path": ("kind", lambda: tar(pax("a", linkpath="/etc/passwd"))),
    "tar: pax character set": ("kind", lambda: tar(pax("a", hdrcharset="BINARY"))),
    "tar: pax header of all": ("kind", lambda: by_hand(header(b"g", 11, kind=b"g") + b"11 path=/x\n".ljust(512, b"\0"), header(b"a", 0))),
    "tar: unknown kind": ("kind", lambda: by_hand(header(b"a", 0, kind=b"Z"))),
    "tar: NUL in a pax path": ("name", lambda: by_hand(pax_bytes(b"12 path=a\x00b\n"), header(b"a", 0))),
    "tar: NUL within a name": ("name", lambda: by_hand(header(b"a\0b", 0))),
    "tar: control character": ("name", lambda: tar(("a\nb", b"x"))),
    "tar: escape sequence": ("name", lambda: tar(("a\x1b[2Jb", b"x"))),
    "tar: right-to-left mark": ("name", lambda: tar(("a\u202egnp.py", b"x"))),
    "tar: zero-width space": ("name", lambda: tar(("a\u200b.py", b"x"))),
    "tar: decomposed letters": ("name", lambda: tar(("e\u0301.py", b"x"))),
    "tar: full-width dots": ("name", lambda: tar(("\uff0e\uff0e/a", b"x"))),
    "tar: full-width slash": ("name", lambda: tar(("..\uff0fa", b"x"))),
    "tar: not UTF-8": ("name", lambda: by_hand(header(b"\xff\xfe.py", 0))),
    "tar: longer than 255": ("name", lambda: tar(("a" * 256, b"x"))),
    "tar: longer than 255 in bytes": ("name", lambda: tar(("ü" * 130, b"x"))),
    "tar: trailing dot": ("name", lambda: tar(("a.", b"x"))),
    "tar: trailing space": ("name", lambda: tar(("a ", b"x"))),
    "tar: leading space": ("name", lambda: tar((" a", b"x"))),
    "tar: backslash": ("name", lambda: tar(("..\\..\\a", b"x"))),
    "tar: drive": ("name", lambda: tar(("C:a", b"x"))),
    "tar: reserved name": ("name", lambda: tar(("nul.txt", b"x"))),
    "tar: empty part": ("name", lambda: tar(("a//b", b"x"))),
    "tar: twice": ("duplicate", lambda: tar(("a", b"1"), ("a", b"2"))),
    "tar: twice by ./": ("duplicate", lambda: tar(("a", b"1"), ("./a", b"2"))),
    "tar: file and folder": ("duplicate", lambda: tar(("a", b"1"), ("a/b", b"2"))),
    "tar: folder and file": ("duplicate", lambda: tar(("a/b", b"1"), ("a", b"2"))),
    "tar: case": ("case", lambda: tar(("Main.py", b"1"), ("main.py", b"2"))),
    "tar: case of a folder": ("case", lambda: tar(("A/x.py", b"1"), ("a/y.py", b"2"))),
    "tar: sharp s": ("case", lambda: tar(("stra\u00dfe", b"1"), ("strasse", b"2"))),
    "tar: ligature": ("case", lambda: tar(("\ufb01le", b"1"), ("file", b"2"))),
    "tar: truncated gzip": ("truncated", lambda: first_tar()[:-20]),
    "tar: truncated tar": ("truncated", lambda: gzip.compress(tar(("a", b"x" * 2000), pack=False)[:700])),
    "tar: no end": ("truncated", lambda: gzip.compress(tar(("a", b"x"), pack=False)[:1024])),
    "tar: two gzip members": ("trailing", lambda: first_tar() + first_tar()),
    "tar: bytes after gzip": ("trailing", lambda: first_tar() + b"#!/bin/sh\n"),
    "tar: two tars in one": ("trailing", lambda: gzip.compress(tar(("a", b"1"), pack=False) + tar(("b", b"2"), pack=False))),
    "tar: wrong checksum": ("corrupt", lambda: gzip.compress(header(b"a", 0)[:-1] + b"x" + bytes(1024))),
    "tar: negative size": ("corrupt", lambda: by_hand(_with_size(b"\xff" * 12))),
    "tar: base-256 size": ("corrupt", lambda: by_hand(_with_size(b"\x80" + bytes(7) + b"\x01\0\0\0"))),
    "tar: pax size is no number": ("corrupt", lambda: by_hand(pax_bytes(b"11 size=-5\n"), header(b"a", 0))),
    "tar: pax record too long": ("corrupt", lambda: by_hand(pax_bytes(b"99 path=a\n"), header(b"a", 0))),
    "tar: pax path twice": ("corrupt", lambda: by_hand(pax_bytes(b"10 path=a\n", b"10 path=b\n"), header(b"a", 0))),
    "tar: old format": ("format", lambda: gzip.compress(header(b"a", 0, magic=bytes(8)) + bytes(1024))),
    "tar: damaged gzip": ("corrupt", lambda: first_tar()[:30] + b"\xff\xff\xff\xff" + first_tar()[34:]),
    "tar: bomb": ("size", gzip_bomb),
    "tar: bomb in a header's gap": ("ratio", lambda: gzip.compress(header(b"a", 0) + bytes(20 << 20), 9)),
    "tar: many files": ("count", many_files),
    "tar: one file too large": ("size", lambda: by_hand(header(b"a", 17 << 20))),
    "tar: too large together": ("size", lambda: tar(*((f"f{n}", noise(n)) for n in range(2)), ("z", bytes(13 << 20)))),
    "tar: deep": ("depth", lambda: tar(("a/" * 50 + "b", b"x"))),
    "tar: a tar.gz within": ("nested", lambda: tar(("inner.dat", first_tar()))),
    "tar: a zip within": ("nested", lambda: tar(("inner.zip", packed(("a", b"1"))))),
    "tar: empty": ("empty", tar),
    "tar: folders only": ("empty", lambda: tar(special("a", tarfile.DIRTYPE))),
    "zip: climbs out": ("traversal", lambda: packed((_CLIMB, b"x"))),
    "zip: absolute": ("absolute", lambda: packed(("/etc/passwd", b"x"))),
    "zip: symbolic link": ("kind", lambda: packed(("a", b"/etc/passwd"), mode=0o120777)),
    "zip: device": ("kind", lambda: packed(("a", b""), mode=0o020666)),
    "zip: encrypted": ("kind", lambda: damaged_zip(at(b"PK\x01\x02", 8, b"\x01\x00"))),
    "zip: another method": ("kind", lambda: packed(("a", b"x" * 50), method=zipfile.ZIP_BZIP2)),
    "zip: backslash": ("name", lambda: damaged_zip(lambda d: d.__setitem__(slice(None), d.replace(b"a.py", b"a\\py")))),
    "zip: twice": ("duplicate", lambda: damaged_zip(lambda d: d.__setitem__(slice(None), d.replace(b"b.py", b"a.py")), ("a.py", b"1"), ("b.py", b"2"))),
    "zip: name told otherwise": ("mismatch", lambda: damaged_zip(at(b"PK\x03\x04", 30, b"b"))),
    "zip: size told otherwise": ("mismatch", lambda: damaged_zip(at(b"PK\x01\x02", 24, b"\x05"))),
    "zip: wrong checksum": ("corrupt", lambda: damaged_zip(lambda d: (at(b"PK\x01\x02", 16, b"1234")(d), at(b"PK\x03\x04", 14, b"1234")(d)))),
    "zip: overlapping entries": ("overlap", overlapping),
    "zip: bomb": ("ratio", lambda: packed(("a", bytes(15 << 20)))),
    "zip: unmarked name": ("name", lambda: damaged_zip(lambda d: d.__setitem__(slice(None), d.replace(b"a.py", b"\xfc.py")))),
    "zip: Unicode path field": ("kind", lambda: _with_extra(struct.pack("<2H", 0x7075, 4) + b"evil")),
    "zip: bytes before": ("format", lambda: b"#!/bin/sh\n" + packed(("a", b"1"))),
    "zip: bytes after": ("trailing", lambda: packed(("a", b"1")) + b"tail"),
    "zip: gap between entries": ("overlap", _with_gap),
    "zip: cut off": ("truncated", lambda: packed(("a", b"1" * 999))[:-10]),
    "zip: several parts": ("kind", lambda: damaged_zip(at(b"PK\x05\x06", 4, b"\x01"))),
    "zip: many files": ("count", lambda: packed(*((f"f{n}", b"") for n in range(2_001)), method=zipfile.ZIP_STORED)),
    "zip: zip within": ("nested", lambda: packed(("inner", packed(("a", b"1"))))),
    "neither": ("format", lambda: b"\x00\x01\x02" * 1000),
    "seven zip": ("format", lambda: b"7z\xbc\xaf\x27\x1c" + bytes(1000)),
    "nothing": ("empty", lambda: b""),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_by_its_code(name: str) -> None:
    code, make = HOSTILE[name]
    with pytest.raises(ArchiveRefused) as refused:
        read_archive(make())
    assert refused.value.code == code, str(refused.value)
    assert str(refused.value).startswith("the upload is refused: ")
    assert str(refused.value).isprintable()


def test_there_are_at_least_forty_hostile_archives() -> None:
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize(
    "name", ["tar: bomb", "tar: many files", "tar: bomb in a header's gap", "zip: bomb", "tar: too large together"]
)
def test_bombs_cost_little(name: str) -> None:
    data = HOSTILE[name][1]()
    begun = time.process_time()
    with pytest.raises(ArchiveRefused):
        read_archive(data)
    assert time.process_time() - begun <= 2
    tracemalloc.start()
    with pytest.raises(ArchiveRefused):
        read_archive(data)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most <= 64 << 20


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tars_of_every_writer_are_read(form: int) -> None:
    long = "x" * 90 + "/" + "y" * 60 + ".py"
    folder = special("data", tarfile.DIRTYPE)
    data = tar(folder, *FILES.items(), (long, b"1"), ("./z.py", b"2"), form=form)
    assert read_archive(data) == {**FILES, long: b"1", "z.py": b"2"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_are_read(method: int) -> None:
    assert read_archive(packed(("data/", b""), *FILES.items(), method=method)) == FILES


def test_a_streamed_zip_with_descriptors_is_read() -> None:
    class Pipe(io.RawIOBase):
        written = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.written += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.py", b"x" * 1000)
    assert read_archive(pipe.written) == {"a.py": b"x" * 1000}


def test_a_file_on_disk_is_read_and_a_large_one_is_not(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(tar(*FILES.items()))
    with large.open("wb") as file:
        file.truncate(1 << 30)
    assert read_archive(small) == FILES
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArchiveRefused, match="larger than 16,777,216 bytes"):
        read_archive(large)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_an_inner_archive_may_be_allowed_and_stays_packed() -> None:
    inner = first_tar()
    assert read_archive(tar(("data.bin", inner)), ArchiveLimits(nested_archives=True)) == {"data.bin": inner}
