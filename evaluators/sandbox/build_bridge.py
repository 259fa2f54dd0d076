"""In a build's jail, for every Python that pip starts: connections go to the jail's first process, there is no network.

Put there as `sitecustomize.py`. A jail has no sockets but pairs: `connect` makes a pair and hands the far end to the
first process over an inherited channel (`build_supervisor.py`), whatever the address. This is a convenience for pip, no
fence: the fence is that nothing else leads out.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from typing import Any

CHANNEL_VARIABLE = "PACKAGE_INDEX_CHANNEL"
_PORT = 80  # of the index's address in a jail; whatever else is asked for is not there
_Socket = socket.socket


class _Connection(_Socket):
    """A stream socket whose far end is in the jail's first process once it is connected."""

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        self._far: _Socket | None = None
        if fileno is None and family in (-1, socket.AF_INET):
            near, self._far = socket.socketpair()
            super().__init__(fileno=near.detach())
        else:
            super().__init__(family, type, proto, fileno)

    def connect(self, address: Any) -> None:
        if self._far is None:
            super().connect(address)
            return
        if address[1] != _PORT:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "a build has no network but the configured index")
        with _Socket(fileno=os.dup(_channel)) as channel:
            socket.send_fds(channel, [b"."], [self._far.fileno()])
        self._far.close()

    def setsockopt(self, *words: Any) -> None:
        if words[0] != socket.IPPROTO_TCP:  # a pair has no TCP to set
            super().setsockopt(*words)


def _address(host: Any, port: Any, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", int(port or _PORT)))]


def _start(self: subprocess.Popen[Any], *words: Any, pass_fds: Any = (), **named: Any) -> None:
    _popen_init(self, *words, pass_fds=(*pass_fds, _channel), **named)  # pip runs itself for build requirements


if CHANNEL_VARIABLE in os.environ:
    # What this machine's own Python has installed is no matter of the build.
    sys.path[:] = [folder for folder in sys.path if not folder.endswith(("site-packages", "dist-packages"))]
    _channel = int(os.environ[CHANNEL_VARIABLE])
    _popen_init = subprocess.Popen.__init__
    subprocess.Popen.__init__ = _start  # type: ignore[method-assign]
    socket.socket = _Connection  # type: ignore[misc]
    socket.getaddrinfo = _address  # type: ignore[assignment]
