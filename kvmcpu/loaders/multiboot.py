# SPDX-License-Identifier: MIT
"""Multiboot kernels, by version 0.6.96 of the Multiboot Specification.

The kernel is an ELF file, or says itself where it goes. It starts in 32-bit protected mode with
EAX = 0x2BADB002 and EBX at the information structure: command line, modules, memory map.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvmcpu.loaders.base import (
    HOLE,
    PAGE,
    LoadError,
    Segment,
    Start,
    check_ram,
    contents,
    find_room,
    ram,
)
from kvmcpu.loaders.elf import MAGIC as ELF_MAGIC
from kvmcpu.loaders.elf import ElfImage, Sections

if TYPE_CHECKING:
    from kvmcpu._kvm import VM, Vcpu

LOADER_NAME = b"kvmcpu\0"
MIB = 1 << 20
AVAILABLE, RESERVED = 1, 2  # types of memory (3.3, and 3.6.8 of version 2)

_MAGIC = 0x1BADB002
_BOOTED = 0x2BADB002
_SEARCHED = 8192
_VIDEO, _ADDRESSES = 1 << 2, 1 << 16
_UNKNOWN = 0xFFF8  # flags that must be understood, and are not defined
_INFO_SIZE = 120  # the fields of 3.3, up to a multiple of 8
_HAS_MEMORY, _HAS_CMDLINE, _HAS_MODULES, _HAS_SECTIONS = 1, 4, 8, 0x20
_HAS_MAP, _HAS_NAME = 0x40, 0x200


@dataclass(frozen=True)
class Module:
    """A file that is handed to a kernel, with a command line of its own."""

    data: bytes
    command_line: str

    @classmethod
    def read(cls, spec: Any) -> Module:
        """From a path, or a pair of a path and a command line. Raises LoadError."""
        if isinstance(spec, cls):
            return spec
        path, line = spec if isinstance(spec, tuple) else (spec, None)
        try:
            data = contents(path)
        except OSError as error:
            raise LoadError(
                f"cannot read the module {os.fspath(path)}: {error.strerror}"
            ) from error
        except (TypeError, ValueError) as error:
            raise LoadError(f"a module is a path, not {path!r}: {error}") from error
        return cls(data, os.fspath(path) if line is None else line)


def by_addresses(
    data: bytes, header: int, header_address: int, load: int, load_end: int, bss_end: int
) -> Segment:
    """The segment of a file that its header's addresses say; 0 for what the header leaves open."""
    start = header - (header_address - load)
    if load > header_address or start < 0:
        raise LoadError(
            "the multiboot header's load address lies behind the header, or before the file"
        )
    size = load_end - load if load_end else len(data) - start
    if size < 0 or start + size > len(data):
        raise LoadError(
            "the multiboot header's load_end_addr lies before its start or behind the file"
        )
    total = max(bss_end - load, size) if bss_end else size
    if bss_end and bss_end < load + size:
        raise LoadError("the multiboot header's bss_end_addr lies before the end of what is loaded")
    return Segment(load, data[start : start + size], total)


def memory_map(vm: VM) -> list[tuple[int, int, int]]:
    """Start, size and type of the guest's memory as PC firmware tells it: without the hole."""
    result = []
    for start, end in ram(vm):
        for low, high in ((start, min(end, HOLE[0])), (max(start, HOLE[1]), end)):
            if low < high:
                result.append((low, high - low, AVAILABLE))
    result.append((0xF0000, HOLE[1] - 0xF0000, RESERVED))
    return sorted(result)


def lower_and_upper(vm: VM) -> tuple[int, int]:
    """KiB of memory from 0, and from 1 MiB up to the first hole (3.3)."""
    sizes = {start: size for start, size, kind in memory_map(vm) if kind == AVAILABLE}
    return min(sizes.get(0, 0), 640 << 10) >> 10, min(sizes.get(MIB, 0) >> 10, 0xFFFFFFFF)


def _top(taken: Sequence[tuple[int, int]]) -> int:
    """Where what a kernel is given may begin: kernels take memory below 1 MiB for their own."""
    return max(MIB, *(end for _, end in taken))


