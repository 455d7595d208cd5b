"""Which device computes, how much memory there is, and how errors of the device are told."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class Memory:
    """Memory in bytes; the device's figures are 0 without a GPU."""

    host_used: int
    host_total: int
    device_used: int
    device_total: int


def choose_device() -> torch.device:
    """Return the GPU where this torch build can use it, else the CPU."""
    return prepared("cuda" if torch.cuda.is_available() else "cpu")


def prepared(kind: str) -> torch.device:
    """Return a device, set to full single precision: fixed points are found to residuals below that of TF32."""
    if kind == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(kind)


def device_name(device: torch.device) -> str:
    """Return the name of a device for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def memory(device: torch.device) -> Memory:
    """Return the resident memory of this process, and that of the device."""
    resident = psutil.Process().memory_info().rss
    total = psutil.virtual_memory().total
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        return Memory(resident, total, whole - free, whole)
    return Memory(resident, total, 0, 0)
