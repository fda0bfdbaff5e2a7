# SPDX-License-Identifier: MIT
"""What a loader is, and what all of them need: where in memory an image lies and how it starts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from kvmcpu.loaders import x86_start

if TYPE_CHECKING:
    from kvmcpu._kvm import VM, Vcpu

Mode = Literal["real", "protected", "long", "reset"]

PAGE = 0x1000
FIRST_FREE = 0x1000  # below are real mode's interrupt vectors and the firmware's data
ARGUMENTS = 0x500  # to FIRST_FREE: the first address that PC software may use
HOLE = (0xA0000, 0x100000)  # a PC's video memory and firmware
STACK_SIZE = 64 << 10
_PIECE = 1 << 20


class LoadError(Exception):
    """An image cannot be loaded; the message says why, and what to do."""


@dataclass(frozen=True)
class Start:
    """How a loaded image is started: what a loader's ``load()`` returns."""

    mode: Mode
    """The processor's mode; "reset" is the state in which a processor comes out of its reset."""
    entry: int
    """The physical address of the first instruction."""
    taken: tuple[tuple[int, int], ...] = ()
    """Where the image lies: pairs of a first address and the one after the last."""

    def begin(self, vm: VM, cpu: Vcpu, arguments: Sequence[str] = ()) -> None:
        """Set a vCPU's registers, and write the tables that its mode needs into guest memory.

        Tables and a stack of 64 KiB go to the first room that the image leaves free; real mode
        has its stack below the image. arguments are joined by spaces, and RDI, or EDI or DI, is
        the address of this text, which ends with a zero byte; without arguments it is 0.
        """
        if self.mode == "reset":
            if arguments:
                raise LoadError("firmware takes no arguments")
            return
        if self.mode == "real":
            lowest = min((start for start, _ in self.taken), default=self.entry)
            x86_start.real(cpu, self.entry, stack=min(lowest, 0x10000))
        else:
            self._begin_with_tables(vm, cpu)
        cpu.regs.rdi = self._place_arguments(vm, arguments)

    def _begin_with_tables(self, vm: VM, cpu: Vcpu) -> None:
        top = max(memory.address + memory.size for memory in vm.memory)
        mapped = max(top, 4 * x86_start.GIB)
        size = x86_start.tables_size(self.mode, mapped)
        tables = find_room(vm, size + STACK_SIZE, self.taken)
        stack = tables + size + STACK_SIZE
        if self.mode == "long":
            x86_start.long(vm, cpu, self.entry, stack=stack, tables=tables, mapped=mapped)
        else:
            x86_start.protected(vm, cpu, self.entry, stack=stack, tables=tables)

    def _place_arguments(self, vm: VM, arguments: Sequence[str]) -> int:
        if not arguments:
            return 0
        text = " ".join(arguments).encode() + b"\0"
        if len(text) > FIRST_FREE - ARGUMENTS:
            raise LoadError(
                f"the arguments have {len(text)} bytes, and there is room for"
                f" {FIRST_FREE - ARGUMENTS}"
            )
        clash = overlapping((ARGUMENTS, ARGUMENTS + len(text)), self.taken)
        if clash:
            raise LoadError(
                f"the arguments go to {ARGUMENTS:#x}, where the image lies ({span(clash)}):"
                " load it higher or give no arguments"
            )
        vm.write(ARGUMENTS, text)
        return ARGUMENTS


@dataclass(frozen=True)
class Segment:
    """What is copied to memory: data at a physical address, then zeros up to a size."""

    physical: int
    data: bytes
    size: int
    virtual: int | None = None
    """The address that the code in it uses, where that is another one."""

    @property
    def part(self) -> tuple[int, int]:
        return self.physical, self.physical + self.size

    def load(self, vm: VM) -> None:
        vm.write(self.physical, self.data)
        # In pieces, as a BSS can be larger than what one wants to have twice.
        for at in range(len(self.data), self.size, _PIECE):
            vm.write(self.physical + at, bytes(min(_PIECE, self.size - at)))


class Loader(Protocol):
    """A file that can be brought into a guest's memory."""

    @property
    def kind(self) -> str:
        """What the file is, for a person."""

    def load(self, vm: VM) -> Start:
        """Write the image into the VM's memory. Raises LoadError if it does not fit."""


def contents(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes. Raises OSError, and TypeError for what is no path."""
    # To open() a number is a descriptor, and would be closed.
    with open(os.fspath(path), "rb") as file:
        return file.read()


def span(part: tuple[int, int]) -> str:
    """A range as text."""
    return f"{part[0]:#x} to {part[1] - 1:#x}"


def overlapping(part: tuple[int, int], others: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """The first of the others that shares an address with the part."""
    return next((o for o in others if part[0] < o[1] and o[0] < part[1]), None)


def merged(parts: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, with those that touch made one."""
    result: list[tuple[int, int]] = []
    for start, end in sorted(parts):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def ram(vm: VM) -> list[tuple[int, int]]:
    """The ranges of memory that the guest can write."""
    return merged((m.address, m.address + m.size) for m in vm.memory if not m.readonly)


def check_ram(vm: VM, part: tuple[int, int], what: str) -> None:
    """Raise LoadError unless the guest has memory at all of a range."""
    available = ram(vm)
    if not any(start <= part[0] and part[1] <= end for start, end in available):
        has = ", ".join(span(a) for a in available) or "none"
        raise LoadError(f"{what} needs memory at {span(part)}; the guest has {has}")


def find_room(
    vm: VM,
    size: int,
    taken: Iterable[tuple[int, int]],
    *,
    above: int = 0,
    what: str = "the start tables and the stack",
) -> int:
    """The lowest page address from ``above`` on, below 4 GiB, at which size bytes are free."""
    occupied = merged([(0, max(FIRST_FREE, above)), HOLE, *taken])
    for start, end in ram(vm):
        place = -(-start // PAGE) * PAGE
        for first, last in occupied:
            if place + size <= first:
                break
            if last > place:
                place = -(-last // PAGE) * PAGE
        if place + size <= min(end, 4 * x86_start.GIB):
            return place
    raise LoadError(
        f"no room for {what}, {size >> 10} KiB, beside the image: give the guest more memory"
    )
