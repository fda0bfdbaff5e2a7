# SPDX-License-Identifier: MIT
"""A PC without PCI: memory from 0, the kernel's interrupt controllers and timer, ISA devices.

| address | what |
| --- | --- |
| 0 - 3 GiB | memory, also where a PC has its video memory and firmware (0xA0000 - 0xFFFFF) |
| 0xFEC00000, 0xFEE00000 | I/O APIC, local APICs (the kernel's) |
| below 4 GiB | the firmware's file, where there is one |
| from 4 GiB | memory beyond 3 GiB |

Interrupt lines: 0 timer, 1 keyboard, 4 serial port, 8 clock, 12 mouse, 14 disks.
"""

from __future__ import annotations

from kvmcpu.boards.base import Board
from kvmcpu.devices import (
    I8042,
    AtaController,
    Cmos,
    DebugConsole,
    DebugExit,
    Device,
    DmaPage,
    FwCfg,
    PowerOff,
    Serial16550,
    VgaText,
)
from kvmcpu.ram import add_ram


class Pc(Board):
    """The PC board."""

    name = "pc"

    @classmethod
    def standard_devices(cls) -> list[Device]:
        return [
            Serial16550(),
            DebugConsole(),
            DebugConsole(port=0x402),
            DebugExit(),
            Cmos(),
            FwCfg(),
            I8042(),
            DmaPage(),
            PowerOff(),
            VgaText(),
            AtaController(),
        ]

    def build(self) -> None:
        self.vm.create_irqchip()
        # Port 0x61 with it: firmware measures its clock by the timer's channel 2.
        self.vm.create_pit(speaker_dummy=True)
        add_ram(self.vm, self.memory)
