"""Names of uploaded files: what clients call them, and what they are kept as.

A client may call a file whatever can be printed, as with a bucket behind signed URLs (an archive bears the name of its
folder, blanks and all). What is kept has a plain name (`files.safe_name`), in which no disk, URL or shell reads more:
any other character is written as `=` and the hex of its UTF-8 bytes. Answers have the client's name again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from trainer.gateway import uploads
from trainer.gateway.errors import GatewayError
from trainer.gateway.files import safe_name
from trainer.gateway.gateway import Call
from trainer.gateway.store import Resource

_ODD = re.compile(r"[^A-Za-z0-9._@+=/-]|=(?=[0-9A-F]{2})")  # and what would be read as the hex of one
_FIRST = re.compile(r"_?=[0-9A-F]{2}")  # `_` before a first character that is written in hex
_HEX = re.compile(r"(?:=[0-9A-F]{2})+")


def kept(name: str) -> str:
    """The plain name of the client's file `name`. Raises INVALID_ARGUMENT for one that is hidden, or not for a file."""
    if not name.isprintable() or "\\" in name:
        return safe_name(name)
    found = "/".join(map(_part, name.split("/")))
    try:
        return safe_name(found)
    except GatewayError:
        safe_name(name)  # refused as the client wrote it
        raise


def shown(name: str) -> str:
    """What the client calls the file that is kept as `name`."""
    return "/".join(_HEX.sub(_text, _first_shown(part)) for part in name.split("/"))


def declared(call: Call, resource: Resource) -> dict[str, str]:
    """Signed URLs for the files that the body's filenameToSize declares, by the client's names."""
    names = {name: kept(name) for name in call.body["filenameToSize"]}
    sizes = {names[name]: size for name, size in call.body["filenameToSize"].items()}
    urls = uploads.declare(replace(call, body={**call.body, "filenameToSize": sizes}), resource)
    return {name: urls[plain] for name, plain in names.items()}


def given(urls: Mapping[str, str]) -> dict[str, str]:
    """`urls` of kept files, by the client's names."""
    return {shown(name): url for name, url in urls.items()}


def _part(part: str) -> str:
    written = _ODD.sub(lambda match: "".join(f"={byte:02X}" for byte in match[0].encode()), part)
    if _FIRST.match(written):  # a plain name begins with a letter, a digit or `_`
        return f"_{written}" if written[0] == "=" else f"_=5F{written[1:]}"
    return written


def _first_shown(part: str) -> str:
    return part[1:] if part.startswith("_=") and _FIRST.match(part) else part


def _text(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("=", "")).decode()
