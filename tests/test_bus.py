# SPDX-License-Identifier: MIT
"""The bus: handlers in Python and devices in C, at ports and at physical addresses (V15, V16)."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import subprocess
import threading
import weakref
from pathlib import Path

import guests
import pytest

import kvmcpu

CORE = Path(__file__).parent.parent / "csrc" / "core"
DEVICE = 0x20000000  # a physical address without memory that long mode maps

WRITE64 = f"""
    mov rbx, {DEVICE:#x}
    mov rax, 0x1122334455667788
    mov [rbx], al
    mov [rbx + 2], ax
    mov [rbx + 4], eax
    mov [rbx + 8], rax
    hlt
"""
READ64 = f"""
    mov rbx, {DEVICE:#x}
    mov rax, -1
    mov al, [rbx + 1]
    mov [0x8000], rax
    mov rax, -1
    mov ax, [rbx + 2]
    mov [0x8008], rax
    mov rax, -1
    mov eax, [rbx + 4]
    mov [0x8010], rax
    mov rax, -1
    mov rax, [rbx + 8]
    mov [0x8018], rax
    hlt
"""


# ---- accesses


def test_port_writes(guest) -> None:
    """V16: a write to a port reaches its handler with offset, size and value."""
    g = guest("""
        mov eax, 0x11223344
        mov dx, 0x300
        out dx, al
        inc dx
        out dx, ax
        add dx, 3
        out dx, eax
        hlt""")
    writes: list[tuple[int, int, int]] = []
    g.vm.map_io(0x300, 8, write=lambda *access: writes.append(access))
    g.run()
    assert writes == [(0, 1, 0x44), (1, 2, 0x3344), (4, 4, 0x11223344)]
    assert g.cpu.stats["io"] == 3


def test_port_reads(guest) -> None:
    """V16: what a handler returns is what the guest reads."""
    g = guest("""
        mov eax, -1
        mov dx, 0x300
        in al, dx
        mov [0x8000], eax
        inc dx
        in ax, dx
        mov [0x8004], eax
        inc dx
        in eax, dx
        mov [0x8008], eax
        hlt""")
    reads: list[tuple[int, int]] = []

    def read(offset: int, size: int) -> int:
        reads.append((offset, size))
        return 0x0102030405060708 >> 8 * offset & ((1 << 8 * size) - 1)

    g.vm.map_io(0x300, 8, read)
    g.run()
    assert reads == [(0, 1), (1, 2), (2, 4)]
    words = memoryview(g.ram)[0x8000:0x800C].cast("I")
    assert list(words) == [0xFFFFFF08, 0xFFFF0607, 0x03040506]


def test_mmio_writes(long_guest) -> None:
    """V16: 1, 2, 4 and 8 bytes to a physical address."""
    g = long_guest(WRITE64)
    writes: list[tuple[int, int, int]] = []
    g.vm.map_mmio(DEVICE, 16, write=lambda *access: writes.append(access))
    g.run()
    value = 0x1122334455667788
    assert writes == [(0, 1, 0x88), (2, 2, 0x7788), (4, 4, 0x55667788), (8, 8, value)]
    assert g.cpu.stats["mmio"] == 4


def test_mmio_reads(long_guest) -> None:
    """V16: reads of 1, 2, 4 and 8 bytes; what is not read of a register stays."""
    g = long_guest(READ64)
    g.vm.map_mmio(DEVICE, 16, lambda offset, size: (1 << 8 * size) - 2 - offset)
    g.run()
    words = list(memoryview(g.ram)[0x8000:0x8020].cast("Q"))
    ones = (1 << 64) - 1
    assert words == [ones & ~0xFF | 0xFD, ones & ~0xFFFF | 0xFFFC, 0xFFFFFFFA, ones - 9]


def test_mmio_from_ring_3(user_guest) -> None:
    g = user_guest(WRITE64.replace("hlt", "mov rbx, 0x30000000; mov byte ptr [rbx], 0"))
    writes: list[tuple[int, int, int]] = []
    g.vm.map_mmio(DEVICE, 16, write=lambda *access: writes.append(access))
    g.vm.map_mmio(0x30000000, 1, write=lambda *_: g.cpu.stop() and None)
    g.run()
    assert [size for _, size, _ in writes] == [1, 2, 4, 8]


def test_an_access_across_a_page(long_guest) -> None:
    """V16: an access that lies across the edge of a page comes in two parts that add up."""
    g = long_guest(
        f"mov rbx, {DEVICE + 0xFFD:#x}; mov rax, 0x1122334455667788; mov [rbx], rax; hlt"
    )
    seen = bytearray(0x2000)

    def write(offset: int, size: int, value: int) -> None:
        seen[offset : offset + size] = value.to_bytes(size, "little")

    g.vm.map_mmio(DEVICE, 0x2000, write=write)
    g.run()
    assert seen[0xFFD:0x1005] == bytes.fromhex("8877665544332211")


def test_a_direction_without_a_handler(guest) -> None:
    """V16: a range without a handler for a direction reads all ones and drops what is written."""
    g = guest("xor eax, eax; mov dx, 0x300; in eax, dx; out dx, al; inc dx; in al, dx; hlt")
    g.vm.map_io(0x300, 2)
    g.run()
    assert g.cpu.regs.rax == 0xFFFFFFFF
    assert g.cpu.stats["unassigned"] == 0


def test_latency(guest) -> None:
    """V7: the ticks that a handler says it takes pass, and the record of the exit tells them."""
    code = "in al, 0x10; out 0x10, al; hlt"
    latency = 10**12
    slow, quick = guest(code), guest(code)
    slow.vm.map_io(0x10, 1, lambda *_: (1, latency), lambda *_: 2 * latency)
    quick.vm.map_io(0x10, 1, lambda *_: 1, lambda *_: None)
    assert slow.run() >= 3 * latency
    assert quick.run() < latency
    assert [r.latency for r in slow.cpu.last_exits() if r.name == "IO"] == [latency, 2 * latency]


def test_latency_of_a_string(guest) -> None:
    """V7: a string instruction that a handler gets item by item takes as long as all of them."""
    g = guest("mov cx, 5; mov si, 0x8000; mov dx, 0x10; rep outsb; hlt")
    calls: list[int] = []
    g.vm.map_io(0x10, 1, write=lambda *_: calls.append(1) or 10**12)
    assert 5 * 10**12 <= g.run() < 6 * 10**12
    assert len(calls) == 5


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (None, TypeError),
        ("1", TypeError),
        (1.0, TypeError),
        (256, ValueError),
        (-1, ValueError),
        (1 << 100, ValueError),
        ((1, -1), ValueError),
        ((1, "x"), TypeError),
        ((1, 2, 3), TypeError),
    ],
)
def test_wrong_answers(guest, answer, error) -> None:
    """V16: a handler's wrong answer is an error that names the place, and the guest can go on."""
    g = guest("in al, 0x10; hlt")
    g.vm.map_io(0x10, 1, lambda *_: answer)
    with pytest.raises(error, match="0x10"):
        g.run()
    assert g.cpu.stop_reason == "error"
    g.run()
    assert g.cpu.exit.name == "HLT"


def test_wrong_latency(guest) -> None:
    g = guest("out 0x10, al; hlt")
    g.vm.map_io(0x10, 1, write=lambda *_: "soon")
    with pytest.raises(TypeError, match="0x10"):
        g.run()


# ---- string I/O


def test_string_write_in_one_call(guest) -> None:
    """V16: rep outs in as few calls as the kernel hands it over in (x86 has one an item)."""
    g = guest("mov si, 0x8000; mov cx, 100; mov dx, 0x300; rep outsw; hlt")
    data = bytes(range(200))
    g.vm.write(0x8000, data)
    calls: list[tuple[int, int, bytes]] = []
    g.vm.map_io(0x300, 2, write=lambda *access: calls.append(access), string=True)
    g.run()
    assert b"".join(piece for _, _, piece in calls) == data
    assert all(isinstance(piece, bytes) and size == 2 for _, size, piece in calls)
    assert len(calls) == g.cpu.stats["io"]
    assert g.cpu.regs.rcx == 0


def test_string_read_in_one_call(guest) -> None:
    """V16: rep ins too; the handler returns all the items at once."""
    g = guest("mov di, 0x8000; mov cx, 100; mov dx, 0x300; rep insd; hlt")
    calls: list[tuple[int, int, int]] = []

    def read(offset: int, size: int, count: int) -> bytes:
        done = sum(n for _, _, n in calls)
        calls.append((offset, size, count))
        return b"".join((done + i).to_bytes(size, "little") for i in range(count))

    g.vm.map_io(0x300, 4, read, string=True)
    g.run()
    assert list(memoryview(g.ram)[0x8000:0x8190].cast("I")) == list(range(100))
    assert len(calls) == g.cpu.stats["io"] < 10


def test_string_item_by_item(guest) -> None:
    g = guest(
        """
                mov si, 0x8000
                mov cx, 5
                mov dx, 0x300
                rep outsb
                mov di, 0x8100
                mov cx, 5
                rep insb
                hlt"""
    )
    g.vm.write(0x8000, b"hello")
    source = iter(b"world")
    out: list[int] = []
    g.vm.map_io(0x300, 1, lambda *_: next(source), lambda offset, size, value: out.append(value))
    g.run()
    assert bytes(out) == b"hello"
    assert g.vm.read(0x8100, 5) == b"world"


@pytest.mark.parametrize("answer", [b"", b"12", b"1234567", "1234", None, 5])
def test_wrong_string_answers(guest, answer) -> None:
    g = guest("mov di, 0x8000; mov cx, 2; mov dx, 0x300; rep insw; hlt")
    g.vm.map_io(0x300, 2, lambda *_: answer, string=True)
    with pytest.raises((TypeError, ValueError), match="0x300"):
        g.run()


# ---- the map


def test_listed_in_order(vm) -> None:
    far = vm.map_mmio(0xD0000000, 0x1000)
    high = vm.map_io(0x3F8, 8)
    near = vm.map_mmio(0xC0000000, 4)
    low = vm.map_io(0, 1)
    assert vm.ranges == (low, high, near, far)
    assert [(r.space, r.address, r.size) for r in vm.ranges] == [
        ("io", 0, 1),
        ("io", 0x3F8, 8),
        ("mmio", 0xC0000000, 4),
        ("mmio", 0xD0000000, 0x1000),
    ]
    high.remove()
    high.remove()
    assert high.removed
    assert not low.removed
    assert vm.ranges == (low, near, far)
    assert "0x3f8" in repr(high)


@pytest.mark.parametrize("where", ["map_io", "map_mmio"])
def test_overlaps_are_refused(vm, where) -> None:
    """V16: an address has one device at most."""
    mapper = getattr(vm, where)
    mapper(0x100, 0x10)
    mapper(0x200, 0x10)
    before = vm.ranges
    for address, size in [
        (0x100, 1),
        (0x10F, 1),
        (0xF0, 0x11),
        (0x80, 0x1000),
        (0x1FF, 2),
        (0x200, 16),
    ]:
        with pytest.raises(ValueError, match="overlaps"):
            mapper(address, size)
    assert vm.ranges == before
    mapper(0x110, 0xF0)
    mapper(0xFF, 1)


def test_outside_the_spaces(vm) -> None:
    vm.map_io(0xFFFF, 1)
    vm.map_mmio((1 << 64) - 4096, 4096)
    for port, size in [(0x10000, 1), (0xFFF0, 0x11), (0, 0), (-1, 1), (0, 1 << 64), (0, 65537)]:
        with pytest.raises((ValueError, OverflowError)):
            vm.map_io(port, size)
    for address, size in [((1 << 64) - 1, 2), (0, 0), (-1, 1), (1 << 64, 1), (5, (1 << 64) - 1)]:
        with pytest.raises((ValueError, OverflowError)):
            vm.map_mmio(address, size)
    for arguments in [("0", 1), (0, None), (0, 1, 5), (0, 1, None, 5), (0, 1, "read")]:
        with pytest.raises(TypeError):
            vm.map_io(*arguments)
    with pytest.raises(TypeError):
        vm.map_io(0, 1, device=object())
    with pytest.raises(TypeError):
        vm.map_mmio(0, 1, string=True)
    with pytest.raises(TypeError):
        kvmcpu.BusRange()
    assert len(vm.ranges) == 2


def test_the_right_one_of_many(guest) -> None:
    """V16: each of a thousand neighbouring ports has its own device."""
    g = guest("""
        xor dx, dx
    again:
        mov al, dl
        out dx, al
        add dx, 3
        cmp dx, 3000
        jb again
        hlt""")
    hits: list[tuple[int, int]] = []
    for port in range(3000):
        g.vm.map_io(port, 1, write=lambda o, s, value, port=port: hits.append((port, value)))
    g.run()
    assert hits == [(port, port & 0xFF) for port in range(0, 3000, 3)]


def test_space_apart(guest) -> None:
    """V16: a port and an address of the same number have nothing to do with each other."""
    g = guest("mov ds:[0x300], al; mov dx, 0x300; out dx, al; hlt")
    g.cpu.sregs.ds.base = 0x20000000
    seen: list[str] = []
    g.vm.map_io(0x300, 1, write=lambda *_: seen.append("io"))
    g.vm.map_mmio(0x20000300, 1, write=lambda *_: seen.append("mmio"))
    g.run()
    assert seen == ["mmio", "io"]


# ---- what handlers may do


def test_add_and_remove_ranges(guest) -> None:
    """V16: a handler changes the map that it is called by."""
    g = guest("mov al, 1; out 0x10, al; out 0x11, al; out 0x12, al; hlt")
    seen: list[str] = []

    def first(*access: int) -> None:
        seen.append("first")
        second.remove()
        g.vm.map_io(0x11, 2, write=lambda offset, *_: seen.append(f"new {offset}"))

    g.vm.map_io(0x10, 1, write=first)
    second = g.vm.map_io(0x11, 1, write=lambda *_: seen.append("old"))
    g.run()
    assert seen == ["first", "new 0", "new 1"]


def test_a_handler_removes_itself(guest) -> None:
    """V16: also its own range, in the middle of a string instruction, and maps it anew."""
    g = guest("mov cx, 4; mov si, 0x8000; mov dx, 0x10; rep outsb; out 0x10, al; hlt")
    seen: list[str] = []

    class Device:
        def write(self, *access: int) -> None:
            seen.append("old")
            self.range.remove()
            assert self.range.removed

    device = Device()
    device.range = g.vm.map_io(0x10, 1, write=device.write)
    gone = weakref.ref(device)
    del device
    with pytest.raises(kvmcpu.UnassignedAccessError):
        g.run()
    assert set(seen) == {"old"}
    g.vm.map_io(0x10, 1, write=lambda *_: seen.append("new"))
    g.run()
    assert seen[-1] == "new"
    gc.collect()
    assert gone() is None


def test_exceptions_come_out(guest) -> None:
    """V16: what a handler raises comes out of run; the vCPU can be inspected and goes on."""
    g = guest("mov al, 7; out 0x10, al; in al, 0x10; mov bl, al; hlt")

    def fail(*access: int) -> int:
        raise ZeroDivisionError(f"{len(access)}")

    g.vm.map_io(0x10, 1, fail, fail)
    with pytest.raises(ZeroDivisionError, match="3"):
        g.run()
    assert g.cpu.stop_reason == "error"
    assert isinstance(g.cpu.exit, kvmcpu.IoExit)
    assert (g.cpu.exit.port, g.cpu.exit.data, g.cpu.exit.direction) == (0x10, b"\x07", "out")
    assert g.cpu.regs.rax & 0xFF == 7
    g.cpu.regs.rcx = 0x55
    with pytest.raises(ZeroDivisionError, match="2"):
        g.run()
    g.run()
    assert g.cpu.exit.name == "HLT"
    assert g.cpu.regs.rbx & 0xFF == 0xFF  # the read is over, with all ones
    assert g.cpu.regs.rcx == 0x55


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration])
def test_any_exception(guest, error) -> None:
    g = guest("out 0x10, al; hlt")

    def fail(*access: int) -> None:
        raise error

    g.vm.map_io(0x10, 1, write=fail)
    with pytest.raises(error):
        g.run()
    g.run()
    assert g.cpu.exit.name == "HLT"


