"""requirements.txt, read strictly: names and versions of packages, and nothing that brings code from elsewhere.

Refused by name: editable installs, other files, URLs, paths, version control, other indexes, and every option but
`--hash`. Whoever may add packages must not thereby choose where they come from.
"""

from __future__ import annotations

import re

MAX_BYTES = 64 << 10
MAX_LINES = 500
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?P<extras>\[[A-Za-z0-9._,\s-]*\])?"
    r"\s*(?P<versions>\(?\s*(?:(?:===|==|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9.*+!_-]+\s*,?\s*)*\)?)"
    r"\s*(?:;(?P<marker>[^#]*))?"
)
_HASH = re.compile(r"\s+--hash=(sha256|sha384|sha512):[0-9a-f]+")
_MARKER = re.compile(r"[\w\s.'\"<>=!~()+-]*")
_OPTIONS = {
    "-e": "an editable install", "--editable": "an editable install", "-r": "another requirements file",
    "--requirement": "another requirements file", "-c": "a constraints file", "--constraint": "a constraints file",
    "-i": "another index", "--index-url": "another index", "--extra-index-url": "another index",
    "--no-index": "an index setting", "-f": "another place to look", "--find-links": "another place to look",
    "--trusted-host": "a host without certificate", "--no-binary": "a build from source",
    "--pre": "pre-releases for all packages",
}  # fmt: skip


class RequirementRefused(ValueError):
    """A line is not taken; the message has its number, the line and why."""


def read_requirements(text: str) -> list[str]:
    """The requirements, one a package, as written but for comments. Raises `RequirementRefused`."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise RequirementRefused(f"requirements.txt is longer than {MAX_BYTES:,} bytes")
    lines = text.removeprefix("\ufeff").replace("\\\r\n", " ").replace("\\\n", " ").splitlines()
    if len(lines) > MAX_LINES:
        raise RequirementRefused(f"requirements.txt has more than {MAX_LINES} lines")
    found = [_line(number, line) for number, line in enumerate(lines, 1)]
    return [line for line in found if line]


def _line(number: int, raw: str) -> str:
    line = re.sub(r"(^|\s)#.*$", "", raw).strip()
    if not line:
        return ""
    _refuse_sources(number, line)
    bare = _HASH.sub("", line).strip()
    if re.search(r"\s-", bare):
        raise _refused(number, line, "an option is not allowed; only packages of the configured index are")
    match = _REQUIREMENT.fullmatch(bare)
    if match is None or not _MARKER.fullmatch(match["marker"] or ""):
        raise _refused(number, line, "it is no requirement of the form name[extra]>=1.0; marker")
    return line


def _refuse_sources(number: int, line: str) -> None:
    word = re.split(r"[\s=]", line, maxsplit=1)[0]
    if word.startswith("-"):
        short = next((one for one in _OPTIONS if not one.startswith("--") and word.startswith(one)), word)
        what = _OPTIONS.get(word) or (_OPTIONS.get(short) if not word.startswith("--") else None) or "an option"
        raise _refused(number, line, f"{what} is not allowed; only packages of the configured index are")
    if re.search(r"\b(git|hg|svn|bzr)\+", line):
        raise _refused(number, line, "version control is not allowed; only packages of the configured index are")
    if "://" in line or re.match(r"[^;\[]*?@", line):
        raise _refused(number, line, "a URL is not allowed; only packages of the configured index are")
    if re.match(r"[./~\\]|[A-Za-z]:[\\/]", line) or re.search(r"\.(whl|tar\.gz|zip|tar\.bz2)\b", line) or "/" in word:
        raise _refused(number, line, "a path is not allowed; only packages of the configured index are")


def _refused(number: int, line: str, why: str) -> RequirementRefused:
    return RequirementRefused(f"requirements.txt line {number}: {line[:120]!r}: {why}")
