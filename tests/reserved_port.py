"""A port of loopback that stays one's own while nobody listens on it: for servers that come up later, or come and go.

A port that was only picked could be given to somebody else before the server has it, or be taken, by who asks whether
the server is up, as its own end of the connection: then it talks to itself.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """Nobody is given the port, and whoever binds it by its number with SO_REUSEADDR, as servers do, may listen."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
