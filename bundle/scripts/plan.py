"""What a training will cost here: measured on this machine before it starts."""

from __future__ import annotations

import gc
from pathlib import Path

import torch


class PeakMemory:
    """Context manager: the peak of memory in use inside it.

    On a GPU that of torch's allocator; on Linux the resident memory of this process, everything included.

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
            Path("/proc/self/clear_refs").write_text("5")  # forget the earlier peak
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self.peak = _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
