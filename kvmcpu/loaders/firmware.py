# SPDX-License-Identifier: MIT
"""A PC's firmware: read-only at the end of the first 4 GiB, and a copy below 1 MiB.

The processor starts at its reset vector, 16 bytes below 4 GiB. Of the file, the last 128 KiB at
most are copied to the end of the first MiB, which is memory that the firmware can write, as on a
PC that has opened its shadow memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmcpu.loaders.base import LoadError, Start, check_ram

if TYPE_CHECKING:
    from kvmcpu._kvm import VM

END = 4 << 30
LOW_END = 1 << 20
LOW_SIZE = 128 << 10
PAGE = 0x1000
LARGEST = 16 << 20  # below lie the interrupt controllers' pages
RESET_VECTOR = 0xFFFFFFF0


class Firmware:
    """A firmware image, such as SeaBIOS's bios.bin."""

    kind = "firmware"

    def __init__(self, data: bytes) -> None:
        if not data or len(data) % PAGE or len(data) > LARGEST:
            raise LoadError(
                f"the firmware has {len(data)} bytes; a multiple of 4 KiB, 16 MiB at most,"
                " would be one"
            )
        self.data = data

    def load(self, vm: VM) -> Start:
        start = END - len(self.data)
        low = self.data[-LOW_SIZE:]
        check_ram(vm, (LOW_END - len(low), LOW_END), "the firmware's copy")
        try:
            vm.add_memory(start, len(self.data), readonly=True)
        except ValueError as error:
            raise LoadError(f"the firmware cannot be mapped at {start:#x}: {error}") from error
        vm.write(start, self.data)
        vm.write(LOW_END - len(low), low)
        return Start("reset", RESET_VECTOR, ((LOW_END - len(low), LOW_END), (start, END)))
