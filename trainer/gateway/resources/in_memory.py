"""Pages of lists that are not records: the same parameters as everywhere, on what is already in memory.

A token is the key of the last item shown, so a list that changes meanwhile neither repeats nor skips what stays. A
filter or an order makes records of the items, for that one answer, so that it means what it means in other lists.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any

from trainer.gateway.errors import invalid
from trainer.gateway.gateway import Call
from trainer.gateway.listing import listed, masked, page_size
from trainer.gateway.standard import read_mask
from trainer.gateway.store import Resource

Item = dict[str, Any]


def page(items: Sequence[Item], call: Call, *, schema: str, key: Callable[[Item], str], name: str) -> dict[str, Any]:
    """The page of `items` (of `schema`; ordered by the unique `key`) that the call's query asks for, below `name`.

    Raises INVALID_ARGUMENT naming the parameter.
    """
    mask = read_mask(call, schema)
    if call.query.get("filter") or call.query.get("orderBy"):
        return _searched(items, call, schema=schema, key=key, name=name)
    token, size = call.query.get("pageToken", ""), page_size(call.query)
    after = _opened(token, name) if token else ""
    rest = sorted((item for item in items if key(item) > after), key=key)
    more = len(rest) > size
    return {
        name: [masked(item, mask) for item in rest[:size]],
        "nextPageToken": _token(name, key(rest[size - 1])) if more else "",
        "totalSize": len(items),
    }


def _searched(
    items: Sequence[Item], call: Call, *, schema: str, key: Callable[[Item], str], name: str
) -> dict[str, Any]:
    whose = f"@{' '.join(call.params.values())}"  # no name has a blank: a token is good for this list only
    by_key = {key(item): item for item in items}
    records = [
        Resource(
            name=one, collection=name, parent=whose, id=one, body=item,
            create_time=item.get("createTime", ""), update_time=item.get("updateTime", ""),
        )
        for one, item in by_key.items()
    ]  # fmt: skip
    found = listed(
        call.gateway, schema, collection=name, parent=whose, query=call.query, default_order="name", records=records
    )
    mask = call.query.get("readMask", "")
    return {
        name: [masked(by_key[one.name], mask) for one in found.resources],
        "nextPageToken": found.next_page_token,
        "totalSize": found.total,
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
