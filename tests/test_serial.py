# SPDX-License-Identifier: MIT
"""The 16550: its registers, and guests that talk through it."""

from __future__ import annotations

import random

import pytest
from devices import Ports, bench, settle
from guests import ORIGIN, assemble, sized
from hypothesis import given, settings
from hypothesis import strategies as st

import kvmcpu
from kvmcpu.devices import Serial16550
from kvmcpu.loaders import x86_start

pytestmark = pytest.mark.kvm(arch="x86_64")
COM1 = 0x3F8
DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(COM1, COM1 + 8)


@pytest.fixture
def port(kvm):
    serial = Serial16550()
    with bench(kvm, serial) as board:
        yield serial, board, Ports(board)


def test_transmit(port):
    _, board, p = port
    assert p.read(LSR) & 0x60 == 0x60
    for byte in b"abc":
        p.write(DATA, byte)
    assert board.output.getvalue() == b"abc"


def test_divisor_latch(port):
    serial, board, p = port
    p.write(LCR, 0x83)
    p.write(DATA, 0x01)
    p.write(IER, 0x02)
    assert (p.read(DATA), p.read(IER)) == (1, 2)
    p.write(LCR, 0x03)
    assert p.read(IER) == 0
    p.write(DATA, ord("x"))
    assert board.output.getvalue() == b"x"
    assert serial.divisor_low | serial.divisor_high << 8 == 0x201


def test_receive_and_trigger_levels(port):
    serial, board, p = port
    p.write(IIR, 0x81)  # FIFOs, trigger at 8
    p.write(IER, 1)
    p.write(MCR, 0x08)
    serial.input(b"1234")
    settle(board)
    assert p.read(IIR) == 0xCC  # below the level: time-out
    assert board.irq(4).level
    serial.input(b"567890")
    settle(board)
    assert p.read(IIR) == 0xC4
    taken = bytes(p.read(DATA) for _ in range(10))
    assert taken == b"1234567890"
    assert p.read(IIR) == 0xC1
    assert not p.read(LSR) & 1
    assert not board.irq(4).level


def test_input_is_never_lost(port):
    serial, board, p = port
    data = random.Random(1).randbytes(70000)
    serial.input(data)
    settle(board)
    assert serial.waiting == len(data)
    got = bytearray()
    while p.read(LSR) & 1:
        got.append(p.read(DATA))
    assert got == data
    assert not p.read(LSR) & 2


def test_transmitter_interrupt(port):
    _, board, p = port
    p.write(MCR, 8)
    p.write(IER, 2)
    assert p.read(IIR) == 0x02  # reading it takes it away
    assert p.read(IIR) == 0x01
    p.write(DATA, 65)
    assert board.irq(4).level
    assert p.read(IIR) == 0x02
    assert not board.irq(4).level
    p.write(IER, 0)
    p.write(IER, 2)
    assert p.read(IIR) == 0x02


def test_out2_connects_the_line(port):
    serial, board, p = port
    p.write(IER, 1)
    serial.input(b"x")
    settle(board)
    assert p.read(IIR) & 0xF == 4
    assert not board.irq(4).level
    p.write(MCR, 8)
    assert board.irq(4).level


def test_loop_back(port):
    serial, board, p = port
    p.write(MCR, 0x1A)  # loop, RTS, OUT2
    assert p.read(MSR) & 0xF0 == 0x90
    p.write(DATA, 0x55)
    assert p.read(LSR) & 1
    assert p.read(DATA) == 0x55
    assert board.output.getvalue() == b""
    p.write(DATA, 1)
    p.write(DATA, 2)  # overrun, without FIFOs
    assert p.read(LSR) & 2
    assert not p.read(LSR) & 2
    serial.input(b"later")  # what the host sends waits
    settle(board)
    assert p.read(DATA) == 2
    p.write(MCR, 0)
    assert p.read(DATA) == ord("l")


def test_modem_status_changes(port):
    _, _, p = port
    assert p.read(MSR) == 0xB0
    p.write(MCR, 0x10)
    assert p.read(MSR) == 0x0B
    assert p.read(MSR) == 0x00


