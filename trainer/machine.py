"""What this machine can hold: memory that is free for a process here, cores, and the GPU when torch sees one.

`Look` is the seam: the estimate asks it, the worker has `this_machine`, a test gives a machine of its own. Free memory
is what the kernel calls available or what the tightest cgroup above this process leaves, whichever is less, and what
the process holds already counts as free for it. torch is imported when a worker looks for a GPU, never before.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from trainer.runs import EngineSettings

_NO_LIMIT = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes. `device` is cpu, cuda or mps; `gpu_free` is None but on cuda; `held`: by this process, now.

    busy: how many times longer a run on the CPU may take beside what else runs here now (1 = nothing to speak of).
    """

    device: str
    name: str
    cores: int
    threads: int
    memory: int
    memory_free: int
    held: int
    gpu_free: int | None = None
    busy: float = 1.0


class Look(Protocol):
    """Tells about the machine that an engine with these settings would use."""

    def __call__(self, engine: EngineSettings) -> Machine:
        """Look now."""
        ...


def this_machine(engine: EngineSettings) -> Machine:
    """The machine of this process. Imports torch. Raises `ValueError` for a device that is not here."""
    torch = import_module("torch")
    check_device(torch, engine.device)
    wanted = "cuda" if engine.device == "auto" and torch.cuda.is_available() else engine.device
    device = "cpu" if wanted == "auto" else wanted.partition(":")[0]
    threads = engine.threads or torch.get_num_threads()
    held = resident()
    total, free = memory(held=held)
    name, gpu_free = f"{_cpu()}, {threads} threads", None
    if device == "cuda":
        name, gpu_free = torch.cuda.get_device_name(wanted), int(torch.cuda.mem_get_info(wanted)[0])
    return Machine(device, name, cores(), threads, total, free, held, gpu_free, busy(threads))


def check_device(torch: Any, device: str) -> None:
    """Raise `ValueError` for a device that `torch` does not see."""
    kind, _, number = device.partition(":")
    here = torch.backends.mps.is_available() if kind == "mps" else torch.cuda.device_count() > int(number or 0)
    if kind in ("cuda", "mps") and not here:
        seen = "no MPS device" if kind == "mps" else f"{torch.cuda.device_count()} CUDA devices"
        raise ValueError(
            f"engine.device: {device} is not here: torch {torch.__version__} sees {seen}; set engine.device=auto or cpu"
        )


def busy(threads: int) -> float:
    """What runs here, by the last minute's load, and `threads` more, over the cores there are; at least 1.

    The load average counts the machine's processes, in a container those of its neighbours too.
    """
    return max(1.0, (os.getloadavg()[0] + threads) / (os.cpu_count() or 1))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(dev: Path = Path("/dev")) -> tuple[str, ...]:
    """The NVIDIA GPUs a process here may use, as CUDA_VISIBLE_DEVICES names them; found without torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip() not in ("", "-1"))
    numbers = sorted(int(path.name[6:]) for path in dev.glob("nvidia[0-9]*"))
    return tuple(map(str, numbers))


def memory(root: Path = Path("/"), *, held: int = 0) -> tuple[int, int]:
    """(all, free) bytes for this process, by the kernel's and the cgroups' files below `root`."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total
    listing = root / "proc/meminfo"
    if listing.is_file():
        kib = {key: int(value) for key, value in re.findall(r"(\w+):\s+(\d+) kB", listing.read_text())}
        total = kib["MemTotal"] << 10
        free = min(total, (kib.get("MemAvailable", kib["MemTotal"]) << 10) + held)
    for limit, used in _cgroups(root):
        total = min(total, limit)
        free = min(free, max(0, limit - used) + held)
    return total, min(free, total)


def resident() -> int:
    """Bytes that this process holds in memory."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_resident()


def peak_resident() -> int:
    """The most bytes that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def peak_gpu() -> int | None:
    """The most bytes torch has had allocated on the GPU; None when it has not been used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_reserved())


def _cgroups(root: Path) -> list[tuple[int, int]]:
    """(limit, used) of this process's cgroup and those above it that have a limit; file cache does not count."""
    listing = root / "proc/self/cgroup"
    if not listing.is_file():
        return []
    found = []
    for line in listing.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            place, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            place = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = Path(path.lstrip("/"))
        folders = [place / group, *(place / parent for parent in group.parents)]
        found += [one for folder in folders if (one := _limit(folder, *names))]
    return found


def _limit(folder: Path, limit_file: str, used_file: str, cache: str) -> tuple[int, int] | None:
    limit, used = folder / limit_file, folder / used_file
    if not limit.is_file() or not used.is_file():
        return None
    text = limit.read_text().strip()
    if text == "max" or int(text) >= _NO_LIMIT:
        return None
    statistics = folder / "memory.stat"
    cached = re.search(rf"^{cache} (\d+)", statistics.read_text(), re.MULTILINE) if statistics.is_file() else None
    return int(text), int(used.read_text()) - (int(cached[1]) if cached else 0)


def _cpu() -> str:
    listing = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", listing.read_text()) if listing.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()
