"""Builds one jail and becomes its supervisor; started by the host as a program of its own (`jail.py`).

Order matters. As root the read-only tree is built with root's rights, then the uid is dropped for good, and only then
is a user namespace entered: no part of the jail ever runs as the machine's uid 0. As an ordinary user the user
namespace comes first and grants the rights to mount. Then: capabilities, Landlock, seccomp, and the interpreter is
executed once more, so that the supervisor's heap holds nothing of the set-up.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from evaluators.sandbox import kernel, landlock, seccomp
from evaluators.sandbox.wire import CHANNEL, LENGTH, SCRATCH

_SUPERVISOR = "import sys; sys.path.insert(0, {!r}); from evaluators.sandbox.supervisor import main; main()"

_INSIDE_ID = 1000
_SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ETC = {
    "passwd": "evaluator:x:1000:1000::/scratch:/bin/sh\n",
    "group": "evaluator:x:1000:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "hosts": "127.0.0.1 localhost\n",
}
_HARDENED = kernel.MS_NOSUID | kernel.MS_NODEV


def main() -> None:
    """Read what to build from the channel, build it, become the supervisor. A failure is told on the channel."""
    handle = int(sys.argv[1])
    if handle != CHANNEL:
        os.dup2(handle, CHANNEL)
    os.set_inheritable(CHANNEL, True)
    os.closerange(CHANNEL + 1, 256)
    setup, blobs = _read_setup()
    os.umask(0o022)
    with suppress(OSError):  # where /proc is read-only
        Path("/proc/self/oom_score_adj").write_text("1000")  # when memory runs out, jails go first
    try:
        if setup["namespaces"]:
            _enter_namespaces(setup, blobs)
        else:
            _enter_scratch(setup, blobs)
        _become_supervisor(setup)
    except OSError as error:
        told = json.dumps({"failed": str(error), "errno": error.errno}).encode()
        os.write(CHANNEL, LENGTH.pack(len(told)) + told)
        os._exit(1)


def _read_setup() -> tuple[dict[str, Any], dict[str, bytes]]:
    """The setup, and the files for the jail's tree: path inside -> content."""
    setup = json.loads(_read(LENGTH.unpack(_read(LENGTH.size))[0]))
    return setup, {path: _read(size) for path, size in setup["files"]}


def _read(size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        more = os.read(CHANNEL, size - len(found))
        if not more:
            os._exit(0)  # the host went away
        found += more
    return bytes(found)


def _enter_namespaces(setup: dict[str, Any], blobs: dict[str, bytes]) -> None:
    """A tree, processes, network, users of its own; returns as PID 1 of the jail, without capabilities."""
    others = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    own = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    if os.geteuid() == 0 and _mount_namespace(others | _cgroup_namespace()):
        kernel.set_hostname("sandbox")
        _build_tree(setup, blobs, owner=setup["uid"])
        _drop_uid(setup["uid"])
        kernel.unshare(kernel.CLONE_NEWUSER)
        _map_user(own, setup["uid"], setup["uid"])
        kernel.unshare(kernel.CLONE_NEWPID)
    else:
        if os.geteuid() == 0:
            _drop_uid(setup["uid"])
        uid, gid = os.getuid(), os.getgid()
        kernel.unshare(kernel.CLONE_NEWUSER)
        _map_user(own, uid, gid)
        kernel.unshare(others | _cgroup_namespace() | kernel.CLONE_NEWPID)
        kernel.set_hostname("sandbox")
        _build_tree(setup, blobs, owner=_INSIDE_ID)
    os.close(own)
    _fork_first_process()
    kernel.drop_capabilities()


def _mount_namespace(flags: int) -> bool:
    """False for a root without the capability, as in most containers: it goes an ordinary user's way."""
    try:
        kernel.unshare(flags)
    except PermissionError:
        return False
    return True


def _cgroup_namespace() -> int:
    return kernel.CLONE_NEWCGROUP if Path("/proc/self/ns/cgroup").exists() else 0


def _drop_uid(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else its own /proc entry, where the map is written, belongs to root


def _map_user(own: int, uid: int, gid: int) -> None:
    """Inside, everything belongs to one ordinary user; there is no uid 0 in the jail."""
    maps = {"setgroups": "deny", "uid_map": f"{_INSIDE_ID} {uid} 1", "gid_map": f"{_INSIDE_ID} {gid} 1"}
    for name, text in maps.items():
        handle = os.open(name, os.O_WRONLY, dir_fd=own)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)


def _build_tree(setup: dict[str, Any], blobs: dict[str, bytes], *, owner: int) -> None:
    """The jail's root: system folders and interpreter read-only, five devices, its own files, a limited scratch."""
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    size = sum(map(len, blobs.values())) + (4 << 20)
    base = "/tmp" if Path("/tmp").is_dir() else "/mnt"  # noqa: S108 - covered in this mount namespace only
    shown = [path for path in (*_SYSTEM, *setup["readable"]) if Path(path).exists()]
    held = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in shown]
    kernel.mount("sandbox", base, "tmpfs", _HARDENED, f"size={size},nr_inodes={len(blobs) * 4 + 4096},mode=755")
    root = Path(base)
    for path, handle in held:
        _bind_into(root, path, f"/proc/self/fd/{handle}")
        os.close(handle)
    for name in _LINKS:
        if Path("/", name).is_symlink():
            (root / name).symlink_to(Path("/", name).readlink())
        elif Path("/", name).is_dir():
            _bind_into(root, f"/{name}", f"/{name}")
    _devices(root)
    _write_files(root, {f"/etc/{name}": text.encode() for name, text in _ETC.items()} | blobs)
    (root / "scratch").mkdir()
    if not (root / "tmp").exists():  # it does where a readable folder of the host lies below /tmp
        (root / "tmp").symlink_to(SCRATCH)
    os.chdir(base)
    kernel.pivot_root_here()
    kernel.add_flags("/", kernel.MS_RDONLY)
    options = f"size={setup['scratch_bytes']},nr_inodes={setup['scratch_inodes']},mode=700,uid={owner},gid={owner}"
    kernel.mount("scratch", SCRATCH, "tmpfs", _HARDENED | kernel.MS_NOEXEC, options)


