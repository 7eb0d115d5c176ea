"""Memory of this process: how it is kept, measured and bounded."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from pathlib import Path

import psutil
import torch

#: options of glibc's mallopt
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the C library keep memory that tensors free, for the next step, instead of returning it to the system.

    A training step on a CPU frees and asks for the same large tensors over and over; handing them back costs page
    faults, a fifth to a third of the step. Does nothing where the C library is not glibc. Environment variables of
    glibc (``MALLOC_MMAP_MAX_``) would do the same.

    Returns:
        whether it was done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


class PeakMemory:
    """Context manager: the peak of memory in use inside it.

    On a GPU that of torch's allocator; otherwise the resident memory of this process, everything included. Where the
    system cannot forget an earlier peak (it is not Linux), ``peak`` is that of the whole process so far.

    Attributes:
        before: bytes in use at the start.
        peak: bytes in use at most; set at the end.
    """

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: whose memory.
        """
        self.device, self.before, self.peak = device, 0, 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            if Path("/proc/self/clear_refs").exists():
                Path("/proc/self/clear_refs").write_text("5")  # forget the earlier peak
            self.before = psutil.Process().memory_info().rss
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self.peak = _peak_resident()


def _peak_resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory(device: torch.device) -> int:
    """Bytes that this process may use in all: what it holds and what is free, within the limit of its container.

    Main memory is shared out evenly among the processes that torchrun has started on this machine.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    total = psutil.Process().memory_info().rss + psutil.virtual_memory().available // processes
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(path).exists() and (limit := Path(path).read_text().strip()).isdigit():
            total = min(total, int(limit) // processes)
    return total


def free_memory() -> int:
    """Bytes that this process may take besides what it holds, within the limit of its container."""
    return available_memory(torch.device("cpu")) - psutil.Process().memory_info().rss