def test_inject(guest) -> None:
    """V17: a handler injects an interrupt into the vCPU that calls it."""
    g = guest("""
        mov word ptr [0x20 * 4], offset handler
        mov word ptr [0x20 * 4 + 2], 0
        sti
        out 0x10, al
        nop
        nop
        hlt
    handler:
        mov byte ptr [0x8000], 1
        iret""")
    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.interrupt(0x20))
    g.run()
    assert g.ram[0x8000] == 1
    assert g.cpu.stats["interrupts"] == 1


def test_kick_and_stop(guest) -> None:
    """V10: a kick in a handler does nothing but pass, a stop ends the run behind the access."""
    g = guest("mov al, 1; out 0x10, al; mov al, 2; out 0x11, al; mov al, 3; hlt")
    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.kick() and None)
    g.vm.map_io(0x11, 1, write=lambda *_: g.cpu.stop() and None)
    g.run()
    assert g.cpu.stop_reason == "stop"
    assert g.cpu.regs.rax & 0xFF == 2
    g.run()
    assert g.cpu.stop_reason == "idle"
    assert g.cpu.regs.rax & 0xFF == 3


def test_stop_of_the_vm(guest) -> None:
    g = guest("out 0x10, al; hlt")
    g.vm.map_io(0x10, 1, write=lambda *_: g.vm.stop())
    g.run()
    assert g.cpu.stop_reason == "stop"


