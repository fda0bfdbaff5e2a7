# SPDX-License-Identifier: MIT
"""The two 8237 DMA controllers of a PC, and their page registers, as far as firmware pokes them.

Addresses, counts, modes and masks keep what they are given, as the 8237A data sheet (Intel, 1993)
says; no device here asks for a transfer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvmcpu.devices.base import Device, Ports, Register, State

_CHANNELS = 4


@dataclass(eq=False, kw_only=True)
class DmaPage(Device):
    """DMA controllers at 0x00 and 0xC0, page registers at 0x80; 0x80 takes POST codes."""

    # Of a controller: registers 0-7 are addresses and counts, low byte first, by a flip-flop.
    first = Ports(0x00, 16)
    second = Ports(0xC0, 32)
    pages = Ports(0x80, 16)
    SPACING: ClassVar[tuple[int, int]] = (1, 2)

    post_code = Register(pages, 0)
    page_1 = Register(pages, 1)
    page_2 = Register(pages, 2)
    page_3 = Register(pages, 3)
    page_4 = Register(pages, 4)
    page_5 = Register(pages, 5)
    page_6 = Register(pages, 6)
    page_7 = Register(pages, 7)
    page_8 = Register(pages, 8)
    page_9 = Register(pages, 9)
    page_a = Register(pages, 10)
    page_b = Register(pages, 11)
    page_c = Register(pages, 12)
    page_d = Register(pages, 13)
    page_e = Register(pages, 14)
    page_f = Register(pages, 15)

    counters = State(lambda: [[0] * 2 * _CHANNELS for _ in range(2)])  # by controller
    high = State(lambda: [False, False])  # the flip-flop: the next byte is the high one
    masks = State(lambda: [0x0F, 0x0F])
    modes = State(lambda: [[0] * _CHANNELS for _ in range(2)])
    commands = State(lambda: [0, 0])

    def access(self, controller: int, index: int) -> int:
        """What a controller's register reads."""
        if index < 2 * _CHANNELS:
            value = self.counters[controller][index] >> (8 if self.high[controller] else 0) & 0xFF
            self.high[controller] = not self.high[controller]
            return value
        return self.masks[controller] | 0xF0 if index == 15 else 0

    def store(self, controller: int, index: int, value: int) -> None:
        """A write to a controller's register (data sheet, table 2)."""
        if index < 2 * _CHANNELS:
            old = self.counters[controller][index]
            high = self.high[controller]
            self.counters[controller][index] = (
                old & 0x00FF | value << 8 if high else old & 0xFF00 | value
            )
            self.high[controller] = not high
        elif index == 8:
            self.commands[controller] = value
        elif index == 10:  # one channel's mask
            bit = 1 << (value & 3)
            mask = self.masks[controller]
            self.masks[controller] = mask | bit if value & 4 else mask & ~bit
        elif index == 11:
            self.modes[controller][value & 3] = value & ~3
        elif index == 12:
            self.high[controller] = False
        elif index == 13:  # master clear
            self.commands[controller], self.masks[controller] = 0, 0x0F
            self.high[controller] = False
        elif index == 14:
            self.masks[controller] = 0
        elif index == 15:
            self.masks[controller] = value & 0x0F


def _register(controller: int, index: int) -> Register:
    where = (DmaPage.first, DmaPage.second)[controller]
    register = Register(where, index * DmaPage.SPACING[controller])

    @register.read
    def read(device: DmaPage) -> int:
        return device.access(controller, index)

    @register.write
    def write(device: DmaPage, value: int) -> None:
        device.store(controller, index, value)

    return register


# The sixteen registers of each controller are alike.
for _controller in range(2):
    for _index in range(16):
        _name = f"dma{_controller}_{_index:x}"
        _made = _register(_controller, _index)
        _made.__set_name__(DmaPage, _name)
        setattr(DmaPage, _name, _made)
