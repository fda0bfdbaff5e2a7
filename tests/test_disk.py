# SPDX-License-Identifier: MIT
"""Disk images, and the ATA controller in front of them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from devices import Ports, bench
from guests import ORIGIN, assemble
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kvmcpu
from kvmcpu.devices import AtaController, DeviceError
from kvmcpu.disk import SECTOR, DiskError, FileDisk, MemoryDisk, OverlayDisk, open_disk
from kvmcpu.loaders import x86_start

SECTORS = 1000


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(struct.pack("<I", i) * 128 for i in range(SECTORS)))
    return path


# ---- images ----


def test_file(image: Path) -> None:
    with FileDisk(image) as disk:
        assert (disk.sectors, disk.readonly) == (SECTORS, False)
        assert disk.read(7, 2) == image.read_bytes()[7 * SECTOR : 9 * SECTOR]
        disk.write(3, b"x" * SECTOR)
        disk.flush()
        assert image.read_bytes()[3 * SECTOR : 4 * SECTOR] == b"x" * SECTOR


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (SECTORS, 1), (SECTORS - 1, 2)])
def test_outside(image: Path, first: int, count: int) -> None:
    for disk in (FileDisk(image), open_disk(f"{image},overlay"), MemoryDisk(SECTORS * SECTOR)):
        with pytest.raises(DiskError):
            disk.read(first, count)
        with pytest.raises(DiskError):
            disk.write(first, bytes(count * SECTOR))
        disk.close()


def test_specs(image: Path, tmp_path: Path) -> None:
    assert open_disk(f"{image},ro").readonly
    comma = tmp_path / "a,b"
    comma.write_bytes(bytes(SECTOR))
    assert open_disk(comma).sectors == 1
    assert open_disk(bytes(SECTOR)).sectors == 1
    with pytest.raises(DiskError, match="read-only"):
        open_disk(f"{image},ro").write(0, bytes(SECTOR))


def test_errors(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"x" * 700)
    empty = tmp_path / "empty"
    empty.touch()
    for spec, pattern in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "directory"),
        (odd, "1024 bytes long"),
        (empty, "0 bytes"),
        (7, "not 7"),
    ):
        with pytest.raises(DiskError, match=pattern):
            open_disk(spec)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 299), st.integers(1, 200)), max_size=30))
def test_overlay_against_a_model(steps) -> None:
    base = MemoryDisk(os.urandom(300 * SECTOR))
    before = bytes(base.data)
    disk, model = OverlayDisk(base), bytearray(base.data)
    for number, (writes, sector, count) in enumerate(steps):
        count = min(count, 300 - sector)
        part = slice(sector * SECTOR, (sector + count) * SECTOR)
        if writes:
            model[part] = bytes([number]) * (count * SECTOR)
            disk.write(sector, bytes(model[part]))
        else:
            assert disk.read(sector, count) == model[part]
    assert disk.read(0, 300) == model
    assert base.data == before


# ---- the controller ----

BASE, CONTROL = 0x1F0, 0x3F6


class Ata:
    """A driver."""

    def __init__(self, board) -> None:
        self.p = Ports(board)
        self.line = board.irq(14)

    def command(self, command: int, lba: int = 0, count: int = 1, *, ext: bool = False,
                device: int = 0xE0) -> int:  # fmt: skip
        p = self.p
        p.write(BASE + 6, device | (0 if ext else lba >> 24 & 15))
        if ext:
            for at, value in ((2, count >> 8), (3, lba >> 24), (4, lba >> 32), (5, lba >> 40)):
                p.write(BASE + at, value & 0xFF)
        for at, value in ((2, count), (3, lba), (4, lba >> 8), (5, lba >> 16)):
            p.write(BASE + at, value & 0xFF)
        p.write(BASE + 7, command)
        return p.read(CONTROL)

    def data(self, count: int) -> bytes:
        return b"".join(self.p.read_string(BASE, 2, 256) for _ in range(count))


@pytest.fixture
def ata(kvm, image):
    with bench(kvm, AtaController(disks=[str(image)])) as board:
        yield Ata(board)


@pytest.mark.kvm(arch="x86_64")
def test_identify(ata) -> None:
    assert ata.command(0xEC) == 0x58
    assert ata.line.level
    assert ata.p.read(BASE + 7) == 0x58
    assert not ata.line.level
    words = struct.unpack("<256H", ata.data(1))
    assert words[60] | words[61] << 16 == SECTORS
    assert words[100] == SECTORS
    assert struct.pack(">20H", *words[27:47]).startswith(b"KVMCPU DISK")
    assert sum(struct.pack("<256H", *words)) & 0xFF == 0
    assert ata.p.read(BASE + 7) == 0x50


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize(("command", "ext"), [(0x20, False), (0x24, True), (0xC4, False)])
def test_read(ata, image, command, ext) -> None:
    if command == 0xC4:
        assert ata.command(0xC6, count=8) == 0x50
    for first, count in ((0, 1), (5, 3), (SECTORS - 256, 256), (100, 300 if ext else 7)):
        assert ata.command(command, first, count, ext=ext) == 0x58
        assert ata.data(count) == image.read_bytes()[first * SECTOR : (first + count) * SECTOR]
        assert ata.p.read(CONTROL) == 0x50


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize(("command", "ext"), [(0x30, False), (0x34, True), (0xC5, False)])
def test_write(ata, image, command, ext) -> None:
    ata.command(0xC6, count=4)
    data = os.urandom(6 * SECTOR)
    ata.p.read(BASE + 7)
    assert ata.command(command, 10, 6, ext=ext) == 0x58
    assert not ata.line.level  # the first block comes without an interrupt
    for at in range(0, len(data), SECTOR):
        ata.p.write_string(BASE, 2, data[at : at + SECTOR])
    assert ata.p.read(BASE + 7) == 0x50
    assert image.read_bytes()[10 * SECTOR : 16 * SECTOR] == data
    assert ata.command(0xE7) == 0x50


@pytest.mark.kvm(arch="x86_64")
def test_chs(ata, image) -> None:
    ata.p.write(BASE + 6, 0xA0 | 2)  # head 2, cylinder 0, sector 5
    for at, value in ((2, 1), (3, 5), (4, 0), (5, 0), (7, 0x20)):
        ata.p.write(BASE + at, value)
    lba = 2 * 63 + 4
    assert ata.data(1) == image.read_bytes()[lba * SECTOR : (lba + 1) * SECTOR]


@pytest.mark.kvm(arch="x86_64")
def test_refusals(ata) -> None:
    p = ata.p
    assert ata.command(0x20, SECTORS - 1, 2) & 1
    assert p.read(BASE + 1) == 0x10
    assert ata.command(0x25) & 1  # DMA: not here
    assert p.read(BASE + 1) == 0x04
    assert ata.command(0xC4, 0, 1) & 1  # without SET MULTIPLE
    assert ata.data(1) == b"\xff" * SECTOR
    assert ata.command(0x20, 0, 1, device=0xF0) == 0  # no second disk
    assert ata.command(0xF8) == 0x50
    assert p.read(BASE + 3) | p.read(BASE + 4) << 8 == SECTORS - 1


@pytest.mark.kvm(arch="x86_64")
def test_software_reset_in_the_middle(ata) -> None:
    ata.command(0x20, 0, 4)
    ata.data(1)
    ata.p.write(CONTROL, 4)
    ata.p.write(CONTROL, 0)
    assert [ata.p.read(BASE + at) for at in range(1, 8)] == [1, 1, 1, 0, 0, 0, 0x50]
    assert ata.data(1) == b"\xff" * SECTOR


@pytest.mark.kvm(arch="x86_64")
def test_read_only(kvm, image) -> None:
    with bench(kvm, AtaController(disks=[f"{image},ro"])) as board:
        assert Ata(board).command(0x30) & 1


@pytest.mark.kvm(arch="x86_64")
def test_no_disk_floats(kvm) -> None:
    with bench(kvm, AtaController()) as board:
        p = Ports(board)
        assert p.read(BASE + 7) == p.read(CONTROL) == 0xFF
        with pytest.raises(DeviceError, match="No such file"):
            board.add(AtaController(port=0x170, control=0x376, disks=["/nonexistent"]))


@pytest.mark.kvm(arch="x86_64")
def test_state_in_the_middle(kvm, image) -> None:
    with bench(kvm, AtaController(disks=[str(image)])) as board:
        driver = Ata(board)
        driver.command(0x20, 20, 3)
        first = driver.data(1)
        state = board.devices[0].state()
        rest = driver.data(2)
    with bench(kvm, AtaController(disks=[str(image)])) as board:
        board.devices[0].load_state(state)
        assert first + Ata(board).data(2) == image.read_bytes()[20 * SECTOR : 23 * SECTOR]
        assert rest == image.read_bytes()[21 * SECTOR : 23 * SECTOR]


@pytest.mark.kvm(arch="x86_64")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from((*range(0x1F0, 0x1F8), 0x3F6)), st.integers(0, 255)),
                max_size=60), st.integers(0, 255))  # fmt: skip
@example([(0x1F7, 0x20), (0x1F6, 0x10)], 0)  # the disk that is not there, in the middle of a read
@example([(0x1F7, 0x30), (0x1F6, 0x10)], 0)
def test_any_command_block(writes, command) -> None:
    """Whatever a guest writes: no exception, nothing outside of the disk."""
    with kvmcpu.Kvm() as kvm, bench(kvm, AtaController(disks=[bytes(32 << 10)])) as board:
        p = Ports(board)
        for port, value in writes:
            p.write(port, value)
        p.write(0x1F7, command)
        p.read_string(0x1F0, 2, 300)
        p.write_string(0x1F0, 2, bytes(1200))
        for port in (*range(0x1F0, 0x1F8), 0x3F6):
            p.read(port)
        assert board.devices[0]._disks[0].sectors == 64


GUEST = """
    xor ax, ax; mov ds, ax; mov es, ax; cld
    mov word ptr [4 * 0x76], offset handler; mov word ptr [4 * 0x76 + 2], 0
    mov al, 0x11; out 0x20, al; mov al, 8; out 0x21, al; mov al, 4; out 0x21, al
    mov al, 1; out 0x21, al; mov al, 0xfb; out 0x21, al
    mov al, 0x11; out 0xa0, al; mov al, 0x70; out 0xa1, al; mov al, 2; out 0xa1, al
    mov al, 1; out 0xa1, al; mov al, 0xbf; out 0xa1, al
    mov dx, 0x1f6; mov al, 0xe0; out dx, al
    mov dx, 0x1f2; mov al, 2; out dx, al; inc dx; mov al, 9; out dx, al
    xor al, al; inc dx; out dx, al; inc dx; out dx, al
    xor ebx, ebx; mov di, 0x4000; sti
    mov dx, 0x1f7; mov al, 0x20; out dx, al
    1: cmp bl, 2; jb 2f
    cli; out 0x10, al
    2: hlt; jmp 1b
    handler:
    mov dx, 0x1f7; in al, dx; mov dx, 0x1f0; mov cx, 256; rep insw; inc ebx
    mov al, 0x20; out 0xa0, al; out 0x20, al; iret
"""


@pytest.mark.kvm(arch="x86_64")
def test_a_guest_reads_by_interrupt(kvm, image) -> None:
    with bench(kvm, AtaController(disks=[str(image)])) as board:
        board.vm.write(ORIGIN, assemble(GUEST))
        cpu = board.vm.create_vcpu()
        x86_start.real(cpu, ORIGIN, stack=0x8000)
        board.vm.map_io(0x10, 1, write=lambda *_: cpu.stop())
        board.schedule(cpu.stop, "10s")
        cpu.run()
        assert cpu.regs.rbx & 0xFF == 2
        assert board.vm.read(0x4000, 1024) == image.read_bytes()[9 * SECTOR : 11 * SECTOR]