def test_close_in_a_handler(guest) -> None:
    """V16: a handler closes the VM under itself; the run ends, and everything is closed."""
    g = guest("out 0x10, al; again: jmp again")
    g.vm.map_io(0x10, 1, write=lambda *_: g.vm.close())
    with contextlib.suppress(kvmcpu.ClosedError):
        g.run()
    assert g.vm.closed
    assert g.cpu.closed
    with pytest.raises(kvmcpu.ClosedError):
        g.run()


def test_run_itself_in_a_handler(guest) -> None:
    g = guest("out 0x10, al; hlt")
    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.run() and None)
    with pytest.raises(kvmcpu.StateError):
        g.run()


def test_run_another_in_a_handler(kvm, guest) -> None:
    """V24: a handler may run the vCPU of another VM, or another one of its own."""
    inner = guest("mov al, 5; out 0x20, al; hlt")
    inner.collect(0x20)
    outer = guest("out 0x10, al; mov al, 9; out 0x20, al; hlt")
    outer.collect(0x20)
    outer.vm.map_io(0x10, 1, write=lambda *_: inner.run() and None)
    outer.run()
    assert (inner.out, outer.out) == ([5], [9])


def test_memory_in_a_handler(guest) -> None:
    g = guest("out 0x10, al; mov al, es:[0]; hlt")
    g.cpu.sregs.es.base = 0x800000

    def write(*access: int) -> None:
        g.vm.add_memory(0x800000, 4096)[0] = 0x77

    g.vm.map_io(0x10, 1, write=write)
    g.run()
    assert g.cpu.regs.rax & 0xFF == 0x77


