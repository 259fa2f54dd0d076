"""Where packages may come from: what this machine's pip is configured for, read without running pip.

The one decision: only what says where packages are and how to get there is taken over (indexes, folders of wheels,
certificates, a proxy, constraints); every other setting of pip's is left alone. Files and order are pip's own: the
machine's, the user's, the environment's (`sys.prefix`), PIP_CONFIG_FILE, then PIP_* variables; `[install]` after
`[global]`.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from evaluators.installed_pip import PipMissing, default_index
from evaluators.requirements import RequirementRefused, read_requirements

_SECTIONS = ("global", "install")
_SCHEMES = ("https", "http", "file")
_MOST_BYTES = 1 << 20  # of a file of settings or constraints


class SourcesRefused(ValueError):
    """pip is configured for something that a build cannot use; the message names the setting."""


@dataclass(frozen=True)
class Sources:
    """indexes: base URLs of simple indexes. links: folders, or pages, that list packages. constraints: requirement
    lines. trusted: hosts whose certificate is not checked. proxy: URL, None = as the environment says."""

    indexes: tuple[str, ...]
    links: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    trusted: frozenset[str] = frozenset()
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """What of it decides which packages are installed; no credentials."""
        return (*map(without_credentials, (*self.indexes, "", *self.links)), "", *sorted(self.constraints))

    @property
    def shown(self) -> str:
        """In words, for a build log; no credentials."""
        return ", ".join(map(without_credentials, (*self.indexes, *self.links))) or "none"


def read_sources(index_url: str | None = None, *, environment: Mapping[str, str] | None = None) -> Sources:
    """What pip is configured for; with `index_url`, that index alone. Raises `SourcesRefused`."""
    environment = os.environ if environment is None else environment
    settings: dict[str, str] = {}
    for path in _files(environment):
        settings |= _read(path)
    settings |= {key[4:].lower().replace("_", "-"): value for key, value in environment.items()
                 if key.startswith("PIP_") and value}  # fmt: skip
    more, links = settings.get("extra-index-url", "").split(), settings.get("find-links", "").split()
    if index_url:
        indexes, links = [index_url], []
    elif settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        indexes = []
    else:
        indexes = [settings.get("index-url") or _default_index(), *more]
    return Sources(
        tuple(dict.fromkeys(_url(one, "index").rstrip("/") for one in indexes)),
        tuple(dict.fromkeys(_url(one, "find-links") for one in links)),
        _constraints(settings.get("constraint", "").split()),
        frozenset(settings.get("trusted-host", "").split()),
        settings.get("cert") or environment.get("REQUESTS_CA_BUNDLE") or environment.get("CURL_CA_BUNDLE") or None,
        settings.get("client-cert") or None,
        settings.get("proxy") or None,
    )


def without_credentials(url: str) -> str:
    """The URL, without a user and password that stand in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _default_index() -> str:
    try:
        return default_index()
    except PipMissing as error:
        raise SourcesRefused(str(error)) from None


def _files(environment: Mapping[str, str]) -> list[Path]:
    own = environment.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return []
    folders = (environment.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    found = [Path(folder, "pip/pip.conf") for folder in folders if folder] + [Path("/etc/pip.conf")]
    home = environment.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - pathlib's raises for a user without one
    if home.startswith("/") and not (own and Path(own).exists()):
        more = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
        found += [Path(home, ".pip/pip.conf"), Path(more, "pip/pip.conf")]
    found.append(Path(sys.prefix, "pip.conf"))
    return [*found, Path(own)] if own else found


def _read(path: Path) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(_text(path))
    except FileNotFoundError:
        return {}
    except PermissionError:
        return {}  # as for pip: what this user may not read does not concern them
    except (OSError, configparser.Error, UnicodeDecodeError) as error:
        raise SourcesRefused(f"pip's settings in {path} cannot be read: {error}") from None
    found: dict[str, str] = {}
    for section in _SECTIONS:
        if parser.has_section(section):
            pairs = parser.items(section)
            found |= {key.lower().removeprefix("--").replace("_", "-"): value for key, value in pairs if value}
    return found


def _text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise SourcesRefused(f"{path} is longer than {_MOST_BYTES:,} bytes")
    return content.decode("utf-8")


def _url(word: str, setting: str) -> str:
    """As a URL; a folder or file of this machine becomes file:."""
    if "://" not in word and not word.startswith("file:"):
        return Path(word).expanduser().absolute().as_uri()
    if urlsplit(word).scheme not in _SCHEMES:
        raise SourcesRefused(f"pip's {setting} {without_credentials(word)!r}: only {', '.join(_SCHEMES)} are taken")
    return word


def _constraints(paths: list[str]) -> tuple[str, ...]:
    found: list[str] = []
    for path in paths:
        try:
            found += read_requirements(_text(Path(path.removeprefix("file://")).expanduser()))
        except (OSError, UnicodeDecodeError, RequirementRefused) as error:
            raise SourcesRefused(f"pip's constraint {path!r} cannot be used: {error}") from None
    return tuple(found)
