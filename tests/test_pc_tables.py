# SPDX-License-Identifier: MIT
"""The tables that a PC's firmware is given: ACPI, linked as firmware does it, and SMBIOS."""

from __future__ import annotations

import struct

import pytest

from kvmcpu import System, devices
from kvmcpu.boards import acpi, smbios

TABLES, RSDP = "etc/acpi/tables", "etc/acpi/rsdp"


def text(field: bytes) -> str:
    return field.split(b"\0")[0].decode()


def linked(files: dict[str, bytes]) -> tuple[int, dict[int, bytearray]]:
    """What the script makes of the files; returns the RSDP's address too."""
    places, memory = {}, {}
    script = files["etc/table-loader"]
    for at in range(0, len(script), 128):
        (command,) = struct.unpack_from("<I", script, at)
        name = text(script[at + 4 : at + 60])
        if command == 1:
            align, zone = struct.unpack_from("<IB", script, at + 60)
            assert (name, align, zone) in ((TABLES, 64, 1), (RSDP, 16, 2))
            places[name] = 0xF6000 if zone == 2 else 0x1FFF000
            memory[places[name]] = bytearray(files[name])
        elif command == 2:
            source = text(script[at + 60 : at + 116])
            offset, size = struct.unpack_from("<IB", script, at + 116)
            assert size == 4
            data = memory[places[name]]
            (value,) = struct.unpack_from("<I", data, offset)
            struct.pack_into("<I", data, offset, value + places[source])
        else:
            assert command == 3
            offset, start, size = struct.unpack_from("<3I", script, at + 60)
            data = memory[places[name]]
            data[offset] = (data[offset] - sum(data[start : start + size])) & 0xFF
    return places[RSDP], memory


def test_acpi() -> None:
    rsdp, memory = linked(acpi.tables(0x604))
    root = memory[rsdp]
    assert root[:8] == b"RSD PTR "
    assert sum(root) & 0xFF == 0

    def at(address: int) -> bytes:
        start = next(s for s, data in memory.items() if s <= address < s + len(data))
        rest = memory[start][address - start :]
        return bytes(rest[: struct.unpack_from("<I", rest, 4)[0]])

    rsdt = at(struct.unpack_from("<I", root, 16)[0])
    fadt = at(struct.unpack_from("<I", rsdt, 36)[0])
    facs, dsdt = (at(address) for address in struct.unpack_from("<2I", fadt, 36))
    for table, signature in ((rsdt, b"RSDT"), (fadt, b"FACP"), (dsdt, b"DSDT")):
        assert table[:4] == signature
        assert sum(table) & 0xFF == 0
    assert facs[:4] == b"FACS"
    assert len(fadt) == 244
    assert struct.unpack_from("<I", fadt, 56) == (0x600,)
    assert struct.unpack_from("<I", fadt, 64) == (0x604,)
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 1, 0xCF9, 6)
    assert b"\x08_S5_" in dsdt


@pytest.mark.parametrize("memory", [1 << 20, 32 << 20, 5 << 30, 8 << 40])
@pytest.mark.parametrize("cpus", [1, 255])
def test_smbios(memory: int, cpus: int) -> None:
    files = smbios.tables(memory, cpus)
    entry, data = files["etc/smbios/smbios-anchor"], files["etc/smbios/smbios-tables"]
    assert (entry[:4], entry[5], entry[16:21]) == (b"_SM_", 31, b"_DMI_")
    largest, length, count = (struct.unpack_from("<H", entry, at)[0] for at in (8, 22, 28))
    assert length == len(data)
    found: dict[int, list[bytes]] = {}
    sizes, at = [], 0
    while at < len(data):
        kind, size = data[at], data[at + 1]
        end = data.index(b"\0\0", at + size) + 2
        found.setdefault(kind, []).append(data[at:end])
        sizes.append(end - at)
        at = end
    assert (max(sizes), len(sizes)) == (largest, count)
    # What version 2.8 has of each.
    expected = {1: 0x1B, 3: 0x15, 4: 0x2A, 16: 0x17, 17: 0x28, 19: 0x1F, 32: 0x0B, 127: 4}
    assert {kind: each[0][1] for kind, each in found.items()} == expected
    assert len({each[2:4] for of_kind in found.values() for each in of_kind}) == count  # handles
    assert len(found[4]) == cpus
    size, extended = struct.unpack_from("<H", found[17][0], 12)[0], found[17][0][28:32]
    assert (size if size < 0x7FFF else struct.unpack("<I", extended)[0]) == memory >> 20
    mapped = 0
    for each in found[19]:
        first, last = struct.unpack_from("<II", each, 4)
        if first == 0xFFFFFFFF:
            start, end = struct.unpack_from("<QQ", each, 15)
            mapped += end - start + 1
        else:
            mapped += (last - first + 1) << 10
    assert mapped == memory


@pytest.mark.kvm(arch="x86_64")
def test_a_pc_has_the_tables_of_what_it_has() -> None:
    def files(*others: devices.Device) -> set[str]:
        config = devices.FwCfg()
        with System(devices=[config, *others], memory="1MiB") as system:
            system.load(__file__, address=0x1000)
            system.build()
            return set(config._files)

    assert files() == {"etc/e820", "etc/smbios/smbios-anchor", "etc/smbios/smbios-tables"}
    assert files(devices.PowerOff()) - files() == {TABLES, RSDP, "etc/table-loader"}
