# SPDX-License-Identifier: MIT
"""What a bare guest talks through: console output on three ports, and the debug exit.

| port          | what |
| ------------- | --- |
| 0x3f8 - 0x3ff | a serial port (16550) that is always ready to send and never receives |
| 0xe9, 0x402   | debug consoles: a byte written is output; they read 0xe9, "I am there" |
| 0xf4 - 0xf7   | debug exit: the value written ends the run and is its status |

The bytes are collected in C, and Python is not asked for any of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmcpu._kvm import ByteSink

if TYPE_CHECKING:
    from kvmcpu._kvm import VM, BusRange

SERIAL = 0x3F8
DEBUG_CONSOLES = (0xE9, 0x402)
DEBUG_EXIT = 0xF4

# Registers of the 16550, as offsets, and the bits of them that matter here (its data sheet).
_IIR, _LCR, _LSR, _MSR = 2, 3, 5, 6
_LCR_DLAB = 0x80
_IIR_NONE_PENDING = 0x01
_LSR_TRANSMITTER_EMPTY = 0x60
_MSR_CONNECTED = 0xB0  # DCD, DSR, CTS


class SerialOutput:
    """The sending half of a 16550. What is sent goes to the sink.

    With the divisor latch open (LCR bit 7), port 0 is the divisor and not data: the sink is then
    taken off the bus.
    """

    def __init__(self, vm: VM, sink: ByteSink, base: int = SERIAL) -> None:
        self._vm = vm
        self._sink = sink
        self._base = base
        self._registers = bytearray(8)
        self._divisor = [12, 0]  # 9600 baud
        self._data = self._map_data()
        self._rest = vm.map_io(base + 1, 7, self._read, self._write)

    def _map_data(self) -> BusRange:
        if self._registers[_LCR] & _LCR_DLAB:
            return self._vm.map_io(self._base, 1, self._read_divisor, self._write_divisor)
        return self._vm.map_io(self._base, 1, lambda _offset, _size: 0, self._sink)

    def _read_divisor(self, offset: int, _size: int) -> int:
        return self._divisor[offset]

    def _write_divisor(self, offset: int, _size: int, value: int) -> None:
        self._divisor[offset] = value & 0xFF

    def _read(self, offset: int, size: int) -> int:
        register = offset + 1
        if size != 1:
            return (1 << 8 * size) - 1
        if register == 1 and self._registers[_LCR] & _LCR_DLAB:
            return self._divisor[1]
        fixed = {_IIR: _IIR_NONE_PENDING, _LSR: _LSR_TRANSMITTER_EMPTY, _MSR: _MSR_CONNECTED}
        return fixed.get(register, self._registers[register])

    def _write(self, offset: int, size: int, value: int) -> None:
        register = offset + 1
        if size != 1:
            return
        if register == 1 and self._registers[_LCR] & _LCR_DLAB:
            self._divisor[1] = value
            return
        toggled = register == _LCR and (self._registers[_LCR] ^ value) & _LCR_DLAB
        self._registers[register] = value
        if toggled:
            self._data.remove()
            self._data = self._map_data()


class Console:
    """A VM's console output and debug exit.

    fd: a file descriptor that the output is written to at once. limit: how many of its last
    bytes are kept in ``sink``.
    """

    def __init__(self, vm: VM, *, fd: int | None = None, limit: int = 16 << 20) -> None:
        self.sink = ByteSink(limit=limit, fd=fd)
        """The output."""
        self.status: int | None = None
        """What the guest wrote to the debug exit; None until it does."""
        self._vm = vm
        self.serial = SerialOutput(vm, self.sink)
        for port in DEBUG_CONSOLES:
            vm.map_io(port, 1, lambda _offset, _size: 0xE9, self.sink)
        vm.map_io(DEBUG_EXIT, 4, write=self._exit)

    @property
    def text(self) -> str:
        """The output as text."""
        return self.sink.text

    def _exit(self, _offset: int, _size: int, value: int) -> None:
        if self.status is None:
            self.status = value
        self._vm.stop()
