# SPDX-License-Identifier: MIT
"""The states and what moves a vCPU between them; half entries; sleeping and waking."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Maker
from guests import MMIO, ORIGIN, Guest

import kvmcpu

pytestmark = pytest.mark.kvm(arch="x86_64")

SPIN = "spin: jmp spin"
# A handler for vector 0x20 in real mode's table, which counts in bl.
COUNTING = """
    xor ax, ax
    mov ds, ax
    mov word ptr [0x20 * 4], offset handler
    mov word ptr [0x20 * 4 + 2], ax
    xor bl, bl
    sti
again:
    hlt
    jmp again
handler:
    inc bl
    iret
"""


def tick_until(cpu: kvmcpu.Vcpu, status: str, most: int = 20) -> None:
    for _ in range(most):
        if cpu.status == status:
            return
        cpu.tick()
    raise AssertionError(f"{cpu!r} does not get to {status}")


def reason(cpu: kvmcpu.Vcpu) -> str:
    assert cpu.exit is not None
    return cpu.exit.name


# ---- steps (V7)


def test_a_write_step_by_step(guest: Maker) -> None:
    """V7: Running, an exit, RunningService, the device, RunningServiceCompletion, Running, Idle."""
    g = guest("mov al, 'A'; out 0xe9, al; hlt")
    out = g.collect()
    assert g.cpu.status == "Running"
    assert g.cpu.tick() > 0
    assert (g.cpu.status, reason(g.cpu), out) == ("RunningService", "IO", [])
    g.cpu.tick()
    assert (g.cpu.status, out) == ("RunningServiceCompletion", [ord("A")])
    g.cpu.tick()
    assert (g.cpu.status, reason(g.cpu)) == ("RunningService", "HLT")
    g.cpu.tick()
    assert g.cpu.status == "Idle"
    with pytest.raises(kvmcpu.StateError, match="Idle"):
        g.cpu.tick()
    assert g.cpu.status == "Idle"


def test_an_mmio_read_step_by_step(guest: Maker) -> None:
    """V7: an MMIO read goes the same way, and its value is there after the completing entry."""
    g = guest("mov ax, 0xf000; mov ds, ax; mov al, [0x0]; mov bl, al; hlt", memory="64KiB")
    g.vm.map_mmio(0xF0000, 0x1000, read=lambda _offset, _size: 0x5A)
    g.cpu.tick()
    assert (g.cpu.status, reason(g.cpu)) == ("RunningService", "MMIO")
    g.cpu.tick()
    assert g.cpu.status == "RunningServiceCompletion"
    g.cpu.tick()
    assert (g.cpu.status, reason(g.cpu)) == ("RunningService", "HLT")
    assert g.cpu.regs.rbx & 0xFF == 0x5A


def test_timer_stays_running(guest: Maker) -> None:
    """V7: an entry that the timer ends for an event leaves the CPU Running, and is counted."""
    g = guest(SPIN)
    seen: list[int] = []
    g.vm.queue.schedule(lambda: seen.append(g.vm.queue.now), "1ms")
    while not seen:
        before = g.cpu.stats["exit_signal"]
        g.cpu.tick()
        assert (g.cpu.status, reason(g.cpu)) == ("Running", "INTR")
        assert before is not None
        assert g.cpu.stats["exit_signal"] == before + 1
        assert before < 100
    assert seen[0] >= 10**9


def test_kick_stays_running(guest: Maker) -> None:
    """V7: so does a kick, and the step ends for it."""
    g = guest(SPIN)
    timer = threading.Timer(0.02, lambda: kicked.append(g.cpu.kick()))
    kicked: list[bool] = []
    timer.start()
    g.cpu.tick()
    timer.join()
    assert (g.cpu.status, reason(g.cpu), kicked) == ("Running", "INTR", [True])
    assert g.cpu.stats["exit_signal"] == 1


def test_an_error_leaves_the_exit_to_be_serviced(guest: Maker) -> None:
    """V7, V16: an access to nobody stays to be serviced, and goes on once somebody is there."""
    g = guest("mov al, 7; out 0x99, al; hlt")
    for _ in range(2):
        with pytest.raises(kvmcpu.UnassignedAccessError):
            g.run()
        assert g.cpu.status == "RunningService"
        assert g.cpu.stop_reason == "error"
    g.collect(0x99)
    g.run()
    assert (g.out, g.cpu.status) == ([7], "Idle")


def test_a_device_that_raises_is_done(guest: Maker) -> None:
    """V7: a device's exception comes out of the step; the access is over and the guest goes on."""
    g = guest("out 0x10, al; hlt")
    g.vm.map_io(0x10, 1, write=lambda _offset, _size, _value: 1 // 0)
    g.cpu.tick()
    with pytest.raises(ZeroDivisionError):
        g.cpu.tick()
    assert g.cpu.status == "RunningServiceCompletion"
    g.run()
    assert (g.cpu.status, g.cpu.stop_reason) == ("Idle", "idle")


def test_latency_moves_time(guest: Maker) -> None:
    """V7: the latency that a handler returns is the next step's delay, rounded up to the clock."""
    g = guest("out 0x10, al; in al, 0x11; hlt", clock="1GHz")
    g.vm.map_io(0x10, 1, write=lambda _offset, _size, _value: 12_345)
    g.vm.map_io(0x11, 1, read=lambda _offset, _size: (7, 5_000_000_001))
    assert g.cpu.clock_period == 1000
    tick_until(g.cpu, "RunningService")
    assert g.cpu.tick() == 13_000
    g.cpu.tick()
    assert (g.cpu.status, reason(g.cpu)) == ("RunningService", "IO")
    assert g.cpu.tick() == 5_000_001_000
    assert [record.latency for record in g.cpu.last_exits()] == [12_345, 5_000_000_001]


def test_latency_of_an_exit_handler(guest: Maker) -> None:
    """V7: so it is with the handler of an exit reason, and without one a service takes no time."""
    g = guest("hlt; hlt", clock="1GHz")
    g.cpu.set_exit_handler(kvmcpu.ExitReason.HLT, lambda _cpu, _exit: 1)
    tick_until(g.cpu, "RunningService")
    assert g.cpu.tick() == 1000
    g.cpu.set_exit_handler(kvmcpu.ExitReason.HLT, None)
    tick_until(g.cpu, "RunningService")
    assert g.cpu.tick() == 0
    assert g.cpu.status == "Idle"


def test_events_within_a_latency(guest: Maker) -> None:
    """V7: events within a latency are called before the guest goes on, each at its own tick."""
    g = guest("out 0x10, al; out 0x11, al; hlt", clock="1GHz")
    queue = g.vm.queue
    order: list[tuple[str, int]] = []

    def write(_offset: int, _size: int, _value: int) -> int:
        order.append(("write", queue.now))
        for n in (2, 1, 4):
            queue.schedule(lambda n=n: order.append((f"{n}s", queue.now)), delay=f"{n}s")  # type: ignore[misc]
        return 3 * 10**12

    g.vm.map_io(0x10, 1, write=write)
    g.vm.map_io(0x11, 1, write=lambda _offset, _size, _value: order.append(("next", queue.now)))
    g.run()
    assert [name for name, _ in order] == ["write", "1s", "2s", "next", "4s"]
    start = order[0][1]
    for name, at in order:
        if name.endswith("s"):
            assert at == start + int(name[0]) * 10**12
    assert order[3][1] >= start + 3 * 10**12


@pytest.mark.parametrize("latency", ["3s", -1, 1 << 64, 1.5])
def test_latency_that_is_none(guest: Maker, latency: Any) -> None:
    """V7: a latency that is no number of ticks is an error of the handler; the access is over."""
    g = guest("out 0x10, al; hlt")
    g.vm.map_io(0x10, 1, write=lambda _offset, _size, _value: latency)
    with pytest.raises((TypeError, ValueError, OverflowError)):
        g.run()
    g.run()
    assert g.cpu.stop_reason == "idle"


def test_steps_lie_on_clock_edges(guest: Maker) -> None:
    """V7: whatever an entry took, the next step lies on an edge of the CPU's clock."""
    g = guest(SPIN, clock="10MHz")
    assert g.cpu.clock_period == 100_000
    for _ in range(5):
        passed = g.run("77us")
        assert passed % 100_000 == 0
        assert g.vm.queue.now % 100_000 == 0
    assert g.cpu.enter("10us") > 0
    assert g.vm.queue.now % 100_000 == 0


def test_run_is_steps(guest: Maker) -> None:
    """V7: run() makes the steps that tick() makes: the same exits, services and end."""
    code = "mov cx, 5\nmore: out 0xe9, al; in al, 0xe8; loop more\nhlt"
    ends = []
    for whole in (True, False):
        g = guest(code)
        g.collect()
        g.vm.map_io(0xE8, 1, read=lambda _offset, _size: 9)
        if whole:
            g.run()
        else:
            tick_until(g.cpu, "Idle", 100)
        stats = g.cpu.stats
        ends.append((g.out, stats["io"], stats["halts"], g.cpu.status, g.cpu.regs.rip))
    assert ends[0] == ends[1]
    assert ends[0][1] == 10


def test_suspended_in_a_service(guest: Maker) -> None:
    """V7, V8: a CPU that a device suspends finishes the access, by a half entry, then is Idle."""
    g = guest("in al, 0x10; mov bl, al; out 0xe9, al; hlt")
    out = g.collect()

    def read(_offset: int, _size: int) -> int:
        g.cpu.suspend()
        return 0x42

    g.vm.map_io(0x10, 1, read=read)
    g.run()
    assert (g.cpu.status, g.cpu.stop_reason, out) == ("Idle", "idle", [])
    assert g.cpu.stats["half_entries"] == 1
    assert g.cpu.regs.rax & 0xFF == 0x42
    assert g.cpu.regs.rbx & 0xFF == 0
    g.cpu.activate()
    g.run()
    assert out == [0x42]


# ---- half entries (V8)


def test_half_entry_costs_a_period(guest: Maker) -> None:
    """V8: a half entry takes exactly one clock period and is counted apart; no guest code runs."""
    g = guest("inc bx; jmp 0x1000", clock="123MHz")
    period = round(10**12 / 123e6)
    assert g.cpu.clock_period == period
    for n in range(1, 11):
        assert g.cpu.enter(0) == period
        assert g.vm.queue.now == n * period
    stats = g.cpu.stats
    assert (stats["half_entries"], stats["exits"], stats["cycles"]) == (10, 10, 10)
    assert (stats["exit_signal"], stats["ticks"]) == (0, 10 * period)
    assert (g.cpu.regs.rbx, g.cpu.regs.rip) == (0, ORIGIN)
    assert reason(g.cpu) == "INTR"


def test_half_entry_delivers_a_read(guest: Maker) -> None:
    """V8: the value of a finished read is there after a half entry, and nothing else ran."""
    g = guest("mov dx, 0x10; in al, dx; mov bl, al; hlt")
    g.cpu.enter()
    assert isinstance(g.cpu.exit, kvmcpu.IoExit)
    assert (g.cpu.exit.direction, g.cpu.exit.port) == ("in", 0x10)
    g.cpu.exit.data = b"\x99"
    assert g.cpu.enter(0) == g.cpu.clock_period
    assert reason(g.cpu) == "INTR"
    assert g.cpu.regs.rax & 0xFF == 0x99
    assert g.cpu.regs.rbx & 0xFF == 0
    assert g.ram[g.cpu.regs.rip] == 0x88  # mov bl, al
    g.cpu.enter()
    assert reason(g.cpu) == "HLT"
    assert g.cpu.regs.rbx & 0xFF == 0x99


def test_half_entry_delivers_an_mmio_read(guest: Maker) -> None:
    """V8: likewise for MMIO, whose instruction KVM itself finishes."""
    g = guest("mov ax, 0xf000; mov ds, ax; mov eax, [0x8]; mov ebx, eax; hlt", memory="64KiB")
    g.cpu.enter()
    assert isinstance(g.cpu.exit, kvmcpu.MmioExit)
    assert (g.cpu.exit.address, g.cpu.exit.size, g.cpu.exit.is_write) == (0xF0008, 4, False)
    g.cpu.exit.data = (0x12345678).to_bytes(4, "little")
    g.cpu.enter(0)
    assert g.cpu.regs.rax & 0xFFFFFFFF == 0x12345678
    assert g.cpu.regs.rbx & 0xFFFFFFFF == 0


def test_half_entries_of_an_access_in_parts(long_guest: Maker) -> None:
    """V8: what one instruction reads in two parts takes two half entries: the first ends in the
    exit of the second part."""
    g = long_guest(f"mov esi, {MMIO:#x}; movdqu xmm0, [rsi]; hlt")
    g.cpu.enter()
    for part in range(2):
        assert isinstance(g.cpu.exit, kvmcpu.MmioExit)
        assert (g.cpu.exit.address, g.cpu.exit.size) == (MMIO + 8 * part, 8)
        assert (g.cpu.regs.rip, g.cpu.fpu.xmm0) == (ORIGIN + 5, 0)
        g.cpu.exit.data = bytes([0x11 * (part + 1)]) * 8
        g.cpu.enter(0)
    assert (reason(g.cpu), g.ram[g.cpu.regs.rip]) == ("INTR", 0xF4)
    assert g.cpu.fpu.xmm0 == int.from_bytes(b"\x11" * 8 + b"\x22" * 8, "little")


def test_half_entries_of_a_read_and_a_write(long_guest: Maker) -> None:
    """V8: an instruction that reads and writes: the half entry that ends the read ends in the
    exit of the write, which has the sum."""
    g = long_guest(f"mov esi, {MMIO:#x}; add dword ptr [rsi], 5; hlt")
    g.cpu.enter()
    assert isinstance(g.cpu.exit, kvmcpu.MmioExit)
    assert not g.cpu.exit.is_write
    g.cpu.exit.data = (10).to_bytes(4, "little")
    g.cpu.enter(0)
    assert isinstance(g.cpu.exit, kvmcpu.MmioExit)
    assert (g.cpu.exit.is_write, g.cpu.exit.data) == (True, (15).to_bytes(4, "little"))
    g.cpu.enter(0)
    assert (reason(g.cpu), g.ram[g.cpu.regs.rip]) == ("INTR", 0xF4)
    assert g.cpu.stats["half_entries"] == 2


def test_half_entry_after_a_write(guest: Maker) -> None:
    """V8: after a half entry the instruction of a finished write is past."""
    g = guest("mov al, 1; out 0x10, al; mov al, 2; out 0x10, al; hlt")
    written = []
    for _ in range(2):
        g.cpu.enter()
        assert isinstance(g.cpu.exit, kvmcpu.IoExit)
        written.append(g.cpu.exit.data)
        g.cpu.enter(0)
    assert written == [b"\x01", b"\x02"]
    assert g.ram[g.cpu.regs.rip] == 0xF4


def test_half_entry_with_a_kick_on_its_way(guest: Maker) -> None:
    """V8, V10: a signal does not turn a half entry into anything else."""
    g = guest("out 0x10, al\n" + SPIN)
    counts: list[int] = []

    def write(_offset: int, _size: int, _value: int) -> None:
        assert g.cpu.kick()
        g.cpu.suspend()

    g.vm.map_io(0x10, 1, write=write)
    g.run()
    assert g.cpu.status == "Idle"
    stats = g.cpu.stats
    counts += [stats[name] or 0 for name in ("half_entries", "exit_signal")]
    assert counts[0] == 1


# ---- sleeping and waking (V11)


def test_suspend_and_activate(guest: Maker) -> None:
    """V11: a suspended context is Idle until it is activated; twice changes nothing."""
    g = guest("mov al, 1; out 0xe9, al; hlt")
    out = g.collect()
    for _ in range(2):
        g.cpu.suspend()
        assert g.cpu.status == "Idle"
    g.run()
    assert (out, g.cpu.stop_reason, g.cpu.stats["exits"]) == ([], "idle", 0)
    for _ in range(2):
        g.cpu.activate()
        assert g.cpu.status == "Running"
    g.run()
    assert (out, g.cpu.status) == ([1], "Idle")


@pytest.mark.parametrize("wake", ["activate", "wakeup"])
def test_idle_cycles_are_counted(guest: Maker, wake: str) -> None:
    """V11: activation adds the cycles that the CPU slept through."""
    g = guest("hlt; hlt", clock="1GHz")
    g.run()
    cycles = g.cpu.stats["cycles"]
    assert cycles is not None
    slept_from = g.vm.queue.now
    g.vm.queue.service(slept_from + 5 * 10**12)
    assert g.cpu.stats["cycles"] == cycles
    getattr(g.cpu, wake)()
    assert g.cpu.status == "Running"
    assert g.cpu.stats["cycles"] == cycles + 5 * 10**9
    g.run()
    assert g.cpu.stats["halts"] == 2


def test_suspend_while_idle_does_nothing(guest: Maker) -> None:
    """V11: suspending an Idle CPU does not restart the clock of its sleep."""
    g = guest("hlt", clock="1GHz")
    g.run()
    cycles = g.cpu.stats["cycles"]
    assert cycles is not None
    start = g.vm.queue.now
    g.vm.queue.service(start + 10**12)
    g.cpu.suspend()
    g.vm.queue.service(start + 2 * 10**12)
    g.cpu.activate()
    assert g.cpu.stats["cycles"] == cycles + 2 * 10**9


def test_interrupt_wakes(guest: Maker) -> None:
    """V11, V17: an interrupt activates a halted CPU, also outside of a run."""
    g = guest(COUNTING)
    for n in range(1, 6):
        g.run()
        assert g.cpu.status == "Idle"
        g.cpu.interrupt(0x20)
        if n % 2:
            tick_until_halted(g)
        else:
            g.run()
        assert g.cpu.regs.rbx & 0xFF == n
    assert g.cpu.stats["interrupts"] == 5


def tick_until_halted(g: Guest) -> None:
    g.cpu.tick()
    tick_until(g.cpu, "Idle")


def test_interrupt_in_an_event_wakes(guest: Maker) -> None:
    """V11, V17: so does one that an event injects while the CPU sleeps inside a run."""
    g = guest(COUNTING)
    for n in range(1, 4):
        g.vm.queue.schedule(lambda: g.cpu.interrupt(0x20), f"{n}s")
    g.run()
    assert g.cpu.regs.rbx & 0xFF == 3
    assert g.vm.queue.now >= 3 * 10**12


@pytest.mark.parametrize("how", ["wakeup", "interrupt"])
def test_woken_by_another_vcpu(guest: Maker, how: str) -> None:
    """V11: while another vCPU runs, a sleeping one waits in its run; any thread may wake it."""
    g = guest(COUNTING)
    spinning = g.vm.create_vcpu(queue=kvmcpu.EventQueue())
    g.ram[0x8000:0x8002] = b"\xeb\xfe"
    spinning.sregs.cs.base = spinning.sregs.cs.selector = 0
    spinning.regs.rip = 0x8000
    other = threading.Thread(target=spinning.run)
    other.start()
    while spinning.thread is None:
        time.sleep(0.001)
    sleeper = threading.Thread(target=g.cpu.run)
    sleeper.start()

    def wait_for(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not condition() and time.monotonic() < end:
            time.sleep(0.001)
        assert condition()

    wait_for(lambda: g.cpu.stats["halts"] == 1)
    assert sleeper.is_alive()
    if how == "interrupt":
        g.cpu.interrupt(0x20)
    else:
        g.cpu.wakeup()
    wait_for(lambda: g.cpu.stats["halts"] == 2)
    assert sleeper.is_alive()
    g.vm.stop()
    sleeper.join(10)
    other.join(10)
    assert (g.cpu.stop_reason, spinning.stop_reason) == ("stop", "stop")
    assert g.cpu.regs.rbx & 0xFF == (how == "interrupt")


def test_sleeping_beside_a_running_vcpu(guest: Maker) -> None:
    """V7, V11: the time that a run was given passes for a sleeper too while another vCPU spins."""
    g = guest("hlt")
    spinning = g.vm.create_vcpu()
    g.ram[0x8000:0x8002] = b"\xeb\xfe"
    spinning.sregs.cs.base = spinning.sregs.cs.selector = 0
    spinning.regs.rip = 0x8000
    other = threading.Thread(target=spinning.run)
    other.start()
    while spinning.thread is None:
        time.sleep(0.001)
    done = threading.Event()

    def sleep() -> None:
        g.run("5ms")
        done.set()

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    in_time = done.wait(10)
    g.vm.stop()
    sleeper.join(10)
    other.join(10)
    assert in_time
    assert g.cpu.stop_reason == "ticks"
    assert g.vm.queue.now >= 5 * 10**9


def test_wakeup_of_a_running_cpu(guest: Maker) -> None:
    """V11: waking a CPU that is awake changes nothing; it is no stop and no lost time."""
    g = guest(SPIN)
    g.cpu.wakeup()
    passed = g.run("1ms")
    assert (g.cpu.stop_reason, g.cpu.status) == ("ticks", "Running")
    assert passed >= 10**9


# ---- the short way: a run of which nothing but accesses is asked ----

WRITES = """
    mov dx, 0xe9
    again: mov al, 'a'; out dx, al; inc al; out dx, al
    inc ecx; out 0x10, al; jmp again
"""


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize("console", ["sink", "python"])
def test_a_handler_asks_for_more_than_accesses(guest, console):
    """V7: what a handler asks for in the middle of a run holds from the next entry on."""
    g = guest(WRITES)
    sink, listed = kvmcpu.ByteSink(), bytearray()
    g.vm.map_io(0xE9, 1, write=sink if console == "sink" else lambda o, s, v: listed.append(v))
    asked = []

    def handler(offset: int, size: int, value: int) -> None:
        turn = g.cpu.regs.rcx & 0xFFFF
        asked.append(turn)
        if turn == 3:
            g.cpu.schedule_inst_stop(4)
        elif turn == 4:
            g.cpu.guest_debug(singlestep=True)
        elif turn == 5:
            g.cpu.suspend()
        elif turn == 6:
            g.cpu.stop()
        elif turn == 7:
            g.cpu.set_exit_handler(kvmcpu.ExitReason.IO, exit_handler)

    def exit_handler(cpu: kvmcpu.Vcpu, exit_: Any) -> None:
        exits.append(exit_.port)

    exits: list[int] = []
    g.vm.map_io(0x10, 1, write=handler)
    g.run()
    assert g.cpu.stop_reason == "instructions"
    assert asked == [1, 2, 3]
    g.run()
    assert g.cpu.exit.reason == kvmcpu.ExitReason.DEBUG
    g.cpu.guest_debug()
    g.run()
    assert (g.cpu.stop_reason, g.cpu.regs.rcx & 0xFFFF) == ("idle", 5)
    g.cpu.activate()
    g.run()
    assert (g.cpu.stop_reason, asked[-1]) == ("stop", 6)
    g.vm.queue.schedule(g.cpu.stop, delay="20ms")
    g.run()
    assert asked == [1, 2, 3, 4, 5, 6, 7]
    assert exits[:3] == [0xE9, 0xE9, 0x10]
    assert (sink.getvalue() or bytes(listed)) == b"ab" * 7


@pytest.mark.kvm(arch="x86_64")
def test_an_event_comes_between_brief_writes(guest):
    """V7: an event is called at its tick, also when the guest does nothing but write to a sink."""
    g = guest("again: out 0xe9, al; jmp again")
    out = kvmcpu.ByteSink()
    g.vm.map_io(0xE9, 1, write=out)
    queue, period, seen = g.vm.queue, kvmcpu.parse_ticks("1ms"), []

    def at_event() -> None:
        seen.append((queue.now - event.when, out.total))
        if len(seen) < 20:
            event.reschedule(event.when + period)

    event = queue.schedule(at_event, delay=period)
    passed = g.run("25ms")
    assert len(seen) == 20
    assert all(late >= 0 for late, _ in seen)
    totals = [total for _, total in seen]
    assert totals == sorted(totals)
    assert len(set(totals)) > 1  # not all of them after the run, however slow the processor
    assert passed >= kvmcpu.parse_ticks("25ms")
    assert g.cpu.stats["io"] == out.total


@pytest.mark.kvm(arch="x86_64")
def test_brief_writes_are_recorded_and_timed(guest):
    """V9, V25: writes to a sink are in the ring of last exits, and their time is the guest's."""
    g = guest("mov cx, 50; again: mov al, cl; out 0xe9, al; loop again; hlt")
    out = kvmcpu.ByteSink()
    g.vm.map_io(0xE9, 1, write=out)
    before = g.vm.queue.now
    passed = g.run()
    records = g.cpu.last_exits()
    assert [r.data for r in records[:-1]] == list(range(50, 0, -1))
    assert all((r.name, r.address, r.size) == ("IO", 0xE9, 1) for r in records[:-1])
    ticks = [r.tick for r in records]
    assert ticks == sorted(set(ticks))
    assert before < ticks[0]
    assert ticks[-1] <= before + passed
    assert g.cpu.stats["ticks"] <= passed <= g.cpu.stats["ticks"] + 51 * g.cpu.clock_period