def test_registers_in_a_handler(guest) -> None:
    """V12: a handler reads and writes the registers of the vCPU that calls it."""
    g = guest("mov bx, 0x1111; out 0x10, al; mov [0x8000], bx; hlt")

    def write(*access: int) -> None:
        assert g.cpu.regs.rbx == 0x1111
        g.cpu.regs.rbx = 0x2222

    g.vm.map_io(0x10, 1, write=write)
    g.run()
    assert g.vm.read(0x8000, 2) == b"\x22\x22"


# ---- nobody there (V16)


def test_unassigned_port(guest) -> None:
    """V16: an access to nobody is an error with address, size, direction, space and pc."""
    g = guest("mov dx, 0x1234; mov eax, 5; out dx, eax; in ax, dx; hlt")
    with pytest.raises(kvmcpu.UnassignedAccessError, match="0x1234") as caught:
        g.run()
    error = caught.value
    assert (error.address, error.size, error.direction, error.space) == (0x1234, 4, "write", "io")
    assert guests.ORIGIN < error.pc <= guests.ORIGIN + len(g.code)
    assert isinstance(error.exit, kvmcpu.IoExit)
    assert "rip" in error.registers
    assert g.cpu.status == "RunningService"
    # The access is tried again: with a device in place it succeeds.
    out: list[int] = []
    g.vm.map_io(0x1234, 4, lambda *_: 0x99, lambda offset, size, value: out.append(value))
    g.run()
    assert out == [5]
    assert g.cpu.regs.rax == 0x99


