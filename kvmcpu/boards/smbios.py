# SPDX-License-Identifier: MIT
"""SMBIOS tables of a PC: what machine it is, its processors and memory.

Section numbers are those of DMTF's DSP0134, version 2.8. Firmware gets the structures and their
entry point as files of fw_cfg, and adds its own (type 0).
"""

from __future__ import annotations

import struct

from kvmcpu.ram import HIGH_START, LOW_LIMIT

_VERSION = (2, 8)
_ENTRY = struct.Struct("<4sBBBBHB5x5sBHIHB")  # 5.2.1
_OTHER, _SAFE, _NO_SECURITY = 1, 3, 3  # 7.4.1, 7.4.2, 7.4.3
_CENTRAL, _POPULATED = 3, 0x41  # 7.5.1, 7.5
_NO_CACHE = 0xFFFF
_BOARD, _SYSTEM_MEMORY, _NO_CORRECTION = 3, 3, 3  # 7.17.1, 7.17.2, 7.17.3
_NOT_REPORTED = 0xFFFE
_DIMM, _RAM = 9, 7  # 7.18.1, 7.18.2
_POWER_SWITCH = 6  # 7.2.2
_ARRAY = 0x1000  # handle of the memory array
_LARGE = 0x7FFF  # MiB: the size is in a wider field
_KIB_LARGE = 0x80000000


def _structure(kind: int, handle: int, content: bytes, *strings: str) -> bytes:
    texts = b"".join(text.encode("ascii") + b"\0" for text in strings) or b"\0"
    return struct.pack("<BBH", kind, 4 + len(content), handle) + content + texts + b"\0"


def _processor(number: int) -> bytes:
    content = struct.pack("<4B8x", 1, _CENTRAL, _OTHER, 2)  # strings 1 and 2
    content += struct.pack("<BB3H2B3H", 0, 0, 0, 0, 0, _POPULATED, _OTHER, *[_NO_CACHE] * 3)
    content += struct.pack("<3B3BHH", 0, 0, 0, 1, 1, 1, 0, _OTHER)  # one core, one thread
    return _structure(4, 0x400 + number, content, f"CPU {number}", "kvmcpu")


def _mapped(handle: int, start: int, size: int) -> bytes:
    first, last = start >> 10, (start + size >> 10) - 1
    large = last >= 0xFFFFFFFF
    short = (0xFFFFFFFF, 0xFFFFFFFF, _ARRAY, 1) if large else (first, last, _ARRAY, 1)
    extended = (start, start + size - 1) if large else (0, 0)
    return _structure(19, handle, struct.pack("<IIHBQQ", *short, *extended))


def tables(memory: int, cpus: int) -> dict[str, bytes]:
    """The files by name, for bytes of memory and a number of CPUs."""
    kib, mib = memory >> 10, memory >> 20
    low = min(memory, LOW_LIMIT)
    system = struct.pack("<4B16xB2B", 1, 2, 0, 0, _POWER_SWITCH, 0, 0)
    chassis = struct.pack("<9BI4B", 1, _OTHER, 0, 0, 0, *[_SAFE] * 3, _NO_SECURITY, 0, 0, 1, 0, 0)
    array = struct.pack(
        "<3BIHHQ", _BOARD, _SYSTEM_MEMORY, _NO_CORRECTION, min(kib, _KIB_LARGE), _NOT_REPORTED, 1,
        memory if kib >= _KIB_LARGE else 0,
    )  # fmt: skip
    module = struct.pack(
        "<5H4BBHH5BIH3H", _ARRAY, _NOT_REPORTED, 64, 64, min(mib, _LARGE), _DIMM, 0, 1, 0, _RAM, 2,
        0, *[0] * 5, mib if mib >= _LARGE else 0, 0, 0, 0, 0,
    )  # fmt: skip
    structures = [
        _structure(1, 0x100, system, "kvmcpu", "PC"),
        _structure(3, 0x300, chassis, "kvmcpu"),
        *(_processor(number) for number in range(cpus)),
        _structure(16, _ARRAY, array),
        _structure(17, 0x1100, module, "DIMM 0"),
        _mapped(0x1300, 0, low),
        *([_mapped(0x1301, HIGH_START, memory - low)] if memory > low else []),
        _structure(32, 0x2000, bytes(7)),
        _structure(127, 0x7F00, b""),
    ]
    content = b"".join(structures)
    # The address, and with it the sums, are the firmware's to fill in.
    entry = _ENTRY.pack(
        b"_SM_", 0, _ENTRY.size, *_VERSION, max(map(len, structures)), 0, b"_DMI_", 0,
        len(content), 0, len(structures), _VERSION[0] << 4 | _VERSION[1],
    )  # fmt: skip
    return {"etc/smbios/smbios-anchor": entry, "etc/smbios/smbios-tables": content}
