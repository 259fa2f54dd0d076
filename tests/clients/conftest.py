"""Environments of their own for published clients, made once below `.venv-clients/`, and a gateway to talk to."""

import fcntl
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 120.0  # seconds for a gateway to go, on a busy machine
_ATTEMPTS = 3  # at an installation; an index may be away for a moment


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time: tests run side by side, and each may be the first that needs an environment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install(python: Path, requirement: str) -> None:
    """Install, with pip's own patience, and again where that was not enough."""
    command = [python, "-m", "pip", "install", "--quiet", "--retries", "10", requirement]
    for _ in range(_ATTEMPTS - 1):
        if subprocess.run(command, check=False).returncode == 0:
            return
    subprocess.run(command, check=True)


@pytest.fixture(scope="session")
def client_python() -> Callable[[str], Path]:
    """client_python("fireworks-ai==1.2.28") -> the Python of an environment that has just that package."""

    def find(requirement: str) -> Path:
        folder = ROOT / ".venv-clients" / requirement.replace("==", "-")
        python, done = folder / "bin/python", folder / "installed"
        with alone(folder.with_name(f"{folder.name}.lock")):
            if not done.exists():
                venv.create(folder, with_pip=True, clear=True)
                install(python, requirement)
                done.touch()
        return python

    return find


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[str]:
    """The URL of `python -m trainer gateway`, with its scheduler and the real worker, on a home of its own."""
    environment = {**os.environ, "TRAINER_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "trainer", "gateway", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=tmp_path) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline().decode().strip()
            assert line.startswith("gateway: http://"), line or "the gateway ended without a word"
            yield line.removeprefix("gateway: ")
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@pytest.fixture
def client_environment(gateway: str) -> dict[str, str]:
    """The environment of a published client that is to talk to the gateway; nothing of ours is in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FIREWORKS"))}
    return {
        **kept,
        "FIREWORKS_BASE_URL": gateway,
        "FIREWORKS_API_KEY": "fw_any",
        "FIREWORKS_ACCOUNT_ID": "local",
        "NO_PROXY": "127.0.0.1",
    }