def test_unassigned_address(long_guest) -> None:
    """V16: and the same of a physical address."""
    g = long_guest(f"mov rbx, {DEVICE:#x}; mov rax, [rbx + 8]; hlt")
    with pytest.raises(kvmcpu.UnassignedAccessError) as caught:
        g.run()
    error = caught.value
    assert (error.address, error.size) == (DEVICE + 8, 8)
    assert (error.direction, error.space) == ("read", "mmio")
    assert error.pc == g.cpu.regs.rip
    g.vm.map_mmio(DEVICE, 16, lambda *_: 1234)
    g.run()
    assert g.cpu.regs.rax == 1234


def test_unassigned_ones(guest) -> None:
    """V16: a system may have it read all ones, drop writes, and count."""
    g = guest("xor eax, eax; mov dx, 0x1234; in al, dx; mov bx, ax; in eax, dx; out dx, eax; hlt")
    assert g.vm.unassigned == "error"
    g.vm.unassigned = "ones"
    g.run()
    assert g.vm.unassigned == "ones"
    assert g.cpu.regs.rbx & 0xFFFF == 0x00FF
    assert g.cpu.regs.rax == 0xFFFFFFFF
    assert g.cpu.stats["unassigned"] == 3
    for wrong in ("zeros", 1, None):
        with pytest.raises((TypeError, ValueError)):
            g.vm.unassigned = wrong


# ---- ByteSink


