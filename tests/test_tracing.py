# SPDX-License-Identifier: MIT
"""The ring of a vCPU's last exits, which is always on and ends every error report."""

from __future__ import annotations

import pytest
from conftest import Maker

import kvmcpu

pytestmark = pytest.mark.kvm(arch="x86_64")


def test_no_exits_yet(cpu: kvmcpu.Vcpu) -> None:
    """V25: before the first entry there are none."""
    assert cpu.last_exits() == []


def test_records(guest: Maker) -> None:
    """V25: reason, address, size, data, latency and tick of each exit, the oldest first."""
    g = guest(
        """
        mov ax, 0xf000
        mov ds, ax
        mov eax, 0x11223344
        out 0x40, eax
        in ax, 0x41
        mov [0x10], al
        mov ebx, [0x20]
        hlt
        """,
        memory="64KiB",
        clock="1GHz",
    )
    g.vm.map_io(0x40, 1, write=lambda _offset, _size, _value: 700)
    g.vm.map_io(0x41, 1, read=lambda _offset, _size: (0xBEEF, 800))
    g.vm.map_mmio(0xF0000, 0x1000, read=lambda _o, _s: 0xCAFEF00D, write=lambda _o, _s, _v: 5)
    g.run()
    records = g.cpu.last_exits()
    assert [record.name for record in records] == ["IO", "IO", "MMIO", "MMIO", "HLT"]
    assert [tuple(record)[1:5] for record in records] == [
        (0x40, 4, 0x11223344, 700),
        (0x41, -2, 0xBEEF, 800),
        (0xF0010, 1, 0xEF, 5),
        (0xF0020, -4, 0xCAFEF00D, 0),
        (0, 0, 0, 0),
    ]
    ticks = [record.tick for record in records]
    assert ticks == sorted(ticks)
    assert ticks[0] > 0
    # An exit happens after the latency of the one before.
    assert ticks[1] >= ticks[0] + 700
    assert ticks[-1] <= g.vm.queue.now
    name, address, size, data, latency, tick = records[0]
    assert (name, address, size, data, latency, tick) == records[0]
    assert isinstance(records[0], kvmcpu.ExitRecord)
    assert "IO" in repr(records[0])


def test_ring_keeps_the_last(guest: Maker) -> None:
    """V25: the ring holds the last 64 exits, whatever came before, and wraps without a gap."""
    g = guest("mov cx, 200\nmore: mov ax, cx; out 0x40, ax; loop more\nhlt")
    g.vm.map_io(0x40, 2, write=kvmcpu.ByteSink())
    g.run()
    records = g.cpu.last_exits()
    assert len(records) == 64
    assert [record.data for record in records] == [*range(63, 0, -1), 0]
    assert [record.name for record in records] == ["IO"] * 63 + ["HLT"]
    assert len({record.tick for record in records}) == 64


def test_ring_of_each_vcpu(guest: Maker) -> None:
    """V25: each vCPU has its own."""
    g = guest("out 0x40, al; hlt")
    g.vm.map_io(0x40, 1)
    other = g.vm.create_vcpu()
    g.run()
    assert [record.name for record in g.cpu.last_exits()] == ["IO", "HLT"]
    assert other.last_exits() == []


def test_signal_exits_are_there(guest: Maker) -> None:
    """V25: so are entries that a timer ended, and half entries."""
    g = guest("spin: jmp spin")
    g.cpu.enter("10us")
    g.cpu.enter(0)
    assert [record.name for record in g.cpu.last_exits()] == ["INTR", "INTR"]


def test_read_in_a_handler(guest: Maker) -> None:
    """V25: a handler sees the exit that it services as the last one."""
    g = guest("mov al, 7; out 0x40, al; hlt")
    seen: list[kvmcpu.ExitRecord] = []
    g.vm.map_io(0x40, 1, write=lambda _o, _s, _v: seen.append(g.cpu.last_exits()[-1]))
    g.run()
    assert [tuple(record)[:5] for record in seen] == [("IO", 0x40, 1, 7, 0)]


def test_end_of_an_error_report(guest: Maker) -> None:
    """V25, V16: an unassigned access tells the exits that led to it, with the registers."""
    g = guest("mov al, 0x5a; out 0x40, al; in ax, 0x41; mov bx, 0x77; out 0x99, al")
    g.vm.map_io(0x40, 1)
    g.vm.map_io(0x41, 1, read=lambda _offset, _size: 0x1234)
    with pytest.raises(kvmcpu.UnassignedAccessError) as caught:
        g.run()
    report = str(caught.value)
    exits = report.partition("last exits")[2].splitlines()
    assert [line.split()[2] for line in exits[1:]] == ["IO"] * 3
    assert "write 0x40  1 byte  data 0x5a" in exits[1]
    assert "read 0x41  2 bytes  data 0x1234" in exits[2]
    assert "write 0x99  1 byte  data 0x34" in exits[3]
    ticks = [record.tick for record in g.cpu.last_exits()]
    assert [int(line.split()[1]) for line in exits[1:]] == ticks
    assert caught.value.registers in report
    assert "0000000000000077" in caught.value.registers


def test_end_of_a_crashs_report(long_guest: Maker) -> None:
    """V25: so does a triple fault, whose own exit is the last."""
    g = long_guest("out 0x40, al; ud2")
    g.vm.map_io(0x40, 1)
    with pytest.raises(kvmcpu.GuestError) as caught:
        g.run()
    lines = str(caught.value).partition("last exits")[2].splitlines()[1:]
    assert len(lines) == 2
    assert lines[-1].split()[2] == caught.value.exit.name == g.cpu.last_exits()[-1].name
    assert lines[0].split()[2] == "IO"
