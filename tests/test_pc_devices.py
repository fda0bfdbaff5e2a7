# SPDX-License-Identifier: MIT
"""The PC's smaller devices: clock, firmware configuration, keyboard, power, DMA pages, screen."""

from __future__ import annotations

import struct

import pytest
from devices import Ports, bench, settle
from guests import ORIGIN, assemble, sized
from hypothesis import given, settings
from hypothesis import strategies as st

import kvmcpu
from kvmcpu.devices import (
    I8042,
    AtaController,
    Cmos,
    DebugConsole,
    DebugExit,
    DeviceError,
    DmaPage,
    FwCfg,
    PowerOff,
    Serial16550,
    VgaText,
)
from kvmcpu.loaders import x86_start

pytestmark = pytest.mark.kvm(arch="x86_64")


def guest(board, source: str) -> kvmcpu.Vcpu:
    board.vm.write(ORIGIN, assemble(source))
    cpu = board.vm.create_vcpu()
    x86_start.real(cpu, ORIGIN, stack=0x8000)
    return cpu


# ---- clock ----


def cmos(p: Ports, at: int, value: int | None = None) -> int:
    p.write(0x70, at)
    if value is None:
        return p.read(0x71)
    p.write(0x71, value)
    return value


def test_clock_formats(kvm):
    with bench(kvm, Cmos(start="2024-02-29T23:59:58")) as board:
        p = Ports(board)
        assert [cmos(p, at) for at in (0x32, 9, 8, 7, 4, 2, 0)] == [
            0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58,
        ]  # fmt: skip
        assert cmos(p, 6) == 5  # a Thursday; Sunday is 1
        cmos(p, 11, 0x04)  # binary, 12 hours
        assert [cmos(p, at) for at in (0x32, 9, 4)] == [20, 24, 11 | 0x80]
        board.vm.queue.service(board.vm.queue.now + 2 * 10**12)
        assert [cmos(p, at) for at in (8, 7, 4, 2, 0)] == [3, 1, 12, 0, 0]


def test_setting_the_clock(kvm):
    clock = Cmos()
    with bench(kvm, clock) as board:
        p = Ports(board)
        cmos(p, 11, 0x82)  # SET
        for at, value in ((0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x12), (2, 0), (0, 0)):
            cmos(p, at, value)
        board.vm.queue.service(board.vm.queue.now + 5 * 10**12)
        assert cmos(p, 0) == 0  # it stands still
        cmos(p, 11, 0x02)
        assert clock.now.isoformat()[:19] == "1999-12-31T12:00:00"
        board.vm.queue.service(board.vm.queue.now + 3 * 10**12)
        assert cmos(p, 0) == 3


def test_alarm_and_update_interrupts(kvm):
    with bench(kvm, Cmos(start="2024-01-01T00:00:00")) as board:
        p, line, queue = Ports(board), board.irq(8), board.vm.queue
        for at, value in ((1, 0x03), (3, 0xC0), (5, 0xFF)):  # second 3 of any minute
            cmos(p, at, value)
        cmos(p, 11, 0x22)
        queue.service(queue.now + 2 * 10**12)
        assert not line.level
        queue.service(queue.now + 2 * 10**12)
        assert line.level
        assert cmos(p, 12) & 0xF0 == 0xF0 & ~0x40 | 0x40
        assert not line.level
        cmos(p, 11, 0x12)
        queue.service(queue.now + 10**12)
        assert line.level
        assert cmos(p, 12) & 0x90 == 0x90
        cmos(p, 11, 0x02)
        cmos(p, 12)
        queue.service(queue.now + 10 * 10**12)
        assert not line.level
        assert len(queue) == 0  # no events where nobody wants them


def test_periodic_interrupt_of_a_guest(kvm):
    with bench(kvm, Cmos()) as board:
        cpu = guest(board, """
            xor ax, ax; mov ds, ax
            mov word ptr [4 * 0x70], offset handler; mov word ptr [4 * 0x70 + 2], 0
            mov al, 0x11; out 0x20, al; mov al, 8; out 0x21, al; mov al, 4; out 0x21, al
            mov al, 1; out 0x21, al; mov al, 0xfb; out 0x21, al
            mov al, 0x11; out 0xa0, al; mov al, 0x70; out 0xa1, al; mov al, 2; out 0xa1, al
            mov al, 1; out 0xa1, al; mov al, 0xfe; out 0xa1, al
            mov al, 11; out 0x70, al; mov al, 0x42; out 0x71, al
            mov al, 12; out 0x70, al; in al, 0x71
            xor ecx, ecx; sti
            1: hlt; jmp 1b
            handler: inc ecx; mov al, 12; out 0x70, al; in al, 0x71
            mov al, 0x20; out 0xa0, al; out 0x20, al; iret
        """)  # fmt: skip
        cpu.run("250ms")
        # 1024 Hz; some come while the handler is still at work on a slow processor.
        assert 128 <= cpu.regs.rcx <= 257