class Kernel:
    """What both versions of multiboot have in common: parts, an entry point, modules, symbols."""

    kind = "multiboot kernel"

    def __init__(
        self,
        name: str,
        segments: Sequence[Segment],
        entry: int,
        modules: Sequence[Any],
        sections: Sections | None,
    ) -> None:
        self.name = name
        self.sections = sections
        self.segments = tuple(segments)
        self.entry = entry
        self.modules = tuple(Module.read(spec) for spec in modules)
        if entry >= 1 << 32 or any(s.part[1] > 1 << 32 for s in segments):
            raise LoadError("a multiboot kernel lies below 4 GiB")
        if not any(s.part[0] <= entry < s.part[1] for s in segments):
            raise LoadError(f"the entry point {entry:#x} lies outside of what is loaded")

    def load(self, vm: VM) -> Start:
        for segment in self.segments:
            check_ram(vm, segment.part, "the multiboot kernel")
        for segment in self.segments:
            segment.load(vm)
        taken = [segment.part for segment in self.segments]
        top = _top(taken)
        placed = []

        def place(data: bytes, what: str) -> int:
            address = find_room(vm, max(len(data), 1), taken, above=top, what=what)
            vm.write(address, data)
            end = address + len(data)
            taken.append((address, max(-(-end // PAGE) * PAGE, address + PAGE)))
            return address

        for module in self.modules:
            address = place(module.data, f"the module {module.command_line!r}")
            placed.append((address, address + len(module.data), module.command_line))
        table = b""
        if self.sections is not None:
            loose = [place(data, "the kernel's symbols") for _, data in self.sections.loose]
            table = self.sections.placed(loose)
        return KernelStart("protected", self.entry, tuple(taken), self, tuple(placed), table)

    def information(self, vm: VM, address: int, command_line: str, start: KernelStart, /) -> bytes:
        """The information structure, which is to lie at an address."""
        raise NotImplementedError

    booted: int
    """What EAX tells the kernel."""


@dataclass(frozen=True)
class KernelStart(Start):
    """The start of a multiboot kernel."""

    kernel: Kernel | None = None
    modules: tuple[tuple[int, int, str], ...] = ()
    sections: bytes = b""
    """The table of section headers, with the addresses of what no segment loaded."""

    def begin(self, vm: VM, cpu: Vcpu, arguments: Sequence[str] = ()) -> None:
        assert self.kernel is not None
        line = " ".join((self.kernel.name, *arguments))
        size = len(self.kernel.information(vm, 0, line, self))
        address = find_room(
            vm, size, self.taken, above=_top(self.taken), what="the boot information"
        )
        vm.write(address, self.kernel.information(vm, address, line, self))
        Start("protected", self.entry, (*self.taken, (address, address + size))).begin(vm, cpu)
        cpu.regs.rax = self.kernel.booted
        cpu.regs.rbx = address


class MultibootImage(Kernel):
    """A kernel with a multiboot header of version 1. Raises LoadError for a broken one."""

    booted = _BOOTED

    def __init__(self, data: bytes, name: str = "kernel", modules: Sequence[Any] = ()) -> None:
        header = find_header(data)
        if header is None:
            raise LoadError("there is no multiboot header")
        flags = struct.unpack_from("<I", data, header + 4)[0]
        if flags & _UNKNOWN:
            raise LoadError(f"the multiboot header asks for the unknown: flags {flags:#x}")
        addresses = self._fields(data, header, 12, 5) if flags & _ADDRESSES else None
        if flags & _VIDEO and self._fields(data, header, 32, 1)[0] == 0:
            raise LoadError("the multiboot kernel asks for a graphics mode, and there is text only")
        sections = None
        if addresses is not None:
            *place, entry = addresses
            segments = [by_addresses(data, header, *place)]
        elif data.startswith(ELF_MAGIC):
            image = ElfImage(data)
            segments, entry, sections = image.segments, image.entry, image.sections
        else:
            raise LoadError("the multiboot kernel is no ELF file, and says no addresses")
        super().__init__(name, segments, entry, modules, sections)

    @staticmethod
    def _fields(data: bytes, header: int, offset: int, count: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(f"<{count}I", data, header + offset)
        except struct.error:
            raise LoadError("the multiboot header is cut short") from None

    def information(self, vm: VM, address: int, command_line: str, start: KernelStart, /) -> bytes:
        modules = start.modules
        tail = bytearray()

        def put(data: bytes) -> int:
            place = address + _INFO_SIZE + len(tail)
            tail.extend(data + bytes(-len(data) % 8))
            return place

        line = put(os.fsencode(command_line) + b"\0")
        texts = [put(os.fsencode(text) + b"\0") for _, _, text in modules]
        entries = (
            struct.pack("<4I", begin, end, text, 0)
            for (begin, end, _), text in zip(modules, texts, strict=True)
        )
        module_list = put(b"".join(entries))
        map_ = b"".join(struct.pack("<IQQI", 20, *entry) for entry in memory_map(vm))
        map_at = put(map_)
        name = put(LOADER_NAME)
        flags = _HAS_MEMORY | _HAS_CMDLINE | _HAS_MODULES | _HAS_MAP | _HAS_NAME
        lower, upper = lower_and_upper(vm)
        symbols = bytes(16)
        if self.sections is not None:
            sections, table = self.sections, put(start.sections)
            flags |= _HAS_SECTIONS
            symbols = struct.pack("<4I", sections.count, sections.entry_size, table, sections.names)
        head = struct.pack("<3I", flags, lower, upper)
        head += struct.pack("<4I", 0, line, len(modules), module_list)
        head += symbols + struct.pack("<2I", len(map_), map_at)
        head += bytes(12) + struct.pack("<I", name)
        return head.ljust(_INFO_SIZE, b"\0") + bytes(tail)


def find_header(data: bytes) -> int | None:
    """Where a header of version 1 is, if there is one (3.1.1)."""
    for at in range(0, min(len(data), _SEARCHED) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<3I", data, at)
        if magic == _MAGIC and not magic + flags + checksum & 0xFFFFFFFF:
            return at
    return None