def _bind_into(root: Path, path: str, source: str) -> None:
    target = root / path.lstrip("/")
    if target.exists() and _same(target, Path(source)):
        return  # shown already, below a folder that is
    target.parent.mkdir(parents=True, exist_ok=True)
    if Path(source).is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    kernel.bind(source, str(target), _HARDENED | kernel.MS_RDONLY)


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_ino == other.stat().st_ino and one.stat().st_dev == other.stat().st_dev


def _devices(root: Path) -> None:
    (root / "dev").mkdir()
    for name in _DEVICES:
        (root / "dev" / name).touch()
        kernel.mount(f"/dev/{name}", str(root / "dev" / name), None, kernel.MS_BIND)
        kernel.add_flags(str(root / "dev" / name), kernel.MS_NOSUID | kernel.MS_NOEXEC)
    (root / "dev" / "shm").symlink_to(SCRATCH)  # semaphores count as scratch, and go with it


def _write_files(root: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _fork_first_process() -> None:
    """Go on as PID 1 of the new namespace; the parent only waits, so that the host has a child to wait for."""
    child = os.fork()
    if child:
        os.close(CHANNEL)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)


def _enter_scratch(setup: dict[str, Any], blobs: dict[str, bytes]) -> None:
    """The landlock and none tiers: no namespaces, a folder of the host that the host made and removes."""
    _write_files(Path("/"), blobs)
    if os.geteuid() == 0:
        for path in (setup["folder"], setup["scratch"]):
            os.chown(path, setup["uid"], setup["uid"])
        _drop_uid(setup["uid"])
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    kernel.drop_capabilities()


def _become_supervisor(setup: dict[str, Any]) -> None:
    kernel.fixed_addresses()
    limits = setup["supervisor"]["limits"]
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_NOFILE, limits["descriptors"]),
        (resource.RLIMIT_FSIZE, limits["scratch_bytes"]),
        (resource.RLIMIT_NPROC, limits["process_count"]),
    ):  # here and not in each child, which has less to do so; the supervisor gets by with them
        resource.setrlimit(limit, (value, value))
    os.umask(0o077)
    if setup["landlock"]:
        devices = [f"/dev/{name}" for name in _DEVICES]
        landlock.restrict(read=setup["landlock"], write=[setup["scratch"]], devices=devices)
    if setup["seccomp"]:
        withheld = () if setup["namespaces"] else seccomp.METADATA
        seccomp.install(seccomp.program(withheld=withheld))
    os.chdir(setup["scratch"])
    command = [setup["python"], "-P", "-s", "-S", "-B", "-c", _SUPERVISOR.format(setup["home"]),
               json.dumps(setup["supervisor"])]  # fmt: skip
    os.execve(command[0], command, setup["environment"])  # noqa: S606
