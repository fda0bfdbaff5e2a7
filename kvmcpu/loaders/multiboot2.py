# SPDX-License-Identifier: MIT
"""Multiboot kernels, by version 2.0 of the Multiboot2 Specification.

As with version 1 (``multiboot.py``), but EAX = 0x36D76289, and header and information are tags.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kvmcpu.loaders.base import LoadError, Segment
from kvmcpu.loaders.elf import MAGIC as ELF_MAGIC
from kvmcpu.loaders.elf import ElfImage
from kvmcpu.loaders.multiboot import (
    LOADER_NAME,
    Kernel,
    KernelStart,
    by_addresses,
    lower_and_upper,
    memory_map,
)

if TYPE_CHECKING:
    from kvmcpu._kvm import VM

_MAGIC = 0xE85250D6
_BOOTED = 0x36D76289
_SEARCHED = 32768
_I386 = 0
# Header tags (3.1.3 and on); of those that are not here, only optional ones are ignored.
_END, _REQUEST, _ADDRESS, _ENTRY, _CONSOLE, _ALIGN = 0, 1, 2, 3, 4, 6
_OPTIONAL = 1
# Information tags (3.6)
_CMDLINE, _LOADER, _MODULE, _MEMORY, _MAP, _SECTIONS = 1, 2, 3, 4, 6, 9
_GIVEN = frozenset((_CMDLINE, _LOADER, _MODULE, _MEMORY, _MAP))
_CONSOLE_REQUIRED = 1


class Multiboot2Image(Kernel):
    """A kernel with a multiboot header of version 2. Raises LoadError for a broken one."""

    booted = _BOOTED

    def __init__(self, data: bytes, name: str = "kernel", modules: Sequence[Any] = ()) -> None:
        header = find_header(data)
        if header is None:
            raise LoadError("there is no multiboot2 header")
        segment: Segment | None = None
        entry: int | None = None
        needed: set[int] = set()
        for kind, flags, content in _tags(data, header):
            try:
                if kind == _REQUEST:
                    kinds = struct.unpack(f"<{len(content) // 4}I", content)
                    needed.update(kinds if not flags & _OPTIONAL else ())
                elif kind == _ADDRESS:
                    at, load, *ends = struct.unpack("<4I", content[:16])
                    # -1: the file is loaded from its beginning (3.1.5).
                    load = (at - header) & 0xFFFFFFFF if load == 0xFFFFFFFF else load
                    segment = by_addresses(data, header, at, load, *ends)
                elif kind == _ENTRY:
                    entry = struct.unpack("<I", content[:4])[0]
                elif kind == _CONSOLE and struct.unpack("<I", content[:4])[0] & _CONSOLE_REQUIRED:
                    raise LoadError("the multiboot2 kernel needs a console that is described")
                elif kind not in (_CONSOLE, _ALIGN) and not flags & _OPTIONAL:
                    raise LoadError(f"the multiboot2 header asks for tag {kind}, which is not here")
            except struct.error:
                raise LoadError(f"the multiboot2 header's tag {kind} is cut short") from None
        sections = None
        if segment is not None:
            if entry is None:
                raise LoadError("the multiboot2 header has addresses and no entry address")
            segments = [segment]
        elif data.startswith(ELF_MAGIC):
            image = ElfImage(data)
            segments, sections = image.segments, image.sections
            entry = image.entry if entry is None else entry
        else:
            raise LoadError("the multiboot2 kernel is no ELF file, and says no addresses")
        missing = needed - (_GIVEN if sections is None else _GIVEN | {_SECTIONS})
        if missing:
            raise LoadError(
                "the multiboot2 kernel needs information of type"
                f" {', '.join(map(str, sorted(missing)))}, which is not here"
            )
        super().__init__(name, segments, entry, modules, sections)

    def information(self, vm: VM, _address: int, command_line: str, start: KernelStart, /) -> bytes:
        entries = b"".join(struct.pack("<QQII", *entry, 0) for entry in memory_map(vm))
        tags = [
            _tag(_CMDLINE, os.fsencode(command_line) + b"\0"),
            _tag(_LOADER, LOADER_NAME),
            *(
                _tag(_MODULE, struct.pack("<2I", begin, end) + os.fsencode(text) + b"\0")
                for begin, end, text in start.modules
            ),
            _tag(_MEMORY, struct.pack("<2I", *lower_and_upper(vm))),
            _tag(_MAP, struct.pack("<2I", 24, 0) + entries),
        ]
        if self.sections is not None:
            counts = (self.sections.count, self.sections.entry_size, self.sections.names)
            tags.append(_tag(_SECTIONS, struct.pack("<3I", *counts) + start.sections))
        tags.append(_tag(_END, b""))
        content = b"".join(tags)
        return struct.pack("<2I", 8 + len(content), 0) + content


def _tag(kind: int, content: bytes) -> bytes:
    size = 8 + len(content)
    return struct.pack("<2I", kind, size) + content + bytes(-size % 8)


def _tags(data: bytes, header: int) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and content of the header's tags."""
    end = header + struct.unpack_from("<I", data, header + 8)[0]
    at = header + 16
    while at + 8 <= min(end, len(data)):
        kind, flags, size = struct.unpack_from("<HHI", data, at)
        if size < 8 or at + size > min(end, len(data)):
            raise LoadError(f"the multiboot2 header's tag {kind} has a size of {size}")
        if kind == _END:
            return
        yield kind, flags, data[at + 8 : at + size]
        at += size + -size % 8
    raise LoadError("the multiboot2 header has no end tag")


def find_header(data: bytes) -> int | None:
    """Where a header of version 2 for i386 is, if there is one (3.1.1)."""
    for at in range(0, min(len(data), _SEARCHED) - 15, 8):
        magic, architecture, length, checksum = struct.unpack_from("<4I", data, at)
        if magic == _MAGIC and not magic + architecture + length + checksum & 0xFFFFFFFF:
            if architecture != _I386:
                raise LoadError(
                    f"the multiboot2 kernel is for architecture {architecture}, not i386"
                )
            return at
    return None
