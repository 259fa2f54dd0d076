"""A real PostgreSQL for tests: a cluster in a temporary folder, on a Unix socket, of a user that is not root."""

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
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._place, self._user = place, "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
        initdb = [place / "initdb", "-D", self.folder / "data", "-U", "trainer", "--auth=trust", "-E", "UTF8"]
        icu = ["--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"]
        self._run([*initdb, *icu, "--no-sync"])
        settings = {"listen_addresses": "", "unix_socket_directories": str(self.folder), "max_connections": "200"}
        if not durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        self._command = [place / "postgres", "-D", self.folder / "data"]
        self._command += [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        self._log = (self.folder / "log").open("wb")
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self.process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log, **self._as_user())
        engine, end = sa.create_engine(self.url("postgres", driver="+psycopg")), time.monotonic() + 30
        while True:
            try:
                engine.connect().close()
                break
            except sa_errors.OperationalError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.05)
        engine.dispose()

    def url(self, database: str, *, driver: str = "") -> str:
        """The URL of one of its databases."""
        return f"postgresql{driver}://trainer@/{database}?host={self.folder}"

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
        self.process.send_signal(how)
        self.process.wait(30)

    def remove(self) -> None:
        """Stop it and delete its files."""
        self.stop(signal.SIGQUIT)
        self._log.close()
        shutil.rmtree(self.folder)

    def _run(self, command: list[Any]) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **self._as_user())

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {"cwd": self.folder}
        entry = pwd.getpwnam(self._user)
        return {"cwd": self.folder, "user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
