# SPDX-License-Identifier: MIT
"""The vocabulary in which a device is written.

A device is one class: a dataclass, whose fields are its options, with ranges of ports or addresses,
registers in them, and what else it has to remember::

    @dataclass(eq=False, kw_only=True)
    class Counter(Device):
        \"\"\"Counts what is written to it.\"\"\"

        port: int = 0x300

        ports = Ports("port", 2)                       # at the port that the option says
        count = Register(ports, 0, access="r")         # one byte at offset 0, reset to 0
        control = Register(ports, 1, mask=0x81, fields={"CLEAR": 0, "STOP": 7})

        @control.write
        def on_control(self, value: int) -> None:
            if value & 1:
                self.count = 0

Outside of the effects a register is an attribute: ``self.count`` is its value, an int. The same
declarations give the device's state (``state()``, ``load_state()``) and its description.
Effects run on a vCPU's thread with the VM's device lock held (``VM.map_io``).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, overload

if TYPE_CHECKING:
    from kvmcpu._kvm import BusRange
    from kvmcpu.boards.base import Board

T = TypeVar("T")
D = TypeVar("D", bound="Device")

Reader = Callable[[], int]
Writer = Callable[[int], object]


class DeviceError(Exception):
    """A device cannot be built or attached; the message says why, and what to do."""


class Range:
    """Where registers are: ``size`` ports or bytes from ``base + start`` on.

    base: a number, or the name of the option that is the number.
    string: repeated string instructions come in one call, to registers that have block effects.
    output: what is written here goes to the board's console in C, without the registers. cells:
    what is read here comes from the registers in C, without their effects; all of them are Cells.
    Both hold until ``Device.serve(range, in_c=False)``.
    """

    space: ClassVar[Literal["io", "mmio"]]

    def __init__(
        self,
        base: int | str,
        size: int,
        *,
        start: int = 0,
        string: bool = False,
        output: bool = False,
        cells: bool = False,
    ) -> None:
        self.base = base
        self.size = size
        self.start = start
        self.string = string
        self.output = output
        self.cells = cells
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def address(self, device: Device) -> int:
        """The first port or address, in this device."""
        base = self.base if isinstance(self.base, int) else int(getattr(device, self.base))
        return base + self.start


class Ports(Range):
    """A range of I/O ports."""

    space = "io"


class Mmio(Range):
    """A range of physical addresses."""

    space = "mmio"


class Register:
    """A register: ``width`` bytes at an offset of a range.

    access: "rw"; "r", writes are dropped; "w", reads are all ones and nothing is stored. reset: its
    value after a reset. mask: the bits that a write changes. page: it is there only while this
    page is selected (``Device.select()``); None: in every page that has no other register there.
    fields: names of bits, or of (lowest bit, number of bits), for its description. fifo: a wider
    access reads or writes it several times.

    Effects: ``@reg.read`` gives the value that the guest reads; ``@reg.write`` is called with the
    value that the guest wrote, after it was stored, and ``@reg.push``, before that, with the value
    that was there; ``@reg.read_block`` returns that many bytes, and ``@reg.write_block`` gets
    bytes, of a repeated string instruction.
    """

    def __init__(
        self,
        range: Range,  # noqa: A002
        offset: int,
        width: int = 1,
        *,
        access: Literal["rw", "r", "w"] = "rw",
        reset: int = 0,
        mask: int | None = None,
        page: str | None = None,
        fields: Mapping[str, int | tuple[int, int]] | None = None,
        fifo: bool = False,
    ) -> None:
        self.range = range
        self.offset = offset
        self.width = width
        self.access = access
        self.reset = reset
        self.mask = (1 << 8 * width) - 1 if mask is None else mask
        self.page = page
        self.fields = dict(fields or {})
        self.fifo = fifo
        self.name = ""
        self.effects: dict[str, Callable[..., Any]] = {}

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    # The value is in the instance's dictionary, where it hides the register: no call for it.
    @overload
    def __get__(self, device: None, owner: type) -> Register: ...
    @overload
    def __get__(self, device: Device, owner: type) -> int: ...
    def __get__(self, device: Device | None, owner: type) -> Register | int:
        return self if device is None else self.reset

    if TYPE_CHECKING:

        def __set__(self, device: Device, value: int) -> None: ...

    def read(self, effect: Callable[[D], int]) -> Callable[[D], int]:
        self.effects["read"] = effect
        return effect

    def write(self, effect: Callable[[D, int], None]) -> Callable[[D, int], None]:
        self.effects["write"] = effect
        return effect

    def push(self, effect: Callable[[D, int], None]) -> Callable[[D, int], None]:
        self.effects["push"] = effect
        return effect

    def read_block(self, effect: Callable[[D, int], bytes]) -> Callable[[D, int], bytes]:
        self.effects["read_block"] = effect
        return effect

    def write_block(self, effect: Callable[[D, bytes], None]) -> Callable[[D, bytes], None]:
        self.effects["write_block"] = effect
        return effect

    def describe(self, value: int) -> str:
        """The value for a person: hexadecimal, and the fields that are not zero."""
        parts = []
        for name, place in self.fields.items():
            low, bits = (place, 1) if isinstance(place, int) else place
            part = value >> low & (1 << bits) - 1
            if part:
                parts.append(name if bits == 1 else f"{name}={part:#x}")
        text = f"{value:#0{2 + 2 * self.width}x}"
        return f"{text} ({' '.join(parts)})" if parts else text


class Cell(Register):
    """A register in a range with cells: its value is in memory that the guest reads in C."""

    @overload
    def __get__(self, device: None, owner: type) -> Register: ...
    @overload
    def __get__(self, device: Device, owner: type) -> int: ...
    def __get__(self, device: Device | None, owner: type) -> Register | int:
        if device is None:
            return self
        cells = device.cells(self.range)
        return int.from_bytes(cells[self.offset : self.offset + self.width], "little")

    def __set__(self, device: Device, value: int) -> None:
        end = self.offset + self.width
        device.cells(self.range)[self.offset : end] = value.to_bytes(self.width, "little")


class State(Generic[T]):
    """What a device remembers besides its registers: plain data, which a reset makes anew."""

    def __init__(self, make: Callable[[], T]) -> None:
        self.make = make
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, device: None, owner: type) -> State[T]: ...
    @overload
    def __get__(self, device: Device, owner: type) -> T: ...
    def __get__(self, device: Device | None, owner: type) -> State[T] | T:
        if device is None:
            return self
        value = device.__dict__[self.name] = self.make()
        return value

    if TYPE_CHECKING:

        def __set__(self, device: Device, value: T) -> None: ...


def _ones(size: int) -> int:
    return (1 << 8 * size) - 1


_Tables = tuple[dict[int, tuple[int, Reader, Register]], dict[int, tuple[int, Writer, Register]]]


def _drop(_value: int) -> None:
    """A write that nobody wants."""


class _Window:
    """A range of an attached device: what its accesses go to."""

    def __init__(self, device: Device, where: Range) -> None:
        self.range = where
        self._device = device
        registers = [r for r in device.registers() if r.range is where]
        common = [r for r in registers if r.page is None]
        self._pages: dict[str | None, _Tables] = {None: self._tables(common)}
        for page in {r.page for r in registers} - {None}:
            self._pages[page] = self._tables(common + [r for r in registers if r.page == page])
        self.select(None)

    def _tables(self, registers: list[Register]) -> _Tables:
        readers: dict[int, tuple[int, Reader, Register]] = {}
        writers: dict[int, tuple[int, Writer, Register]] = {}
        for register in registers:
            if register.access != "w":
                readers[register.offset] = register.width, self._reader(register), register
            if register.access != "r":
                writers[register.offset] = register.width, self._writer(register), register
        return readers, writers

    def _reader(self, register: Register) -> Reader:
        effect = register.effects.get("read")
        if effect is not None:
            return partial(effect, self._device)
        if isinstance(register, Cell):
            device, cell = self._device, register
            return lambda: cell.__get__(device, type(device))
        return partial(self._device.__dict__.__getitem__, register.name)

    def _writer(self, register: Register) -> Writer:
        values, name, mask = self._device.__dict__, register.name, register.mask
        effect = register.effects.get("write")
        call = partial(effect, self._device) if effect is not None else None
        whole = mask == _ones(register.width)
        if register.access == "w":
            return call or _drop
        if isinstance(register, Cell):
            raise TypeError(f"{register.name}: a cell cannot be written by the guest")

        pushed = register.effects.get("push")
        push = partial(pushed, self._device) if pushed is not None else None

        def store(value: int) -> None:
            if push is not None:
                push(values[name])
            values[name] = value if whole else value & mask | values[name] & ~mask
            if call is not None:
                call(value)

        return store

    def select(self, page: str | None) -> None:
        self._readers, self._writers = self._pages[page]

    def read(self, offset: int, size: int) -> int:
        found = self._readers.get(offset)
        if found is not None and found[0] == size:
            return found[1]()
        result = position = 0
        while position < size:
            found = self._readers.get(offset + position)
            if found is None:
                result |= 0xFF << 8 * position
                position += 1
                continue
            width, reader, register = found
            times = -(-(size - position) // width) if register.fifo else 1
            for _ in range(times):
                result |= reader() << 8 * position
                position += width
        return result & _ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        found = self._writers.get(offset)
        if found is not None and found[0] == size:
            found[1](value)
            return
        position = 0
        while position < size:
            found = self._writers.get(offset + position)
            if found is None:
                position += 1
                continue
            width, writer, register = found
            times = -(-(size - position) // width) if register.fifo else 1
            for _ in range(times):
                writer(value >> 8 * position & _ones(width))
                position += width

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        found = self._readers.get(offset)
        effect = found and found[2].effects.get("read_block")
        if effect and found and size % found[0] == 0:
            return bytes(effect(self._device, size * count))
        return b"".join(self.read(offset, size).to_bytes(size, "little") for _ in range(count))

    def write_string(self, offset: int, size: int, data: bytes) -> None:
        found = self._writers.get(offset)
        effect = found and found[2].effects.get("write_block")
        if effect and found and size % found[0] == 0:
            effect(self._device, data)
            return
        for at in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[at : at + size], "little"))

    def map(self, *, in_c: bool = True) -> BusRange:
        board, where = self._device.board, self.range
        base, size = where.address(self._device), where.size
        add = board.vm.map_io if where.space == "io" else board.vm.map_mmio
        if where.string:
            return board.vm.map_io(base, size, self.read_string, self.write_string, string=True)
        read = self._device.cells(where) if in_c and where.cells else self.read
        return add(base, size, read, board.output if in_c and where.output else self.write)


@dataclasses.dataclass(eq=False, kw_only=True)
class Device:
    """A piece of hardware on a board's bus. Subclasses are dataclasses; fields are options."""

    board: ClassVar[Board]
    """The board that it is attached to; set by ``attach()``."""

    @classmethod
    def _declared(cls, kind: type[T]) -> Iterator[T]:
        seen = set()
        for owner in cls.__mro__:
            for name, value in vars(owner).items():
                if isinstance(value, kind) and name not in seen:
                    seen.add(name)
                    yield value

    @classmethod
    def registers(cls) -> list[Register]:
        """The registers that the class declares."""
        return list(cls._declared(Register))

    def ranges(self) -> list[Range]:
        """The ranges that it is to have on the bus; a device may leave some out by its options."""
        return list(self._declared(Range))

    def attach(self, board: Board) -> None:
        """Put it on a board's bus: reset, then map its ranges, then ``connect()``."""
        self.__dict__["board"] = board
        self.reset()
        self._windows = {where.name: _Window(self, where) for where in self.ranges()}
        self._mapped: dict[str, BusRange] = {}
        for name, window in self._windows.items():
            try:
                self._mapped[name] = window.map()
            except ValueError as error:
                self.detach()
                raise DeviceError(f"{self!r} cannot be attached: {error}") from error
        self.connect()

    def connect(self) -> None:
        """Called when it is on the bus: the place to take interrupt lines, start events."""

    def detach(self) -> None:
        """Take it off the bus."""
        for mapped in self._mapped.values():
            mapped.remove()
        self._mapped.clear()

    def reset(self) -> None:
        """To the state after power-on. Subclasses extend it."""
        for register in self.registers():
            setattr(self, register.name, register.reset)
        for kept in self._declared(State):
            self.__dict__[kept.name] = kept.make()

    def select(self, where: Range, page: str | None) -> None:
        """Have a page's registers in a range, in place of those that are there without a page."""
        self._windows[where.name].select(page)

    def serve(self, where: Range, *, in_c: bool) -> None:
        """Whether a range's accesses are served in C, where it says so, or by its registers."""
        name = where.name
        self._mapped.pop(name).remove()
        self._mapped[name] = self._windows[name].map(in_c=in_c)

    def cells(self, where: Range) -> bytearray:
        """The memory of a range with cells."""
        found: bytearray | None = self.__dict__.get(f"{where.name} cells")
        if found is None:
            found = self.__dict__[f"{where.name} cells"] = bytearray(where.size)
        return found

    def state(self) -> dict[str, Any]:
        """Its registers and what else it remembers, as a copy: plain data."""
        names = [r.name for r in self.registers() if r.access != "w"]
        names += [kept.name for kept in self._declared(State)]
        return {name: copy.deepcopy(getattr(self, name)) for name in names}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state()`` returned. Subclasses extend it: lines, pages, events."""
        unknown = set(state) - set(self.state())
        if unknown:
            raise ValueError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        for name, value in state.items():
            setattr(self, name, copy.deepcopy(value))

    def options(self) -> dict[str, Any]:
        """Its options that are not the default, by name."""
        result = {}
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if option.default_factory is not dataclasses.MISSING:
                default = option.default_factory()
            else:
                default = option.default
            if value != default:
                result[option.name] = value
        return result

    def describe(self) -> list[str]:
        """What it is and where, and its registers: lines for a person."""
        lines = [repr(self)]
        for where in self.ranges():
            first = where.address(self)
            kind = "ports" if where.space == "io" else "addresses"
            lines.append(f"  {kind} {first:#x}-{first + where.size - 1:#x}")
        for register in self.registers():
            if register.access != "w":
                lines.append(f"  {register.name} {register.describe(getattr(self, register.name))}")
        return lines
