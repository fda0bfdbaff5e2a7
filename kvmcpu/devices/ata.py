# SPDX-License-Identifier: MIT
"""An ATA disk controller with up to two disks, for programmed I/O, as ATA/ATAPI-6 has it.

Section numbers are those of T13/1410D, revision 3b. A command's data are read from the disk, or
written to it, in pieces of up to 128 KiB, and the guest is never kept waiting: BSY is never seen.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvmcpu.devices.base import Device, DeviceError, Ports, Register, State
from kvmcpu.disk import SECTOR, Disk, DiskError, open_disk

_ERR, _DRQ, _DSC, _DF, _DRDY = 0x01, 0x08, 0x10, 0x20, 0x40
_READY = _DRDY | _DSC
_ABORTED, _NOT_FOUND, _UNCORRECTABLE = 0x04, 0x10, 0x40
_LBA, _SLAVE = 0x40, 0x10
_NIEN, _SRST, _HOB = 0x02, 0x04, 0x80
_BLOCK = 256  # sectors that are read at once
_MULTIPLE = 16  # sectors of a block that READ MULTIPLE may have
_HEADS, _SECTORS_OF_TRACK = 16, 63
_FLOATING = 0xFF
_EXT = (0x24, 0x27, 0x29, 0x34, 0x39, 0x42, 0xEA)


@dataclass(eq=False, kw_only=True)
class AtaController(Device):
    """One channel: the primary one of a PC by default.

    disks: one or two, as ``kvmcpu.disk.open_disk`` takes them.
    """

    port: int = 0x1F0
    control: int = 0x3F6
    irq: int = 14
    disks: list[Any] = field(default_factory=list)

    data_port = Ports("port", 1, string=True)
    data = Register(data_port, 0, 2, access="rw", fifo=True)
    task_file = Ports("port", 7, start=1)
    error = Register(task_file, 0, access="r", reset=1,
                     fields={"ABRT": 2, "IDNF": 4, "UNC": 6})  # fmt: skip
    features = Register(task_file, 0, access="w")
    count = Register(task_file, 1, reset=1)  # these four are two bytes deep (6.20)
    lba_low = Register(task_file, 2, reset=1)
    lba_mid = Register(task_file, 3)
    lba_high = Register(task_file, 4)
    device = Register(task_file, 5, fields={"HEAD": (0, 4), "DEV": 4, "LBA": 6})
    status = Register(task_file, 6, access="r", reset=_READY,
                      fields={"ERR": 0, "DRQ": 3, "DSC": 4, "DF": 5, "DRDY": 6})  # fmt: skip
    command = Register(task_file, 6, access="w")
    control_port = Ports("control", 1)
    alternate_status = Register(control_port, 0, access="r")
    device_control = Register(control_port, 0, access="w")

    previous = State(lambda: [0, 0, 0, 0])  # count and LBA as written before: the 48-bit halves
    feature = State(int)
    controls = State(int)
    multiple = State(lambda: [0, 0])  # sectors of a block, by disk
    buffer = State(bytes)  # what the guest reads next; or has written
    position = State(int)
    sector = State(int)  # where the transfer goes on
    left = State(int)  # sectors of the command that are still to come
    block = State(lambda: 1)  # sectors between two interrupts
    writing = State(bool)
    pending = State(bool)  # an interrupt

    def attach(self, board: Any) -> None:
        if len(self.disks) > 2:
            raise DeviceError(f"a channel has up to two disks, not {len(self.disks)}")
        self._disks: list[Disk] = []
        try:
            for spec in self.disks:
                self._disks.append(open_disk(spec))
        except DiskError as error:
            self._close()
            raise DeviceError(str(error)) from error
        super().attach(board)

    def connect(self) -> None:
        self._line = self.board.irq(self.irq)

    def detach(self) -> None:
        super().detach()
        self._close()

    def _close(self) -> None:
        for disk, spec in zip(self._disks, self.disks, strict=False):
            if disk is not spec:  # one that was given is the giver's
                disk.close()
        self._disks = []

    # ---- registers ----

    @property
    def _selected(self) -> Disk | None:
        at = 1 if self.device & _SLAVE else 0
        return self._disks[at] if at < len(self._disks) else None

    def _interrupt(self, wanted: bool) -> None:
        self.pending = wanted
        self._line.set(wanted and not self.controls & _NIEN)

    def _look(self) -> int:
        if self._selected is None:
            return 0x00 if self._disks else _FLOATING
        return self.status

    @status.read
    def read_status(self) -> int:
        self._interrupt(False)
        return self._look()

    @alternate_status.read
    def read_alternate_status(self) -> int:
        return self._look()

    @error.read
    def read_error(self) -> int:
        return self.error if self._disks else _FLOATING

    @features.write
    def write_features(self, value: int) -> None:
        self.feature = value

    @device_control.write
    def control_device(self, value: int) -> None:
        was, self.controls = self.controls, value
        if value & _SRST and not was & _SRST:
            self._abandon()
            self._signature()
        self._interrupt(self.pending)

    def _abandon(self) -> None:
        self.buffer, self.position, self.left, self.writing = b"", 0, 0, False
        self.status = _READY
        self._interrupt(False)

    def _signature(self) -> None:
        """What the registers hold after a reset or a diagnostic (9.12)."""
        self.count = self.lba_low = 1
        self.lba_mid = self.lba_high = self.device = 0
        self.error = 0x01  # passed
        self.multiple = [0, 0]

    # ---- addresses ----

    def _address(self, ext: bool) -> int | None:
        """The sector that the registers name; None: there is no such."""
        low = (self.lba_low, self.lba_mid, self.lba_high)
        if ext:
            high = self.previous[1:]
            return int.from_bytes(bytes([*low, *high]), "little")
        if self.device & _LBA:
            return int.from_bytes(bytes([*low, self.device & 15]), "little")
        cylinder, head = self.lba_mid | self.lba_high << 8, self.device & 15
        if not 1 <= self.lba_low <= _SECTORS_OF_TRACK:
            return None
        return (cylinder * _HEADS + head) * _SECTORS_OF_TRACK + self.lba_low - 1

    def _set_address(self, sector: int, ext: bool) -> None:
        if ext or self.device & _LBA:
            parts = sector.to_bytes(6, "little")
            self.lba_low, self.lba_mid, self.lba_high = parts[:3]
            if ext:
                self.previous[1:] = list(parts[3:])
            else:
                self.device = self.device & 0xF0 | parts[3] & 15

    def _counted(self, ext: bool) -> int:
        if ext:
            return (self.count | self.previous[0] << 8) or 65536
        return self.count or 256

    # ---- commands ----

    @command.write
    def execute(self, value: int) -> None:
        if value == 0x90:  # for both disks, whichever is selected
            if self._disks:
                self._abandon()
                self._signature()
                self._interrupt(True)
            return
        disk = self._selected
        if disk is None:
            return
        self._abandon()
        self.error = 0
        handler = _COMMANDS.get(value & 0xF0 if value >> 4 in (1, 7) else value)
        if handler is None:
            self._fail(_ABORTED)
        else:
            handler(self, disk, value)

    def _fail(self, error: int) -> None:
        self.buffer, self.position, self.left, self.writing = b"", 0, 0, False
        self.error = error
        self.status = _READY | _ERR
        self._interrupt(True)

    def _done(self) -> None:
        self.status = _READY
        self._interrupt(True)

    def _accept(self, _disk: Disk, _command: int) -> None:
        self._done()

    def _begin(self, disk: Disk, command: int) -> int | None:
        """The first sector of a command that names some; None: it failed."""
        ext = command in _EXT
        sector, count = self._address(ext), self._counted(ext)
        if sector is None or sector + count > disk.sectors:
            self._fail(_NOT_FOUND)
            return None
        self.sector, self.left = sector, count
        self.block = 1
        if command in (0xC4, 0xC5, 0x29, 0x39):
            self.block = self.multiple[1 if self.device & _SLAVE else 0]
            if not self.block:
                self._fail(_ABORTED)
                return None
        return sector

    def _identify(self, disk: Disk, _command: int) -> None:
        self.buffer = identity(disk, self.multiple[1 if self.device & _SLAVE else 0])
        self.position, self.left, self.block = 0, 0, 1
        self.status = _READY | _DRQ
        self._interrupt(True)

    def _read(self, disk: Disk, command: int) -> None:
        if self._begin(disk, command) is not None:
            self._load(disk)

    def _load(self, disk: Disk) -> None:
        """The next piece of a command's data into the buffer; the guest may read it at once."""
        size = min(self.left, _BLOCK - _BLOCK % self.block)
        try:
            self.buffer = disk.read(self.sector, size)
        except DiskError:
            self._fail(_UNCORRECTABLE)
            return
        self.position = 0
        self.sector += size
        self.left -= size
        self.status = _READY | _DRQ
        self._interrupt(True)

    def _write(self, disk: Disk, command: int) -> None:
        if disk.readonly:
            self._fail(_ABORTED)
        elif self._begin(disk, command) is not None:
            self.writing = True
            self._expect()

    def _expect(self) -> None:
        """Ask for the next block. The first one of a command comes without an interrupt (9.6)."""
        self.buffer, self.position = bytes(min(self.left, self.block) * SECTOR), 0
        self._written = bytearray()
        self.status = _READY | _DRQ

    def _verify(self, disk: Disk, command: int) -> None:
        if self._begin(disk, command) is None:
            return
        self.left = 0
        self._done()

    def _flush(self, disk: Disk, _command: int) -> None:
        try:
            disk.flush()
        except DiskError:
            self._fail(_ABORTED)
        else:
            self._done()

    def _set_features(self, _disk: Disk, _command: int) -> None:
        # Write cache, look-ahead, power-on defaults, and programmed I/O modes (8.46).
        pio = self.feature == 0x03 and self.count in (0x00, 0x01, *range(0x08, 0x0D))
        if pio or self.feature in (0x02, 0x82, 0x55, 0xAA, 0x66, 0xCC):
            self._done()
        else:
            self._fail(_ABORTED)

    def _set_multiple(self, _disk: Disk, _command: int) -> None:
        size = self.count
        if size > _MULTIPLE or size & size - 1:
            self._fail(_ABORTED)
        else:
            self.multiple[1 if self.device & _SLAVE else 0] = size
            self._done()

    def _set_geometry(self, _disk: Disk, _command: int) -> None:
        if self.count == _SECTORS_OF_TRACK and self.device & 15 == _HEADS - 1:
            self._done()
        else:
            self._fail(_ABORTED)  # the one that IDENTIFY tells is the only one

    def _largest(self, disk: Disk, command: int) -> None:
        ext = command in _EXT
        last = disk.sectors - 1
        self.device |= 0 if ext else _LBA
        self._set_address(last if ext else min(last, (1 << 28) - 1), ext)
        self._done()

    def _check_power(self, _disk: Disk, _command: int) -> None:
        self.count = 0xFF  # active
        self._done()

    # ---- data ----

    def _left_in_block(self, writing: bool) -> int:
        """Bytes until the end of the block, at which the next interrupt comes; 0: none go there."""
        if not self.status & _DRQ or self.writing != writing:
            return 0
        size = self.block * SECTOR
        return min(size - self.position % size, len(self.buffer) - self.position)

    def _moved(self, size: int) -> None:
        """The guest has read or written so many bytes, up to the end of a block at most."""
        self.position += size
        if self.position < len(self.buffer):
            if not self.position % (self.block * SECTOR):
                self._interrupt(True)
            return
        disk = self._selected
        if disk is None:
            self._abandon()
        elif self.writing:
            self._store(disk)
        elif self.left:
            self._load(disk)
        else:
            self.buffer, self.position = b"", 0
            self.status = _READY

    def _store(self, disk: Disk) -> None:
        count = len(self._written) // SECTOR
        try:
            disk.write(self.sector, bytes(self._written))
        except DiskError:
            self._fail(_UNCORRECTABLE)
            self.status |= _DF
            return
        self.sector += count
        self.left -= count
        if self.left:
            self._expect()
            self._interrupt(True)
        else:
            self.buffer, self.position, self.writing = b"", 0, False
            self._done()

    @data.read
    def read_data(self) -> int:
        return int.from_bytes(self.read_block(2), "little")

    @data.read_block
    def read_block(self, size: int) -> bytes:
        """The next bytes of a transfer; all ones where there are none."""
        pieces = []
        while take := min(size, self._left_in_block(writing=False)):
            pieces.append(self.buffer[self.position : self.position + take])
            size -= take
            self._moved(take)
        return b"".join(pieces) + b"\xff" * size

    @data.write
    def write_data(self, value: int) -> None:
        self.write_block(value.to_bytes(2, "little"))

    @data.write_block
    def write_block(self, data: bytes) -> None:
        while take := min(len(data), self._left_in_block(writing=True)):
            self._written += data[:take]
            data = data[take:]
            self._moved(take)

    def state(self) -> dict[str, Any]:
        return super().state() | {"written": bytes(self.__dict__.get("_written", b""))}

    def load_state(self, state: Any) -> None:
        own = dict(state)
        self._written = bytearray(own.pop("written", b""))
        for name, value in own.items():
            self.__dict__[name] = value
        self._interrupt(self.pending)