def test_state_in_the_middle_of_input(kvm, port):
    serial, board, p = port
    p.write(IIR, 1)
    p.write(IER, 1)
    p.write(LCR, 3)
    serial.input(b"hello" * 10)
    settle(board)
    assert bytes(p.read(DATA) for _ in range(7)) == b"hellohe"
    state = serial.state()
    twin = Serial16550()
    with bench(kvm, twin) as other:
        twin.load_state(state)
        q = Ports(other)
        assert twin.state() == state
        assert bytes(q.read(DATA) for _ in range(43)) == (b"hello" * 10)[7:]


def test_description(port):
    serial, _, p = port
    p.write(LCR, 3)
    text = "\n".join(serial.describe())
    assert "lcr 0x03 (LENGTH=0x3)" in text
    assert "ports 0x3f8-0x3f8" in text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.integers(0, 255)), max_size=60))
def test_anything_a_guest_does(steps):
    with kvmcpu.Kvm() as kvm, bench(kvm, Serial16550()) as board:
        p = Ports(board)
        for offset, writes, value in steps:
            if writes:
                p.write(COM1 + offset, value)
            else:
                p.read(COM1 + offset)
            board.devices[0].input(bytes([value]))
            settle(board)


# ---- guests ----

ECHO = """
    xor ax, ax; mov ds, ax
    mov word ptr [4 * 12], offset handler; mov word ptr [4 * 12 + 2], 0
    mov al, 0x11; out 0x20, al; mov al, 8; out 0x21, al; mov al, 4; out 0x21, al
    mov al, 1; out 0x21, al; mov al, 0xef; out 0x21, al
    mov dx, 0x3fa; mov al, 0x81; out dx, al
    mov dx, 0x3fc; mov al, 0x0b; out dx, al
    mov dx, 0x3f9; mov al, 1; out dx, al
    xor ebx, ebx; xor ecx, ecx
    sti
    1: hlt; jmp 1b
    handler:
    mov dx, 0x3fd; in al, dx; test al, 1; jz 2f
    mov dx, 0x3f8; in al, dx
    movzx eax, al
    imul ebx, ebx, 31; add ebx, eax; inc ecx
    jmp handler
    2: mov al, 0x20; out 0x20, al
    iret
"""


def test_64_kib_by_interrupt(kvm):
    """A guest that sums what comes gets all of it, in order, pasted at once."""
    serial = Serial16550()
    data = random.Random(2).randbytes(sized(65536))
    with bench(kvm, serial) as board:
        code = assemble(ECHO)
        board.vm.write(ORIGIN, code)
        cpu = board.vm.create_vcpu()
        x86_start.real(cpu, ORIGIN, stack=0x8000)
        serial.input(data)
        board.vm.queue.schedule(cpu.stop, delay="60s")
        check = board.schedule(lambda: None, "1ms")

        def look() -> None:
            if serial.waiting:
                check.reschedule(delay="5ms")
            else:  # the last byte is still to be counted
                board.schedule(cpu.stop, "20ms")

        check.cancel()
        check = board.schedule(look, "5ms")
        cpu.run()
        expected = 0
        for byte in data:
            expected = (expected * 31 + byte) & 0xFFFFFFFF
        assert cpu.regs.rcx == len(data)
        assert cpu.regs.rbx == expected


def test_polling_guest_in_c(kvm):
    """Writes and the line status are served in C: Python is not asked for any of them."""
    serial = Serial16550()
    with bench(kvm, serial) as board:
        board.vm.write(ORIGIN, assemble(
            "mov cx, 500; 1: mov dx, 0x3fd; 2: in al, dx; test al, 0x20; jz 2b"
            "; mov dx, 0x3f8; mov al, cl; out dx, al; loop 1b; out 0x10, al; hlt"
        ))  # fmt: skip
        calls = []
        window = serial._windows["data_port"]
        window.read = window.write = lambda *a: calls.append(a)
        cpu = board.vm.create_vcpu()
        x86_start.real(cpu, ORIGIN, stack=0x8000)
        board.vm.map_io(0x10, 1, write=lambda *_: cpu.stop())
        cpu.run()
        assert board.output.getvalue() == bytes(i & 255 for i in range(500, 0, -1))
        assert not calls
