"""Pages of lists that are not records: the same parameters as everywhere, on what is already in memory.

A token is the key of the last item shown, so a list that changes meanwhile neither repeats nor skips what stays.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.gateway.errors import invalid
from trainer.gateway.listing import masked, page_size

Item = dict[str, Any]


def page(items: Sequence[Item], query: Mapping[str, Any], *, key: Callable[[Item], str], name: str) -> dict[str, Any]:
    """The page of `items` (sorted here by `key`) that `query` asks for, under `name`.

    Raises INVALID_ARGUMENT for a token that is none, and for filters and orders, which such a list does not have.
    """
    for word in ("filter", "orderBy"):
        if query.get(word):
            raise invalid(f"{word}: {name} are listed in one order and without a filter; leave it out", field=word)
    token, size = query.get("pageToken", ""), page_size(query)
    after = _opened(token) if token else ""
    rest = sorted((item for item in items if key(item) > after), key=key)
    more = len(rest) > size
    return {
        name: [masked(item, query.get("readMask", "")) for item in rest[:size]],
        "nextPageToken": base64.urlsafe_b64encode(key(rest[size - 1]).encode()).decode() if more else "",
        "totalSize": len(items),
    }


def _opened(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error) as error:
        raise invalid(
            "pageToken: not a token of this gateway; pass nextPageToken as it was", field="pageToken"
        ) from error