def test_sink(guest) -> None:
    """V16: what a guest prints is collected in C."""
    g = guest("""
        mov si, offset text
        mov cx, 5
        mov dx, 0x3f8
        rep outsb
        mov al, 33
        out dx, al
        hlt
    text:
        .ascii "hello"
    """)
    sink = kvmcpu.ByteSink()
    g.vm.map_io(0x3F8, 1, write=sink)
    g.run()
    assert sink.getvalue() == b"hello!"
    assert (sink.text, sink.total, sink.dropped, len(sink)) == ("hello!", 6, 0, 6)
    assert sink.clear() == b"hello!"
    assert (sink.getvalue(), sink.total, len(sink)) == (b"", 6, 0)


def test_sink_with_reads(guest) -> None:
    g = guest("mov dx, 0x3f8; mov al, 65; out dx, al; add dx, 5; in al, dx; mov bl, al; hlt")
    sink = kvmcpu.ByteSink()
    g.vm.map_io(0x3F8, 8, lambda offset, size: 0x60 if offset == 5 else 0, sink)
    g.run()
    assert sink.text == "A"
    assert g.cpu.regs.rbx & 0xFF == 0x60


def test_sink_limit_and_fd(guest) -> None:
    code = "mov al, 48; again: out 0xe9, al; inc al; cmp al, 58; jne again; hlt"
    g = guest(code)
    reader, writer = os.pipe()
    try:
        sink = kvmcpu.ByteSink(limit=4, fd=writer)
        g.vm.map_io(0xE9, 1, write=sink)
        g.run()
        assert os.read(reader, 100) == b"0123456789"
    finally:
        os.close(reader)
        os.close(writer)
    assert sink.getvalue() == b"6789"
    assert (sink.total, sink.dropped) == (10, 6)


def test_sink_at_an_address(long_guest) -> None:
    g = long_guest(WRITE64)
    sink = kvmcpu.ByteSink()
    g.vm.map_mmio(DEVICE, 16, write=sink)
    g.run()
    value = bytes.fromhex("8877665544332211")
    assert sink.getvalue() == value[:1] + value[:2] + value[:4] + value


def test_sink_without_the_interpreter(user_guest, interpreter_held) -> None:
    """V8: a guest that prints into a sink goes on while Python holds the interpreter lock."""
    g = user_guest(f"mov rbx, {DEVICE:#x}; again: mov byte ptr [rbx], 65; jmp again")
    sink = kvmcpu.ByteSink(limit=16)
    g.vm.map_mmio(DEVICE, 1, write=sink)
    thread = threading.Thread(target=g.cpu.run)
    thread.start()
    try:
        interpreter_held(lambda: sink.total, 1000)
    finally:
        g.cpu.stop()
        thread.join()


def test_sink_arguments() -> None:
    for options in ({"limit": -1}, {"limit": "1"}, {"fd": "x"}, {"fd": -5}, {"nonsense": 1}):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            kvmcpu.ByteSink(**options)
    with pytest.raises(TypeError):
        kvmcpu.ByteSink(16)


# ---- coalesced writes (V15)


def coalesced_log(vm: kvmcpu.VM, log: list[tuple[str, int]]) -> None:
    vm.map_mmio(DEVICE, 0x1000, write=lambda o, s, value: log.append(("a", value)), coalesced=True)
    vm.map_mmio(
        DEVICE + 0x1000, 0x1000, write=lambda o, s, value: log.append(("b", value)), coalesced=True
    )
    vm.map_io(0x300, 4, write=lambda o, s, value: log.append(("p", value)), coalesced=True)
    vm.map_io(0x400, 4, write=lambda o, s, value: log.append(("exit", value)))


def test_coalesced_order(long_guest) -> None:
    """V15: in the order of the guest, from several zones, before the exit that follows."""
    g = long_guest(f"""
        mov rbx, {DEVICE:#x}
        mov dword ptr [rbx], 1
        mov dword ptr [rbx + 0x1000], 2
        mov dx, 0x300
        mov eax, 3
        out dx, eax
        mov dword ptr [rbx + 8], 4
        mov dx, 0x400
        mov eax, 5
        out dx, eax
        mov dword ptr [rbx + 0x1008], 6
        hlt""")
    log: list[tuple[str, int]] = []
    coalesced_log(g.vm, log)
    g.run()
    assert log == [("a", 1), ("b", 2), ("p", 3), ("a", 4), ("exit", 5), ("b", 6)]
    assert g.cpu.stats["coalesced_mmio"] == 5
    assert g.cpu.stats["mmio"] == 0
    assert g.cpu.stats["io"] == 1


