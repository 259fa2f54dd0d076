"""Pages of lists that are not records: the same parameters as everywhere, on what is already in memory.

A token is the key of the last item shown, so a list that changes meanwhile neither repeats nor skips what stays.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any

from trainer.gateway.errors import invalid
from trainer.gateway.gateway import Call
from trainer.gateway.listing import masked, page_size
from trainer.gateway.standard import read_mask

Item = dict[str, Any]


def page(
    items: Sequence[Item],
    call: Call,
    *,
    schema: str,
    key: Callable[[Item], str],
    name: str,
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """The page of `items` (of `schema`; sorted here by `key`) that the call's query asks for, under `name`.

    without: parameters that the caller has seen to.
    Raises INVALID_ARGUMENT for a token that is none, and for filters and orders, which such a list does not have.
    """
    query = {word: value for word, value in call.query.items() if word not in without}
    for word in ("filter", "orderBy"):
        if query.get(word):
            raise invalid(f"{word}: {name} are listed in one order and without a filter; leave it out", field=word)
    mask = read_mask(call, schema)
    token, size = query.get("pageToken", ""), page_size(query)
    after = _opened(token, name) if token else ""
    rest = sorted((item for item in items if key(item) > after), key=key)
    more = len(rest) > size
    return {
        name: [masked(item, mask) for item in rest[:size]],
        "nextPageToken": _token(name, key(rest[size - 1])) if more else "",
        "totalSize": len(items),
    }


def _token(name: str, last: str) -> str:
    return base64.urlsafe_b64encode(f"{name} {last}".encode()).decode()


def _opened(token: str, name: str) -> str:
    try:
        made_for, _, last = base64.b64decode(token, altchars=b"-_", validate=True).decode().partition(" ")
    except (ValueError, binascii.Error) as error:
        raise invalid(
            "pageToken: not a token of this gateway; pass nextPageToken as it was", field="pageToken"
        ) from error
    if made_for != name:
        raise invalid("pageToken: belongs to another list; start again without it", field="pageToken")
    return last