def test_memory_sizes(kvm):
    with bench(kvm, Cmos(), memory=48 << 20, cpus=3) as board:
        p = Ports(board)
        assert cmos(p, 0x15) | cmos(p, 0x16) << 8 == 640
        assert cmos(p, 0x30) | cmos(p, 0x31) << 8 == 47 << 10
        assert cmos(p, 0x34) | cmos(p, 0x35) << 8 == 32 << 4
        assert cmos(p, 0x5F) == 2
        assert cmos(p, 0x3D) & 15 == 2


@pytest.mark.parametrize("options", [{"start": "yesterday"}, {"boot": "x"}, {"boot": ""}])
def test_clock_options(options):
    with pytest.raises(DeviceError):
        Cmos(**options)


# ---- firmware configuration ----


def test_fw_cfg_by_bytes_and_strings(kvm):
    device = FwCfg()
    with bench(kvm, device) as board:
        p = Ports(board)
        p.write(0x510, 0, 2)
        assert bytes(p.read(0x511) for _ in range(6)) == b"QEMU\0\0"
        device.add_file("opt/test", b"content")
        p.write(0x510, 0x19, 2)
        directory = p.read_string(0x511, 1, 4 + 2 * 64)
        assert struct.unpack(">I", directory[:4])[0] == 2
        names = {}
        for at in (4, 68):
            size, key, _, name = struct.unpack(">IHH56s", directory[at : at + 64])
            names[name.rstrip(b"\0")] = (size, key)
        assert set(names) == {b"etc/e820", b"opt/test"}
        size, key = names[b"opt/test"]
        p.write(0x510, key, 2)
        assert p.read_string(0x511, 1, size) == b"content"
        with pytest.raises(ValueError, match="name"):
            device.add_file("x" * 56, b"")


def test_memory_above_4_gib_is_told(kvm):
    config = FwCfg()
    with bench(kvm, Cmos(), config, memory=5 << 30) as board:  # nothing touches it
        p = Ports(board)
        # From 16 MiB, and from 4 GiB, in 64 KiB.
        assert cmos(p, 0x34) | cmos(p, 0x35) << 8 == (3 << 30) - (16 << 20) >> 16
        assert sum(cmos(p, 0x5B + i) << 8 * i for i in range(3)) == 2 << 30 >> 16
        map_ = config._items[config._files["etc/e820"]]
        assert list(struct.iter_unpack("<QQI", map_)) == [(0, 3 << 30, 1), (4 << 30, 2 << 30, 1)]


def test_fw_cfg_by_dma(kvm):
    device = FwCfg()
    with bench(kvm, device) as board:
        p, vm = Ports(board), board.vm
        assert p.read(0x514, 4) == int.from_bytes(b"QEMU", "little")
        assert p.read(0x518, 4) == int.from_bytes(b" CFG", "little")

        def dma(control: int, length: int, address: int) -> int:
            vm.write(0x5000, struct.pack(">IIQ", control, length, address))
            p.write(0x518, int.from_bytes((0x5000).to_bytes(4, "big"), "little"), 4)
            return struct.unpack(">I", vm.read(0x5000, 4))[0]

        assert dma(3 << 16 | 8 | 2, 8, 0x6000) == 0
        assert struct.unpack("<Q", vm.read(0x6000, 8))[0] == board.memory
        assert dma(0 << 16 | 8 | 4, 2, 0) == 0
        assert dma(2, 2, 0x6000) == 0
        assert vm.read(0x6000, 2) == b"MU"
        assert dma(2, 0xFFFFFFFF, 0x7F00_0000) & 1  # nowhere
        assert dma(16, 1, 0x6000) & 1  # nothing is writable
        p.write(0x514, 0xFFFFFFFF, 4)
        p.write(0x518, 0xFFFFFFFF, 4)  # a descriptor nowhere: nothing happens


def test_fw_cfg_read_by_a_guest(kvm):
    with bench(kvm, FwCfg()) as board:
        cpu = guest(board, """
            xor ax, ax; mov es, ax; mov di, 0x4000; mov cx, 4
            mov dx, 0x510; out dx, ax; inc dx; cld; rep insb
            mov word ptr [0x3000], 1; mov dx, 0x10; out dx, al; hlt
        """)  # fmt: skip
        board.vm.map_io(0x10, 1, write=lambda *_: cpu.stop())
        cpu.run()
        assert board.vm.read(0x4000, 4) == b"QEMU"


# ---- keyboard ----


def take(p: Ports) -> bytes:
    got = bytearray()
    while p.read(0x64) & 1:
        got.append(p.read(0x60))
    return bytes(got)


