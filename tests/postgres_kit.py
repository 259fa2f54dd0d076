"""A real PostgreSQL for tests: a cluster in a temporary folder, on a Unix socket, of a user that is not root.

A root that may not pass over file permissions (as in some containers) cannot look into another user's private folder:
what the tests themselves need, the log and the socket, lies beside the server's data.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc as sa_errors

_PATIENCE = 120.0  # seconds for a server to come up or go, on a busy machine


def binaries() -> Path | None:
    """The folder with `initdb` and `postgres`, if this machine has them."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "postgres").exists()), None)


class Cluster:
    """A running PostgreSQL. Its language sorts otherwise than by code point, as clusters in the field do.

    durable: False = it does not wait for the disk, which tests that kill no machine need not.
    """

    def __init__(self, place: Path, *, durable: bool = False) -> None:
        # A socket's path is short, and another user must get there: not wherever TMPDIR says.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.process: subprocess.Popen[bytes] | None = None
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._data, self._socket = self.folder / "data", self.folder / "socket"
        self.folder.chmod(0o755)
        for one in (self._data, self._socket):
            one.mkdir()
            if self._user:
                os.chown(one, self._user.pw_uid, self._user.pw_gid)
        settings = {"listen_addresses": "", "unix_socket_directories": str(self._socket), "max_connections": "200"}
        if not durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        self._command = [place / "postgres", "-D", self._data]
        self._command += [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        initdb = [place / "initdb", "-D", self._data, "-U", "trainer", "--auth=trust", "-E", "UTF8"]
        icu = ["--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"]
        try:
            self._run([*initdb, *icu, "--no-sync"])
            self.start()
        except BaseException:
            self.remove()
            raise

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        log = self.folder / "log"
        with log.open("ab") as stream:
            self.process = server = subprocess.Popen[bytes](
                self._command, stdout=stream, stderr=stream, **self._as_user()
            )
        engine, end = sa.create_engine(self.url("postgres", driver="+psycopg")), time.monotonic() + _PATIENCE
        while True:
            try:
                engine.connect().close()
                break
            except sa_errors.OperationalError:
                if time.monotonic() > end or server.poll() is not None:
                    raise RuntimeError(log.read_text()) from None
                time.sleep(0.05)
            finally:
                engine.dispose()

    def url(self, database: str, *, driver: str = "") -> str:
        """The URL of one of its databases."""
        return f"postgresql{driver}://trainer@/{database}?host={self._socket}"

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"d{secrets.token_hex(6)}"
        engine = sa.create_engine(self.url("postgres", driver="+psycopg"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self.url(name)

    def stop(self, how: int = signal.SIGINT) -> None:
        """SIGINT: in order; SIGQUIT: at once, as at a power cut of the process."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(_PATIENCE)

    def remove(self) -> None:
        """Stop it and delete its files; its data as its user, to whom they belong."""
        self.stop(signal.SIGQUIT)
        self._run(["find", self._data, self._socket, "-mindepth", "1", "-delete"])
        self._run(["chmod", "755", self._data])
        shutil.rmtree(self.folder)

    def _run(self, command: list[Any]) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **self._as_user())

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {"cwd": self.folder}
        return {"cwd": self.folder, "user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