def test_coalesced_ring_wraps(long_guest) -> None:
    """V15: far more writes than the ring holds, in order, none lost and none twice."""
    count = 3000
    g = long_guest(f"""
        mov rbx, {DEVICE:#x}
        xor eax, eax
    again:
        mov [rbx], eax
        inc eax
        cmp eax, {count}
        jne again
        hlt""")
    log: list[int] = []
    g.vm.map_mmio(DEVICE, 8, write=lambda o, s, value: log.append(value), coalesced=True)
    g.run()
    assert log == list(range(count))
    stats = g.cpu.stats
    # What finds the ring full leaves the guest as any MMIO does.
    assert stats["coalesced_mmio"] + stats["mmio"] == count
    assert stats["coalesced_mmio"] > 20 * stats["mmio"]


def test_coalesced_latency_and_errors(long_guest) -> None:
    g = long_guest(
        f"mov rbx, {DEVICE:#x}; mov [rbx], al; mov [rbx + 1], al; mov [rbx + 2], al; hlt"
    )
    calls: list[int] = []

    def write(offset: int, size: int, value: int) -> int:
        calls.append(offset)
        if offset == 1:
            raise LookupError("one")
        return 10**12

    g.vm.map_mmio(DEVICE, 8, write=write, coalesced=True)
    with pytest.raises(LookupError):
        g.run()
    assert calls == [0, 1]
    g.run()
    assert calls == [0, 1, 2]
    assert g.vm.queue.now >= 2 * 10**12
    assert g.cpu.status == "Idle"


def test_coalesced_range_removed(long_guest) -> None:
    """V15: what was coalesced leaves the guest as MMIO again when the range is gone."""
    g = long_guest(f"mov rbx, {DEVICE:#x}; mov [rbx], al; hlt; mov [rbx], al; hlt")
    log: list[int] = []
    zone = g.vm.map_mmio(DEVICE, 8, write=lambda *_: log.append(1), coalesced=True)
    g.run()
    assert log == [1]
    zone.remove()
    g.cpu.activate()
    with pytest.raises(kvmcpu.UnassignedAccessError):
        g.run()


# ---- the architecture's hook


def test_address_hook(long_guest) -> None:
    """V16: a hook sends an MMIO access elsewhere before it is dispatched."""
    g = long_guest(f"mov rbx, {DEVICE:#x}; mov [rbx + 4], eax; mov eax, [rbx + 8]; hlt")
    calls: list[tuple[int, int, bool]] = []
    seen: list[tuple[int, int]] = []

    def hook(cpu: kvmcpu.Vcpu, address: int, size: int, is_write: bool) -> int:
        assert cpu is g.cpu
        calls.append((address, size, is_write))
        return address + 0x100000

    g.vm.address_hook = hook
    assert g.vm.address_hook is hook
    g.vm.map_mmio(DEVICE + 0x100000, 16, lambda o, s: 0x31 + o, lambda o, s, v: seen.append((o, s)))
    g.run()
    assert calls == [(DEVICE + 4, 4, True), (DEVICE + 8, 4, False)]
    assert seen == [(4, 4)]
    assert g.cpu.regs.rax == 0x39
    g.vm.address_hook = None
    assert g.vm.address_hook is None
    with pytest.raises(TypeError):
        g.vm.address_hook = 5


@pytest.mark.parametrize("answer", [None, -1, "1", 1 << 64])
def test_address_hook_errors(long_guest, answer) -> None:
    g = long_guest(f"mov rbx, {DEVICE:#x}; mov [rbx], eax; hlt")
    g.vm.map_mmio(DEVICE, 16)
    g.vm.address_hook = lambda *_: answer
    with pytest.raises((TypeError, ValueError, OverflowError)):
        g.run()
    g.vm.address_hook = None
    g.run()
    assert g.cpu.exit.name == "HLT"


# ---- a device in C

DEVICE_SOURCE = r"""
#include <stdlib.h>
#include <string.h>
#include "bus.h"

struct counter { uint64_t calls, bytes, last, released; };

static int access_counter(void *opaque, struct kc_access *access, struct kc_error *err)
{
	struct counter *counter = opaque;
	uint64_t value = 0;

	counter->calls++;
	counter->bytes += (uint64_t)access->size * access->count;
	if (access->is_write) {
		memcpy(&value, access->data, access->size < 8 ? access->size : 8);
		counter->last = value;
		if (value == 0xee) {
			err->kind = KC_ERR_STATE;
			strcpy(err->message, "the counter does not like 0xee");
			return -1;
		}
		access->latency = 1000000000000;
	} else {
		value = counter->calls + 0x40 + access->offset;
		for (uint32_t i = 0; i < access->count; i++)
			memcpy(access->data + i * access->size, &value, access->size);
	}
	return 0;
}

static void release_counter(void *opaque)
{
	((struct counter *)opaque)->released++;
}

__attribute__((visibility("default")))
int fill(struct kc_device *device, struct counter *counter, int string)
{
	memset(device, 0, sizeof(*device));
	memset(counter, 0, sizeof(*counter));
	device->access = access_counter;
	device->release = release_counter;
	device->opaque = counter;
	device->string = string;
	return sizeof(*device);
}
"""


