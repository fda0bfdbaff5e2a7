# SPDX-License-Identifier: MIT
"""A PC without PCI: memory from 0, the kernel's interrupt controllers and timer, ISA devices.

| address | what |
| --- | --- |
| 0 - 3 GiB | memory, also where a PC has its video memory and firmware (0xA0000 - 0xFFFFF) |
| 0xFEC00000, 0xFEE00000 | I/O APIC, local APICs (the kernel's) |
| below 4 GiB | the firmware's file, where there is one |
| from 4 GiB | memory beyond 3 GiB |

Interrupt lines: 0 timer, 1 keyboard, 4 serial port, 8 clock, 12 mouse, 14 disks. Firmware gets ACPI
and SMBIOS tables for what there is.
"""

from __future__ import annotations

from kvmcpu import devices
from kvmcpu.boards import acpi, smbios
from kvmcpu.boards.base import Board
from kvmcpu.devices.base import Device
from kvmcpu.ram import add_ram


class Pc(Board):
    """The PC board."""

    name = "pc"
    arch = "x86_64"

    @classmethod
    def standard_devices(cls) -> list[Device]:
        return [
            devices.Serial16550(),
            devices.DebugConsole(),
            devices.DebugConsole(port=0x402),
            devices.DebugExit(),
            devices.Cmos(),
            devices.FwCfg(),
            devices.I8042(),
            devices.DmaPage(),
            devices.PowerOff(),
            devices.VgaText(),
            devices.AtaController(),
        ]

    def build(self) -> None:
        self.vm.create_irqchip()
        # Port 0x61 with it: firmware measures its clock by the timer's channel 2.
        self.vm.create_pit(speaker_dummy=True)
        add_ram(self.vm, self.memory)

    def complete(self) -> None:
        config, power = self.find(devices.FwCfg), self.find(devices.PowerOff)
        if config is None:
            return
        files = smbios.tables(self.memory, self.cpus)
        if power is not None:
            files |= acpi.tables(power.port)
        for name, data in files.items():
            config.add_file(name, data)