def test_controller(kvm):
    with bench(kvm, I8042()) as board:
        p = Ports(board)
        p.write(0x64, 0xAA)
        assert take(p) == b"\x55"
        p.write(0x64, 0xAB)
        assert take(p) == b"\x00"
        p.write(0x64, 0x60)
        p.write(0x60, 0x44)
        p.write(0x64, 0x20)
        assert take(p) == b"\x44"
        p.write(0x64, 0xD1)
        p.write(0x60, 0xDF)
        p.write(0x64, 0xD0)
        assert take(p) == b"\xdf"
        p.write(0x64, 0xD2)
        p.write(0x60, 0x12)
        assert take(p) == b"\x12"
        p.write(0x64, 0xFE)
        assert board.ended == [("reset", None)]


def test_keyboard_commands(kvm):
    with bench(kvm, I8042()) as board:
        p = Ports(board)
        for sent, answer in (
            (b"\xff", b"\xfa\xaa"),
            (b"\xee", b"\xee"),
            (b"\xf2", b"\xfa\xab\x41"),
            (b"\xed\x07", b"\xfa\xfa"),
            (b"\xf3\x00", b"\xfa\xfa"),
            (b"\xf0\x00", b"\xfa\xfa\x41"),
            (b"\x01", b"\xfe"),
            (b"\xfe", b"\xfe"),
        ):
            got = b""
            for byte in sent:
                p.write(0x60, byte)
                got += take(p)
            assert got == answer, sent
        assert board.devices[0].leds == 7


def test_typing(kvm):
    keyboard = I8042()
    with bench(kvm, keyboard) as board:
        p = Ports(board)
        keyboard.type("aB\n")
        keyboard.press("left")
        keyboard.release("left")
        settle(board)
        assert board.irq(1).level
        assert take(p).hex(" ") == "1e 9e 2a 30 b0 aa 1c 9c e0 4b e0 cb"
        p.write(0x64, 0x60)
        p.write(0x60, 0x05)  # no translation: set 2
        keyboard.type("a")
        settle(board)
        assert take(p).hex(" ") == "1c f0 1c"
        keyboard.type("x" * 5000)  # it waits
        settle(board)
        assert len(take(p)) == 15000
        with pytest.raises(ValueError, match="backspace"):
            keyboard.press("any")
        with pytest.raises(ValueError, match="é"):
            keyboard.type("é")


def test_keyboard_interrupts_of_a_guest(kvm):
    keyboard = I8042()
    with bench(kvm, keyboard) as board:
        cpu = guest(board, """
            xor ax, ax; mov ds, ax; mov es, ax; mov di, 0x3000
            mov word ptr [4 * 9], offset handler; mov word ptr [4 * 9 + 2], 0
            mov al, 0x11; out 0x20, al; mov al, 8; out 0x21, al; mov al, 4; out 0x21, al
            mov al, 1; out 0x21, al; mov al, 0xfd; out 0x21, al
            sti
            1: hlt; jmp 1b
            handler: in al, 0x60; stosb; mov al, 0x20; out 0x20, al; iret
        """)  # fmt: skip
        board.schedule(lambda: keyboard.type("Hi"), "20ms")
        board.schedule(cpu.stop, "200ms")
        cpu.run()
        assert board.vm.read(0x3000, 6).hex(" ") == "2a 23 a3 aa 17 97"


# ---- power, consoles, DMA ----


@pytest.mark.parametrize(
    ("port", "size", "values", "end"),
    [
        (0x604, 2, [0x2000], "power-off"),
        (0xB004, 2, [0x2000], "power-off"),
        (0x604, 2, [0x3400], None),
        (0x8900, 1, b"xShutdown", "power-off"),
        (0x8900, 1, b"Shutdow", None),
        (0xCF9, 1, [0x02, 0x06], "reset"),
        (0x92, 1, [0x02], None),
        (0x92, 1, [0x03], "reset"),
    ],
)
def test_power(kvm, port, size, values, end):
    with bench(kvm, PowerOff()) as board:
        for value in values:
            Ports(board).write(port, value, size)
        assert [reason for reason, _ in board.ended] == ([end] if end else [])


def test_debug_console_and_exit(kvm):
    with bench(kvm, DebugConsole(), DebugExit()) as board:
        cpu = guest(board, """
            in al, 0xe9; mov bl, al; mov al, 'k'; out 0xe9, al; mov eax, 0x1234; out 0xf4, ax; hlt
        """)  # fmt: skip
        cpu.run()
        assert cpu.regs.rbx & 0xFF == 0xE9
        assert board.output.getvalue() == b"k"
        assert board.ended == [("exit", 0x1234)]


