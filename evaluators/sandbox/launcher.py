"""Builds one jail and becomes its supervisor; started by the host as a program of its own (`jail.py`).

Order matters. As root the read-only tree is built with root's rights, then the uid is dropped for good, and only then
is a user namespace entered: no part of the jail ever runs as the machine's uid 0. As an ordinary user the user
namespace comes first and grants the rights to mount. Then: capabilities, Landlock, seccomp, and the interpreter is
executed once more, so that the supervisor's heap holds nothing of the set-up. With bubblewrap the namespaces and the
tree are there already; with a kernel of its own, what is executed at the end is that kernel.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from evaluators.sandbox import gvisor, kernel, landlock, rlimits, seccomp, tree
from evaluators.sandbox.wire import CHANNEL, LENGTH

_SUPERVISOR = "import sys; sys.path.insert(0, {!r}); from evaluators.sandbox.{} import main; main()"


def main() -> None:
    """Read what to build from the channel, build it, become the supervisor. A failure is told on the channel."""
    handle = int(sys.argv[1])
    if handle != CHANNEL:
        os.dup2(handle, CHANNEL)
        os.close(handle)  # a busy host's may be any number
    os.set_inheritable(CHANNEL, True)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:  # what the host ignores or holds back
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.closerange(CHANNEL + 1, 256)
    setup, blobs = _read_setup()
    os.umask(0o022)
    with suppress(OSError):  # where /proc is read-only
        Path("/proc/self/oom_score_adj").write_text("1000")  # when memory runs out, jails go first
    try:
        _WAYS[setup["way"]](setup, blobs)
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
    own = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    if os.geteuid() == 0 and _mount_namespace():
        kernel.set_hostname("sandbox")
        tree.enter(tree.build(setup, blobs), setup, owner=setup["uid"])
        _drop_uid(setup["uid"])
        kernel.unshare(kernel.CLONE_NEWUSER)
        _map_user(own, tree.INSIDE_ID, setup["uid"], setup["uid"])
        kernel.unshare(kernel.CLONE_NEWPID)
    else:
        _enter_user(setup, own, tree.INSIDE_ID)
        kernel.unshare(_other_namespaces() | kernel.CLONE_NEWPID)
        kernel.set_hostname("sandbox")
        tree.enter(tree.build(setup, blobs), setup, owner=tree.INSIDE_ID)
    os.close(own)
    _fork_first_process()
    kernel.drop_capabilities()


def _enter_built(setup: dict[str, Any], _: dict[str, bytes]) -> None:
    """Bubblewrap made namespaces and tree; scratch is limited by inodes, too, where that may still be done."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)  # with bubblewrap's own process outside, this one goes
    with suppress(PermissionError):  # where a profile takes the capability away: `docs/security.md` has what that costs
        tree.mount_scratch(setup, owner=tree.INSIDE_ID)
    kernel.drop_capabilities()


def _enter_kernel(setup: dict[str, Any], blobs: dict[str, bytes]) -> NoReturn:
    """Become gVisor, with the tree; in it, a user that is nobody and process ids that end together."""
    if os.geteuid() == 0 and _mount_namespace():
        base = tree.build(setup, blobs, inner="root")
        os.chown(base, setup["uid"], setup["uid"])
        _drop_uid(setup["uid"])
        own = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
        _map_user(own, 0, setup["uid"], setup["uid"])
    else:
        own = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
        _enter_user(setup, own, 0)
        kernel.unshare(_other_namespaces())
        base = tree.build(setup, blobs, inner="root")
    os.close(own)
    kernel.unshare(kernel.CLONE_NEWPID)
    _fork_first_process()
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    command = gvisor.command(setup, base, _supervisor(setup))
    os.dup2(CHANNEL, 0)
    os.close(CHANNEL)
    os.chdir("/")
    os.execve(command[0], command, {"PATH": "/usr/bin:/bin", "TMPDIR": str(base)})  # noqa: S606


def _enter_user(setup: dict[str, Any], own: int, inside: int) -> None:
    """A user namespace, as an ordinary user or as a root without the rights of one."""
    if os.geteuid() == 0:
        _drop_uid(setup["uid"])
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    _map_user(own, inside, uid, gid)


def _mount_namespace() -> bool:
    """False for a root without the capability, as in most containers: it goes an ordinary user's way."""
    try:
        kernel.unshare(_other_namespaces())
    except PermissionError:
        return False
    return True


def _other_namespaces() -> int:
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    return flags | (kernel.CLONE_NEWCGROUP if Path("/proc/self/ns/cgroup").exists() else 0)


def _drop_uid(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else its own /proc entry, where the map is written, belongs to root


def _map_user(own: int, inside: int, uid: int, gid: int) -> None:
    """One id inside: an ordinary user's, but for gVisor, which takes no other than 0 and shows that to nobody."""
    maps = {"setgroups": "deny", "uid_map": f"{inside} {uid} 1", "gid_map": f"{inside} {gid} 1"}
    for name, text in maps.items():
        handle = os.open(name, os.O_WRONLY, dir_fd=own)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)


def _fork_first_process() -> None:
    """Go on as PID 1 of the new namespace; the parent waits, so that the host has a child to wait for."""
    child = os.fork()
    if child:
        _end_with_host(child)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    os.setpgid(0, 0)  # else a signal to the own group would reach the parent outside


def _end_with_host(child: int) -> None:
    """Until `child` has ended, or the host is gone: then it ends with all below it, busy or not."""
    poller = select.poll()
    poller.register(CHANNEL, 0)  # hang-up only
    with suppress(OSError):  # kernels without pidfds: the first process alone notices
        poller.register(os.pidfd_open(child), select.POLLIN)
        if any(handle == CHANNEL for handle, _ in poller.poll()):
            os.kill(child, signal.SIGKILL)
    os.close(CHANNEL)


def _enter_scratch(setup: dict[str, Any], blobs: dict[str, bytes]) -> None:
    """The landlock and none tiers: no namespaces, a folder of the host that the host made and removes."""
    tree.write_files(Path("/"), blobs)
    if os.geteuid() == 0:
        for path in (setup["folder"], setup["scratch"]):
            os.chown(path, setup["uid"], setup["uid"])
        _drop_uid(setup["uid"])
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    kernel.drop_capabilities()


def _become_supervisor(setup: dict[str, Any]) -> None:
    kernel.fixed_addresses()
    rlimits.restrict(setup["limits"])
    if setup["landlock"]:
        devices = [f"/dev/{name}" for name in tree.DEVICES]
        landlock.restrict(read=setup["landlock"], write=[setup["scratch"]], devices=devices)
    if setup["seccomp"]:
        withheld = () if setup["namespaces"] else seccomp.METADATA
        seccomp.install(seccomp.program(withheld=withheld, pretended=setup.get("pretends", False)))
    os.chdir(setup["scratch"])
    command = _supervisor(setup)
    os.execve(command[0], command, setup["environment"])  # noqa: S606


def _supervisor(setup: dict[str, Any]) -> list[str]:
    code = _SUPERVISOR.format(setup["home"], setup.get("first", "supervisor"))
    return [setup["python"], "-P", "-s", "-S", "-B", "-c", code, setup["way"]]


_WAYS = {"own": _enter_namespaces, "bwrap": _enter_built, "gvisor": _enter_kernel, "folder": _enter_scratch}
