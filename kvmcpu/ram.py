# SPDX-License-Identifier: MIT
"""How a PC's memory lies in its address space."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmcpu._kvm import VM, Memory

# The last GiB below 4 GiB belongs to devices, interrupt controllers and the firmware.
LOW_LIMIT = 3 << 30
HIGH_START = 4 << 30


def add_ram(vm: VM, size: int) -> tuple[Memory, ...]:
    """Give a VM memory from 0 up to 3 GiB, and what is more than that from 4 GiB on."""
    low = vm.add_memory(0, min(size, LOW_LIMIT))
    if size <= LOW_LIMIT:
        return (low,)
    return low, vm.add_memory(HIGH_START, size - LOW_LIMIT)
