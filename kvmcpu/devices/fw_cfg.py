# SPDX-License-Identifier: MIT
"""The firmware configuration interface, through which a PC's firmware asks about its machine.

As QEMU's specification "QEMU Firmware Configuration (fw_cfg) Device" has it: items by key, read
byte by byte or by DMA; files are items with a name, listed in a directory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kvmcpu._kvm import UnmappedError
from kvmcpu.devices.base import Device, Ports, Register, State
from kvmcpu.ram import HIGH_START, LOW_LIMIT

SIGNATURE, ID, RAM_SIZE, CPUS, BOOT_MENU, MAX_CPUS, DIRECTORY = 0, 1, 3, 5, 0x0E, 0x0F, 0x19
_FIRST_FILE = 0x20
_ID_TRADITIONAL, _ID_DMA = 1, 2
_DMA_SIGNATURE = 0x51454D5520434647  # "QEMU CFG"
_DMA_ERROR, _DMA_READ, _DMA_SKIP, _DMA_SELECT, _DMA_WRITE = 1, 2, 4, 8, 16
_DMA_DESCRIPTOR = struct.Struct(">IIQ")
_NAME_SIZE = 56
_CHUNK = 1 << 20
_NOTHING = 0xFFFF
_E820_RAM = 1


@dataclass(eq=False, kw_only=True)
class FwCfg(Device):
    """Selector at ``port`` (0x510), data behind it, DMA address at ``port + 4``."""

    port: int = 0x510

    selector_port = Ports("port", 1)
    selector = Register(selector_port, 0, 2, reset=_NOTHING)
    data_port = Ports("port", 1, start=1, string=True)
    data = Register(data_port, 0, access="r")
    dma_ports = Ports("port", 8, start=4)
    dma_high = Register(dma_ports, 0, 4, reset=0)
    dma_low = Register(dma_ports, 4, 4, reset=0)
    offset = State(int)  # in the item that is selected
    high = State(int)  # half of the descriptor's address, as written

    def __post_init__(self) -> None:
        self._items: dict[int, bytes] = {}
        self._files: dict[str, int] = {}

    def connect(self) -> None:
        board = self.board
        low = min(board.memory, LOW_LIMIT)
        self.add_item(SIGNATURE, b"QEMU")
        self.add_item(ID, struct.pack("<I", _ID_TRADITIONAL | _ID_DMA))
        self.add_item(RAM_SIZE, struct.pack("<Q", board.memory))
        self.add_item(CPUS, struct.pack("<H", board.cpus))
        self.add_item(MAX_CPUS, struct.pack("<H", board.cpus))
        self.add_item(BOOT_MENU, struct.pack("<H", 0))
        map_ = struct.pack("<QQI", 0, low, _E820_RAM)
        if board.memory > low:
            map_ += struct.pack("<QQI", HIGH_START, board.memory - low, _E820_RAM)
        self.add_file("etc/e820", map_)

    def add_item(self, key: int, data: bytes) -> None:
        """Give an item its contents. Raises ValueError for a key that is no 16-bit number."""
        if not 0 <= key < _NOTHING:
            raise ValueError(f"a key is a number from 0 to {_NOTHING - 1:#x}, not {key:#x}")
        self._items[key] = bytes(data)

    def add_file(self, name: str, data: bytes) -> None:
        """Add a file, or replace it. Raises ValueError for a name that does not fit."""
        encoded = name.encode("ascii")
        if not 0 < len(encoded) < _NAME_SIZE:
            raise ValueError(f"a file's name has 1 to {_NAME_SIZE - 1} characters: {name!r}")
        key = self._files.setdefault(name, _FIRST_FILE + len(self._files))
        self.add_item(key, data)
        entries = [
            struct.pack(f">IHH{_NAME_SIZE}s", len(self._items[key]), key, 0, name.encode())
            for name, key in sorted(self._files.items())
        ]
        self.add_item(DIRECTORY, struct.pack(">I", len(entries)) + b"".join(entries))

    # ---- byte by byte ----

    @selector.write
    def select_item(self, value: int) -> None:
        # A guest that writes a single byte selects by that; 0x4000 asks to write, which none may.
        self.selector = value & 0xBFFF
        self.offset = 0

    @data.read
    def read_byte(self) -> int:
        return self.read_bytes(1)[0]

    @data.read_block
    def read_bytes(self, size: int) -> bytes:
        """The next bytes of the item; zeros behind its end."""
        item = self._items.get(self.selector, b"")
        part = item[self.offset : self.offset + size]
        self.offset = min(self.offset + size, len(item))
        return part.ljust(size, b"\0")

    # ---- DMA ----

    @dma_high.read
    def signature_high(self) -> int:
        return int.from_bytes((_DMA_SIGNATURE >> 32).to_bytes(4, "big"), "little")

    @dma_low.read
    def signature_low(self) -> int:
        return int.from_bytes((_DMA_SIGNATURE & 0xFFFFFFFF).to_bytes(4, "big"), "little")

    @dma_high.write
    def set_high(self, value: int) -> None:
        self.high = int.from_bytes(value.to_bytes(4, "little"), "big")

    @dma_low.write
    def start(self, value: int) -> None:
        low = int.from_bytes(value.to_bytes(4, "little"), "big")
        at, self.high = self.high << 32 | low, 0
        vm = self.board.vm
        try:
            control, length, address = _DMA_DESCRIPTOR.unpack(vm.read(at, _DMA_DESCRIPTOR.size))
        except (UnmappedError, OverflowError, ValueError):
            return  # nowhere to say so
        try:
            result = self._transfer(control, length, address)
        except (UnmappedError, OverflowError, ValueError):
            result = _DMA_ERROR
        vm.write(at, struct.pack(">I", result))

    def _transfer(self, control: int, length: int, address: int) -> int:
        if control & _DMA_SELECT:
            self.select_item(control >> 16)
        if control & _DMA_READ:
            # In pieces: the length is the guest's.
            for done in range(0, length, _CHUNK):
                size = min(_CHUNK, length - done)
                self.board.vm.write(address + done, self.read_bytes(size))
        elif control & _DMA_WRITE:
            return _DMA_ERROR  # nothing is writable
        elif control & _DMA_SKIP:
            item = self._items.get(self.selector, b"")
            self.offset = min(self.offset + length, len(item))
        return 0
