# SPDX-License-Identifier: MIT
"""ELF executables for x86: 64-bit ones start in long mode, 32-bit ones in protected mode.

Segments go to their physical addresses, and the entry point, if it is virtual, is translated by
the segment that holds it, as boot loaders do. In long mode the first 4 GiB, or all memory if
that is more, are mapped to themselves.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Literal

from kvmcpu.loaders.base import LoadError, Segment, Start, check_ram, overlapping, span

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

    from kvmcpu._kvm import VM

MAGIC = b"\x7fELF"

_TYPES = {
    "ET_REL": "an object file, which is not linked yet: link it with ld",
    "ET_DYN": "position-independent, and nothing here relocates it: link it with -no-pie",
    "ET_CORE": "a core dump and not a program",
}
_MODES: dict[tuple[str, int], Literal["protected", "long"]] = {
    ("EM_X86_64", 64): "long",
    ("EM_386", 32): "protected",
}


@dataclass(frozen=True)
class Sections:
    """The section headers of an ELF file, with which a kernel finds its own symbols."""

    table: bytes
    entry_size: int
    names: int
    """The index of the section that has the sections' names."""
    loose: tuple[tuple[int, bytes], ...]
    """What no segment loads: where the table has the address of it, and its bytes."""

    @property
    def count(self) -> int:
        return len(self.table) // self.entry_size

    def placed(self, addresses: Sequence[int]) -> bytes:
        """The table, with what was loose at these addresses."""
        table = bytearray(self.table)
        wide = self.entry_size == 64  # Elf64_Shdr, or Elf32_Shdr
        for (at, _), address in zip(self.loose, addresses, strict=True):
            struct.pack_into("<Q" if wide else "<I", table, at, address)
        return bytes(table)


class ElfImage:
    """An ELF executable. Raises LoadError for what is none, or not for this."""

    kind = "ELF executable"

    def __init__(self, data: bytes) -> None:
        # Not for those who run no ELF file: it takes megabytes.
        from elftools.common.exceptions import ELFError
        from elftools.construct import ConstructError
        from elftools.elf.elffile import ELFFile

        try:
            file = ELFFile(BytesIO(data))
            self._read(file)
            self.sections = self._sections(file, data)
        # pyelftools answers to some broken files with whatever its parts raise.
        except (ELFError, ConstructError, ValueError, KeyError, TypeError, AttributeError,
                OverflowError, UnicodeDecodeError) as error:  # fmt: skip
            raise LoadError(f"the ELF file is broken: {error}") from error

    def _read(self, file: ELFFile) -> None:
        machine, kind = file["e_machine"], file["e_type"]
        try:
            self.mode = _MODES[machine, file.elfclass]
        except KeyError:
            name = f"{machine}".removeprefix("EM_")
            raise LoadError(
                f"the ELF file is for another architecture ({name}, {file.elfclass}-bit);"
                " this runs 32- and 64-bit x86"
            ) from None
        if kind != "ET_EXEC":
            raise LoadError(f"the ELF file is {_TYPES.get(kind, f'of the unknown type {kind}')}")
        self.segments: list[Segment] = []
        for header in file.iter_segments():
            if header["p_type"] == "PT_INTERP":
                raise LoadError(
                    "the ELF file is a dynamically linked program for an operating system:"
                    " link it with -static -nostdlib"
                )
            if header["p_type"] != "PT_LOAD" or not header["p_memsz"]:
                continue
            content = header.data()
            if len(content) != header["p_filesz"]:
                raise LoadError(
                    f"the ELF file is cut short: the segment at {header['p_paddr']:#x} has"
                    f" {header['p_filesz']} bytes, and {len(content)} of them are there"
                )
            if header["p_filesz"] > header["p_memsz"]:
                raise LoadError(
                    f"the ELF file is broken: its segment at {header['p_paddr']:#x} is larger"
                    " in the file than in memory"
                )
            self.segments.append(
                Segment(header["p_paddr"], content, header["p_memsz"], header["p_vaddr"])
            )
        if not self.segments:
            raise LoadError("the ELF file has nothing to load (no PT_LOAD segment)")
        for i, segment in enumerate(self.segments):
            clash = overlapping(segment.part, (s.part for s in self.segments[:i]))
            if clash:
                raise LoadError(
                    f"the ELF file's segments overlap: {span(clash)} and {span(segment.part)}"
                )
        self.entry = self._physical(file["e_entry"])

    @staticmethod
    def _sections(file: ELFFile, data: bytes) -> Sections | None:
        count, size, at = file.num_sections(), file["e_shentsize"], file["e_shoff"]
        table = data[at : at + count * size]
        if not count or size != (64 if file.elfclass == 64 else 40) or len(table) != count * size:
            return None
        loose = []
        for index, section in enumerate(file.iter_sections()):
            if section["sh_type"] in ("SHT_NULL", "SHT_NOBITS") or section["sh_addr"]:
                continue
            start = section["sh_offset"]
            content = data[start : start + section["sh_size"]]
            if content and len(content) == section["sh_size"]:
                loose.append((index * size + (16 if size == 64 else 12), content))
        return Sections(table, size, file.get_shstrndx(), tuple(loose))

    def _physical(self, entry: int) -> int:
        for segment in self.segments:
            assert segment.virtual is not None
            if segment.virtual <= entry < segment.virtual + segment.size:
                return entry - segment.virtual + segment.physical
        if any(s.part[0] <= entry < s.part[1] for s in self.segments):
            return entry
        raise LoadError(f"the ELF file's entry point {entry:#x} lies in none of its segments")

    def load(self, vm: VM) -> Start:
        for segment in self.segments:
            check_ram(vm, segment.part, "the ELF file's segment")
        for segment in self.segments:
            segment.load(vm)
        return Start(self.mode, self.entry, tuple(s.part for s in self.segments))
