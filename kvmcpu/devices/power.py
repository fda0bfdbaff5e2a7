# SPDX-License-Identifier: MIT
"""How a PC's software turns it off or resets it, apart from the keyboard controller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvmcpu.devices.base import Device, Ports, Register, State

# ACPI 6.5, 4.8.3.2: bit 13 enters the sleep state in bits 10-12; 0 is S5 here. Bit 0: ACPI is on.
_ACPI_ON = 1 << 0
_SLEEP = 1 << 13
_SLEEP_TYPE = 7 << 10


@dataclass(eq=False, kw_only=True)
class PowerOff(Device):
    """Power-off and reset ports.

    | port | what |
    | --- | --- |
    | ``port`` (0x604), 0xB004 | ACPI's PM1a control register: sleep state S5 is power-off |
    | ``port - 4`` | ACPI's PM1a status and enable registers: nothing ever happens |
    | 0x8900 | the text "Shutdown", byte by byte: power-off (Bochs; SeaBIOS's APM) |
    | 0xCF9 | reset control: bit 2 while bit 1 is set is a reset (Intel ICH data sheets) |
    | 0x92 | system control port A: bit 0 is a fast reset, bit 1 the A20 gate |
    """

    port: int = 0x604
    TEXT: ClassVar[bytes] = b"Shutdown"

    acpi_events = Ports("port", 4, start=-4)
    pm1a_status = Register(acpi_events, 0, 2, access="r")
    pm1a_enable = Register(acpi_events, 2, 2)
    acpi = Ports("port", 2)
    pm1a_control = Register(acpi, 0, 2, reset=_ACPI_ON, mask=0xFFFF & ~_ACPI_ON,
                            fields={"SCI_EN": 0, "SLP_TYP": (10, 3), "SLP_EN": 13})  # fmt: skip
    old_acpi = Ports(0xB004, 2)
    old_pm1a_control = Register(old_acpi, 0, 2, fields={"SLP_TYP": (10, 3), "SLP_EN": 13})
    shutdown = Ports(0x8900, 1)
    text = Register(shutdown, 0, access="w")
    reset_ports = Ports(0xCF9, 1)
    reset_control = Register(reset_ports, 0, mask=0x0E, fields={"HARD": 1, "RESET": 2, "FULL": 3})
    system_ports = Ports(0x92, 1)
    system_control = Register(system_ports, 0, reset=2, fields={"RESET": 0, "A20": 1})
    typed = State(bytes)  # of TEXT so far

    @pm1a_control.write
    def sleep(self, value: int) -> None:
        if value & _SLEEP and not value & _SLEEP_TYPE:
            self.board.end("power-off")

    @old_pm1a_control.write
    def sleep_old(self, value: int) -> None:
        self.sleep(value)

    @text.write
    def spell(self, value: int) -> None:
        self.typed = (self.typed + bytes([value]))[-len(self.TEXT) :]
        if self.typed == self.TEXT:
            self.board.end("power-off")

    @reset_control.write
    def control_reset(self, value: int) -> None:
        if value & 4:
            self.board.end("reset")

    @system_control.write
    def control_system(self, value: int) -> None:
        self.system_control = value | 2  # A20 stays on
        if value & 1:
            self.board.end("reset")