def _two_deep(register: Register, at: int) -> None:
    """A write pushes the byte that was there one deeper, where 48-bit commands find it."""

    @register.push
    def push(device: AtaController, old: int) -> None:
        device.controls &= ~_HOB
        device.previous[at] = old

    @register.read
    def read(device: AtaController) -> int:
        if not device._disks:
            return _FLOATING
        deep = device.controls & _HOB
        return device.previous[at] if deep else int(getattr(device, register.name))


for _at, _each in enumerate(
    (AtaController.count, AtaController.lba_low, AtaController.lba_mid, AtaController.lba_high)
):
    _two_deep(_each, _at)


def identity(disk: Disk, multiple: int) -> bytes:
    """What IDENTIFY DEVICE answers (8.15): 256 words."""

    def text(value: str, size: int) -> bytes:
        padded = value.ljust(size).encode("ascii")[:size]
        return b"".join(padded[i + 1 : i + 2] + padded[i : i + 1] for i in range(0, size, 2))

    words = bytearray(512)

    def put(word: int, *values: int) -> None:
        struct.pack_into(f"<{len(values)}H", words, 2 * word, *values)

    cylinders = min(disk.sectors // (_HEADS * _SECTORS_OF_TRACK), 16383)
    by_chs = cylinders * _HEADS * _SECTORS_OF_TRACK
    short = min(disk.sectors, (1 << 28) - 1)
    put(0, 0x0040, cylinders, 0, _HEADS, 0, 0, _SECTORS_OF_TRACK)
    words[20:40] = text("KVMCPU0000000000001", 20)
    words[46:54] = text("1.0", 8)
    words[54:94] = text("KVMCPU DISK", 40)
    put(47, 0x8000 | _MULTIPLE)
    put(49, 0x0F00)  # LBA, IORDY; no DMA
    put(50, 0x4000, 0x0200)
    put(53, 0x0003, cylinders, _HEADS, _SECTORS_OF_TRACK, by_chs & 0xFFFF, by_chs >> 16)
    put(59, 0x0100 | multiple if multiple else 0, short & 0xFFFF, short >> 16)
    put(64, 0x0003)  # modes 3 and 4 of programmed I/O
    put(67, 120, 120)
    put(80, 0x0070, 0x0019)  # ATA-4 to ATA-6
    put(82, 0x4020, 0x7400, 0x4000, 0x0020, 0x3400, 0x4000)  # cache, flush, 48-bit
    put(100, *(disk.sectors >> 16 * i & 0xFFFF for i in range(4)))
    words[510] = 0xA5
    words[511] = -sum(words[:511]) & 0xFF
    return bytes(words)


_COMMANDS: dict[int, Callable[[AtaController, Disk, int], None]] = {
    0x10: AtaController._accept,  # RECALIBRATE, which old drivers send
    **dict.fromkeys((0x20, 0x21, 0x24, 0xC4, 0x29), AtaController._read),
    **dict.fromkeys((0x30, 0x31, 0x34, 0xC5, 0x39), AtaController._write),
    **dict.fromkeys((0x40, 0x41, 0x42), AtaController._verify),
    0x70: AtaController._accept,  # SEEK
    0x91: AtaController._set_geometry,
    0xC6: AtaController._set_multiple,
    **dict.fromkeys((0xE0, 0xE1, 0xE2, 0xE3, 0xE6), AtaController._accept),  # power management
    0xE5: AtaController._check_power,
    **dict.fromkeys((0xE7, 0xEA), AtaController._flush),
    0xEC: AtaController._identify,
    0xEF: AtaController._set_features,
    **dict.fromkeys((0xF8, 0x27), AtaController._largest),
}