def test_dma_flip_flop(kvm):
    with bench(kvm, DmaPage()) as board:
        p = Ports(board)
        p.write(0x0D, 0)
        p.write(0x02, 0x34)
        p.write(0x02, 0x12)
        p.write(0x0C, 0)
        assert p.read(0x02) | p.read(0x02) << 8 == 0x1234
        p.write(0x0A, 0x02)
        assert p.read(0x0F) == 0xFB
        p.write(0xD4, 0x00)
        assert p.read(0xDE) == 0xFE
        p.write(0x80, 0x42)
        assert board.devices[0].post_code == 0x42
        p.write(0x81, 0x99)
        assert p.read(0x81) == 0x99


# ---- screen ----


def test_a_guest_draws(kvm, tmp_path):
    screen = VgaText()
    with bench(kvm, screen) as board:
        cpu = guest(board, """
            mov ax, 0xb800; mov es, ax; xor di, di; cld
            mov ax, 0x0720; mov cx, 2000; rep stosw
            mov di, 160
            mov ax, 0x1e48; stosw; mov ax, 0x1e69; stosw; mov ax, 0x0cc9; stosw
            mov ax, 0x0cdb; stosw
            mov dx, 0x3d4; mov ax, 0x000e; out dx, al; inc dx; xor al, al; out dx, al
            dec dx; mov al, 0x0f; out dx, al; inc dx; mov al, 84; out dx, al
            out 0x10, al; hlt
        """)  # fmt: skip
        board.vm.map_io(0x10, 1, write=lambda *_: cpu.stop())
        cpu.run()
        assert screen.screen()[1].startswith("Hi╔█ ")
        assert screen.text == "\nHi╔█"
        assert screen.attributes()[1][:4] == b"\x1e\x1e\x0c\x0c"
        assert screen.cursor == (1, 4)
        screen.save(tmp_path / "screen.png")
        picture = screen.image()
        assert picture.size == (640, 400)
        assert picture.getpixel((0, 16)) == (0, 0, 0xAA)  # the background of "H"
        assert picture.getpixel((3 * 8 + 4, 24)) == (0xFF, 0x55, 0x55)  # the block
        assert screen._repr_png_().startswith(b"\x89PNG")


def test_screen_registers(kvm):
    screen = VgaText()
    with bench(kvm, screen) as board:
        p = Ports(board)
        assert {p.read(0x3DA) for _ in range(4)} == {0, 1, 9}
        p.read(0x3DA)
        p.write(0x3C0, 0x10)
        p.write(0x3C0, 0x55)
        assert screen.attribute_bank[0x10] == 0x55
        p.write(0x3C8, 7)
        for value in (1, 2, 0xFF):
            p.write(0x3C9, value)
        p.write(0x3C7, 7)
        assert [p.read(0x3C9) for _ in range(3)] == [1, 2, 0x3F]
        p.write(0x3D4, 0x0C)
        p.write(0x3D5, 0)
        p.write(0x3D4, 0x0D)
        p.write(0x3D5, 80)
        board.vm.write(0xB8000 + 160, b"X\x07")
        assert screen.screen()[0][0] == "X"
        p.write(0x3D4, 0x0A)
        p.write(0x3D5, 0x20)
        assert screen.cursor is None


def test_screen_without_memory(kvm):
    with bench(kvm, VgaText(), memory=64 << 10) as board:
        assert board.devices[0].text.strip("\0 \n") == ""


# ---- whatever a guest does ----

DEVICES = (Serial16550, Cmos, FwCfg, I8042, DmaPage, PowerOff, VgaText, DebugExit)


def drive(data) -> None:
    """Some accesses to any register of any device."""
    with kvmcpu.Kvm() as kvm:
        made = [kind() for kind in DEVICES]
        with bench(kvm, *made, AtaController(disks=[bytes(64 << 10)])) as board:
            p = Ports(board)
            ports = p.all()
            steps = data.draw(st.lists(st.tuples(
                st.sampled_from(ports), st.sampled_from((1, 2, 4)), st.booleans(),
                st.integers(0, 0xFFFFFFFF)), min_size=5, max_size=80))  # fmt: skip
            for port, size, writes, value in steps:
                if writes:
                    p.write(port, value & (1 << 8 * size) - 1, size)
                else:
                    p.read(port, size)
                settle(board)
            for device in board.devices:
                device.load_state(device.state())
                device.describe()


@settings(max_examples=sized(500), deadline=None)
@given(st.data())
def test_anything_a_guest_does(data):
    """No access raises, whatever was written before; values fit; states can be put back."""
    drive(data)


@pytest.mark.slow
@settings(max_examples=24_000, deadline=None)
@given(st.data())
def test_anything_a_guest_does_for_long(data):
    """The same for some ten minutes."""
    drive(data)
