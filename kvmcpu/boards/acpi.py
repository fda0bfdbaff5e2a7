# SPDX-License-Identifier: MIT
"""ACPI tables of a PC: as much as its software needs to turn it off and to reset it.

Section numbers are those of the ACPI specification, version 6.5. Firmware gets the tables as files
of fw_cfg, with a script by which it places and links them: QEMU's "linker/loader", whose commands
are those of SeaBIOS's ``romfile_loader.h`` and OVMF's ``QemuLoader.h``.
"""

from __future__ import annotations

import struct

_TABLES, _RSDP, _LOADER = "etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"

# Commands of the script, each in 128 bytes.
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_HIGH, _FSEG = 1, 2  # where memory is allocated: high, or where the RSDP is looked for (5.2.5.1)

_HEADER = struct.Struct("<4sIBB6s8sI4sI")  # 5.2.6
_LENGTH, _CHECKSUM = 4, 9
_RSDP_CHECKSUM, _RSDP_RSDT, _RSDP_SIZE = 8, 16, 20  # 5.2.5.3, of ACPI 1.0
_FACS_SIZE = 64  # 5.2.10; it is also how it is aligned
_FADT_SIZE, _FADT_REVISION = 244, 3  # 5.2.9
_FADT_FACS, _FADT_DSDT, _FADT_RESET = 36, 40, 116
_SCI = 9
_LEGACY_DEVICES, _HAS_8042 = 1, 2  # 5.2.9.3
# 5.2.9.4; the buttons and the alarm: none of them is a fixed feature.
_WBINVD, _C1, _NO_POWER_BUTTON, _NO_SLEEP_BUTTON, _NO_FIXED_ALARM = 1, 4, 0x10, 0x20, 0x40
_RESET_SUPPORTED = 0x400
_CENTURY = 0x32  # in the CMOS memory
_NEVER = 0xFFFF  # us to leave a sleep state of the processor which is not there
_RESET_PORT, _RESET = 0xCF9, 6

# Name (\_S5, Package () { 0, 0, 0, 0 }): what is written to turn the machine off (7.4.2, 20.2).
_S5 = b"\x08_S5_\x12\x06\x04\0\0\0\0"


def _table(signature: bytes, revision: int, content: bytes) -> bytes:
    head = _HEADER.pack(
        signature, _HEADER.size + len(content), revision, 0, b"KVMCPU", b"PC      ", 1, b"KVMC", 1
    )
    table = bytearray(head + content)
    table[_CHECKSUM] = -sum(table) & 0xFF
    return bytes(table)


def _fadt(facs: int, dsdt: int, control: int) -> bytes:
    content = bytearray(_FADT_SIZE - _HEADER.size)

    def put(code: str, offset: int, *values: int) -> None:
        struct.pack_into("<" + code, content, offset - _HEADER.size, *values)

    put("II", _FADT_FACS, facs, dsdt)
    put("H", 46, _SCI)
    put("I", 56, control - 4)  # PM1a_EVT_BLK; without SMI_CMD it is ACPI's from the start
    put("I", 64, control)  # PM1a_CNT_BLK
    put("BB", 88, 4, 2)  # their sizes
    put("HH", 96, _NEVER, _NEVER)
    put("B", 108, _CENTURY)
    put("H", 109, _LEGACY_DEVICES | _HAS_8042)
    no_buttons = _NO_POWER_BUTTON | _NO_SLEEP_BUTTON | _NO_FIXED_ALARM
    put("I", 112, _WBINVD | _C1 | no_buttons | _RESET_SUPPORTED)
    put("BBBBQB", _FADT_RESET, 1, 8, 0, 1, _RESET_PORT, _RESET)  # a port of 8 bits
    return _table(b"FACP", _FADT_REVISION, bytes(content))


def _command(number: int, content: bytes) -> bytes:
    return struct.pack("<I124s", number, content)


def _allocate(file: str, align: int, zone: int) -> bytes:
    return _command(_ALLOCATE, struct.pack("<56sIB", file.encode(), align, zone))


def _point(file: str, offset: int) -> bytes:
    """Add the tables' address to the four bytes there, which are an offset into them."""
    return _command(
        _ADD_POINTER, struct.pack("<56s56sIB", file.encode(), _TABLES.encode(), offset, 4)
    )


def _sum(file: str, checksum: int, start: int, size: int) -> bytes:
    return _command(
        _ADD_CHECKSUM, struct.pack("<56sIII", file.encode(), start + checksum, start, size)
    )


def tables(control: int) -> dict[str, bytes]:
    """The files by name; control is the port of the PM1a control register."""
    facs_at = 0
    facs = struct.pack("<4sI24xB", b"FACS", _FACS_SIZE, 1).ljust(_FACS_SIZE, b"\0")
    dsdt_at = facs_at + len(facs)
    dsdt = _table(b"DSDT", 1, _S5)
    fadt_at = dsdt_at + len(dsdt)
    fadt = _fadt(facs_at, dsdt_at, control)
    rsdt_at = fadt_at + len(fadt)
    rsdt = _table(b"RSDT", 1, struct.pack("<I", fadt_at))
    rsdp = bytearray(struct.pack("<8sB6sBI", b"RSD PTR ", 0, b"KVMCPU", 0, rsdt_at))
    rsdp[_RSDP_CHECKSUM] = -sum(rsdp) & 0xFF
    script = (
        _allocate(_TABLES, _FACS_SIZE, _HIGH),
        _allocate(_RSDP, 16, _FSEG),
        _point(_TABLES, fadt_at + _FADT_FACS),
        _point(_TABLES, fadt_at + _FADT_DSDT),
        _sum(_TABLES, _CHECKSUM, fadt_at, len(fadt)),
        _point(_TABLES, rsdt_at + _HEADER.size),
        _sum(_TABLES, _CHECKSUM, rsdt_at, len(rsdt)),
        _point(_RSDP, _RSDP_RSDT),
        _sum(_RSDP, _RSDP_CHECKSUM, 0, _RSDP_SIZE),
    )
    return {
        _TABLES: facs + dsdt + fadt + rsdt,
        _RSDP: bytes(rsdp),
        _LOADER: b"".join(script),
    }
