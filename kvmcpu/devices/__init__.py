# SPDX-License-Identifier: MIT
"""Devices: one file each. ``base`` has the vocabulary in which they are written."""

from typing import TYPE_CHECKING

from kvmcpu.devices.base import Cell, Device, DeviceError, Mmio, Ports, Register, State

if TYPE_CHECKING:
    from kvmcpu.devices.ata import AtaController
    from kvmcpu.devices.cmos import Cmos
    from kvmcpu.devices.debug_console import DebugConsole
    from kvmcpu.devices.debug_exit import DebugExit
    from kvmcpu.devices.dma_page import DmaPage
    from kvmcpu.devices.fw_cfg import FwCfg
    from kvmcpu.devices.i8042 import I8042
    from kvmcpu.devices.power import PowerOff
    from kvmcpu.devices.serial16550 import Serial16550
    from kvmcpu.devices.vga_text import VgaText
else:
    from kvmcpu.lazy import later

    # A system pays, in time and memory, for the devices that it has.
    __getattr__, __dir__ = later(
        globals(),
        {
            "AtaController": "ata",
            "Cmos": "cmos",
            "DebugConsole": "debug_console",
            "DebugExit": "debug_exit",
            "DmaPage": "dma_page",
            "FwCfg": "fw_cfg",
            "I8042": "i8042",
            "PowerOff": "power",
            "Serial16550": "serial16550",
            "VgaText": "vga_text",
        },
    )

__all__ = [
    "AtaController",
    "Cell",
    "Cmos",
    "DebugConsole",
    "DebugExit",
    "Device",
    "DeviceError",
    "DmaPage",
    "FwCfg",
    "I8042",
    "Mmio",
    "Ports",
    "PowerOff",
    "Register",
    "Serial16550",
    "State",
    "VgaText",
]