class Counter(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("calls", "bytes", "last", "released"))


@pytest.fixture(scope="session")
def device_library(tmp_path_factory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("device")
    source, library = directory / "device.c", directory / "device.so"
    source.write_text(DEVICE_SOURCE)
    command = ["cc", "-std=gnu17", "-Wall", "-Werror", "-shared", "-fPIC", f"-I{CORE}"]
    subprocess.run([*command, "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


def capsule(library: ctypes.CDLL, *, string: bool = False, name: bytes = b"kvmcpu.device"):
    """A capsule around a device; it, what must live as long, and what the device counts."""
    memory, counter = ctypes.create_string_buffer(256), Counter()
    assert library.fill(memory, ctypes.byref(counter), string) <= 256
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    return new(ctypes.addressof(memory), name, None), (memory, name), counter


def test_device_in_c(guest, device_library) -> None:
    """V16: a device written in C against bus.h, in a capsule."""
    device, _keep, counter = capsule(device_library)
    g = guest("mov al, 0x33; out 0x10, al; in al, 0x12; mov bl, al; hlt")
    place = g.vm.map_io(0x10, 4, device=device)
    assert g.run() >= 10**12
    assert (counter.calls, counter.bytes, counter.last) == (2, 2, 0x33)
    assert g.cpu.regs.rbx & 0xFF == 0x44
    assert counter.released == 0
    place.remove()
    del place
    gc.collect()
    assert counter.released == 1


def test_device_in_c_with_strings(guest, device_library) -> None:
    device, _keep, counter = capsule(device_library, string=True)
    g = guest(
        """
                mov si, 0x8000
                mov cx, 64
                mov dx, 0x10
                rep outsb
                mov di, 0x8100
                mov cx, 4
                rep insw
                hlt"""
    )
    g.vm.map_io(0x10, 4, device=device)
    g.run()
    assert counter.bytes == 64 + 8
    assert counter.calls == g.cpu.stats["io"]
    g.vm.close()
    assert counter.released == 1


def test_device_in_c_fails(guest, device_library) -> None:
    """V16: its error comes out of run with its own words."""
    device, _keep, _counter = capsule(device_library)
    g = guest("mov al, 0xee; out 0x10, al; hlt")
    g.vm.map_io(0x10, 4, device=device)
    with pytest.raises(kvmcpu.StateError, match="does not like"):
        g.run()
    g.run()
    assert g.cpu.exit.name == "HLT"


def test_device_in_c_wrongly_given(vm, device_library) -> None:
    device, _keep, counter = capsule(device_library)
    with pytest.raises(TypeError):
        vm.map_io(0, 1, lambda *_: 0, device=device)
    with pytest.raises(TypeError):
        vm.map_io(0, 1, device=device, string=True)
    other, _also, _ = capsule(device_library, name=b"other.device")
    with pytest.raises(TypeError, match=r"kvmcpu\.device"):
        vm.map_io(0, 1, device=other)
    vm.map_io(0, 1, device=device)
    with pytest.raises(ValueError):
        vm.map_io(0, 1, device=capsule(device_library)[0])
    assert vm.ranges[0].size == 1
    assert counter.released == 0


# ---- several CPUs


def test_handlers_of_two_cpus_take_turns(vm) -> None:
    """V24: the device lock: one access never sees half of another's."""
    ram = vm.add_memory(0, "1MiB")
    code = guests.assemble("mov cx, 2000; again: out 0x10, al; loop again; hlt")
    ram[guests.ORIGIN : guests.ORIGIN + len(code)] = code
    inside: list[int] = []
    overlaps: list[int] = []

    def write(*access: int) -> None:
        inside.append(1)
        if len(inside) > 1:
            overlaps.append(1)
        sum(range(20))
        inside.pop()

    vm.map_io(0x10, 1, write=write)
    cpus = [vm.create_vcpu() for _ in range(2)]
    threads = []
    for cpu in cpus:
        guests.x86_start.real(cpu, guests.ORIGIN, stack=guests.ORIGIN)
        threads.append(threading.Thread(target=cpu.run))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert not overlaps
    assert [cpu.stats["io"] for cpu in cpus] == [2000, 2000]
    assert vm.stats["io"] == 4000
