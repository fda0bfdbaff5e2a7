# SPDX-License-Identifier: MIT
"""Counting instructions: steps, exact stops on a vCPU and on a whole VM (V9, V23)."""

from __future__ import annotations

import random
import threading
from functools import cache

import guests
import pytest

import kvmcpu
from kvmcpu import ExitReason

DEVICE = 0x20000000
SOFTWARE_CLOCK = (1, 0)  # linux/perf_event.h: PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK

SPIN = "again: inc ebx; jmp again"

# One turn of everything that makes counting hard: each line is one instruction.
MIXED = """
    l0: inc ebx
    l1: out 0x10, al
    l2: in al, 0x11
    l3: mov cx, 3
    l4: mov si, 0x8000
    l5: mov di, 0x8100
    l6: rep movsb
    l7: mov es:[0], al
    l8: mov al, es:[1]
    l9: add dword ptr [0x8200], 1
    l10: push ax
    l11: pop dx
    l12: cmp bx, 5
    l13: jmp l0
"""
TURN = 14


@cache
def places() -> list[int]:
    labels = guests.symbols(MIXED)
    return [labels[f"l{i}"] for i in range(TURN)]


class Mixed:
    """A guest that runs MIXED, and what it must look like after n instructions."""

    def __init__(self, guest, **vcpu) -> None:
        self.g = guest(MIXED, **vcpu)
        self.cpu = self.g.cpu
        self.counts = {"out": 0, "in": 0, "write": 0, "read": 0}
        self.g.vm.map_io(
            0x10, 2, lambda *_: self.count("in"), lambda *_: self.count("out") and None
        )
        self.g.vm.map_mmio(
            DEVICE, 2, lambda *_: self.count("read"), lambda *_: self.count("write") and None
        )
        self.cpu.sregs.es.base = DEVICE
        # Where rep movsb writes to is es:di: memory there as well.
        self.g.vm.add_memory(DEVICE + 0x8000, 4096)
        self.done = 0

    def count(self, name: str) -> int:
        self.counts[name] += 1
        return self.counts[name] & 0x7F

    def after(self, n: int) -> None:
        self.done += n
        turns, rest = divmod(self.done, TURN)

        def times(line: int) -> int:
            return turns + (rest > line)

        assert self.cpu.regs.rip == places()[rest]
        assert self.cpu.regs.rbx == times(0)
        assert self.counts == {
            "out": times(1),
            "in": times(2),
            "write": times(7),
            "read": times(8),
        }
        assert int.from_bytes(self.g.vm.read(0x8200, 4), "little") == times(9)


# ---- steps


def test_step_by_step(guest) -> None:
    """V23: each step is one instruction, also of I/O, MMIO and a repeated string instruction."""
    mixed = Mixed(guest)
    for _ in range(3 * TURN + 5):
        assert mixed.cpu.step() == 1
        mixed.after(1)


def test_many_steps(guest) -> None:
    """V23: step(n) is n instructions, exits serviced."""
    mixed = Mixed(guest)
    chance = random.Random(23)
    for _ in range(100):
        n = chance.randrange(1, 40)
        assert mixed.cpu.step(n) == n
        mixed.after(n)
    assert mixed.cpu.step(0) == 0
    mixed.after(0)


def test_step_ends_early(guest) -> None:
    """V23: fewer steps if the CPU goes Idle or is stopped; the halt itself counts."""
    g = guest("nop; nop; hlt; nop")
    assert g.cpu.step(10) == 3
    assert (g.cpu.stop_reason, g.cpu.status) == ("idle", "Idle")
    assert g.cpu.regs.rip == guests.ORIGIN + 3
    g = guest("nop; out 0x10, al; nop; nop; hlt")
    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.stop() and None)
    assert g.cpu.step(4) in (1, 2)
    assert g.cpu.stop_reason == "stop"


def test_step_raises(guest) -> None:
    g = guest("nop; out 0x10, al; nop; hlt")

    def fail(*access: int) -> None:
        raise LookupError

    g.vm.map_io(0x10, 1, write=fail)
    with pytest.raises(LookupError):
        g.cpu.step(3)
    assert g.cpu.step(1) == 1
    for wrong in (-1, 1 << 70):
        with pytest.raises((ValueError, OverflowError)):
            g.cpu.step(wrong)
    for wrong in (1.5, "1", None):
        with pytest.raises(TypeError):
            g.cpu.step(wrong)


def test_long_strings(guest) -> None:
    """V23: a rep instruction is one instruction, for memory and for ports."""
    g = guest("""
            mov cx, 500
            mov si, 0x8000
            mov di, 0x9000
            rep movsb
            mov cx, 7
            mov dx, 0x10
            rep outsb
            mov cx, 7
            rep insb
            nop
            hlt""")
    g.vm.write(0x8000, bytes(range(250)) * 2)
    out: list[int] = []
    g.vm.map_io(0x10, 1, lambda *_: 9, lambda o, s, value: out.append(value))
    assert g.cpu.step(4) == 4
    assert g.cpu.regs.rcx == 0
    assert g.vm.read(0x9000, 500) == bytes(range(250)) * 2
    assert g.cpu.step(3) == 3
    assert len(out) == 7
    assert g.cpu.step(2) == 2
    assert g.cpu.regs.rcx == 0
    g.run()
    assert g.cpu.exit.name == "HLT"


@pytest.mark.kvm(interrupts=True)
def test_steps_of_ring_3(user_guest) -> None:
    """V23: in 64-bit mode at ring 3, too; a paravirtual KVM gives those steps to the guest."""
    g = user_guest(SPIN)
    assert g.cpu.step(101) == 101
    assert g.cpu.regs.rbx == 51


def test_steps_leave_no_trace(kvm, guest) -> None:
    """V23: afterwards the guest runs freely, and its flags do not show that it was stepped."""
    g = guest("nop; pushf; pop ax; hlt")
    assert g.cpu.step(3) == 3
    # Hardware is stepped by the guest's own trap flag, and KVM does not hide it from PUSHF.
    assert g.cpu.regs.rax & 1 << 8 == 0 or kvm.backend != "pvm"
    g.run()
    assert g.cpu.exit.name == "HLT"
    assert g.cpu.regs.rflags & 1 << 8 == 0


def test_steps_and_the_users_single_step(guest) -> None:
    """V23: a user who single-steps on his own gets his exits back afterwards."""
    g = guest("nop; nop; nop; hlt")
    g.cpu.guest_debug(singlestep=True)
    g.run()
    assert g.cpu.exit.name == "DEBUG"
    g.cpu.step(1)
    g.run()
    assert (g.cpu.stop_reason, g.cpu.regs.rip) == ("exit", guests.ORIGIN + 3)


# ---- stops


def test_a_thousand_random_counts(guest) -> None:
    """V23: a stop is exact at 1,000 random counts, over I/O, MMIO and string instructions."""
    mixed = Mixed(guest)
    chance = random.Random(1000)
    for _ in range(1000):
        n = chance.randrange(1, 60)
        mixed.cpu.schedule_inst_stop(n)
        mixed.cpu.run()
        assert mixed.cpu.stop_reason == "instructions"
        mixed.after(n)
    total = mixed.cpu.stats["insts"]
    assert total == mixed.done  # every one of them was counted, so the count is known


@pytest.mark.slow
def test_twenty_thousand_random_counts(guest) -> None:
    """V23: the same in a long sweep."""
    g = guest(SPIN)
    chance, done = random.Random(5), 0
    for _ in range(20_000):
        n = chance.randrange(1, 200)
        g.cpu.schedule_inst_stop(n)
        g.run()
        done += n
        assert g.cpu.regs.rbx == (done + 1) // 2


def test_a_stop_in_several_runs(guest) -> None:
    """V23: a stop outlasts runs that end for another reason, and is over when it is reached."""
    g = guest("again: out 0x10, al; inc ebx; jmp again")
    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.stop() and None)
    g.cpu.schedule_inst_stop(10)
    reasons = []
    while not reasons or reasons[-1] != "instructions":
        g.run()
        reasons.append(g.cpu.stop_reason)
    assert set(reasons[:-1]) == {"stop"}
    assert g.cpu.regs.rbx == 3
    g.run()
    assert g.cpu.stop_reason == "stop"


def test_the_later_stop_counts(guest) -> None:
    g = guest(SPIN)
    g.cpu.schedule_inst_stop(1000)
    g.cpu.schedule_inst_stop(10)
    g.run()
    assert (g.cpu.stop_reason, g.cpu.regs.rbx) == ("instructions", 5)
    for wrong in (0, -1, 1 << 64):
        with pytest.raises((ValueError, OverflowError)):
            g.cpu.schedule_inst_stop(wrong)
        with pytest.raises((ValueError, OverflowError)):
            g.vm.schedule_inst_stop(wrong)
    with pytest.raises(TypeError):
        g.cpu.schedule_inst_stop("10")


def test_an_error_at_the_stop(guest) -> None:
    """V23: an exit that is an error comes out, and the count goes on behind it."""
    g = guest("nop; out 0x10, al; nop; nop; nop; hlt")
    g.cpu.schedule_inst_stop(4)
    with pytest.raises(kvmcpu.UnassignedAccessError):
        g.run()
    g.vm.map_io(0x10, 1)
    g.run()
    assert (g.cpu.stop_reason, g.cpu.regs.rip) == ("instructions", guests.ORIGIN + 5)


def test_steps_within_a_stop(guest) -> None:
    """V23: what is stepped counts for the stop."""
    g = guest(SPIN)
    g.cpu.schedule_inst_stop(10)
    assert g.cpu.step(6) == 6
    g.run()
    assert (g.cpu.stop_reason, g.cpu.regs.rbx) == ("instructions", 5)


def test_counts_are_known_or_not(guest) -> None:
    """V9: after a free run without a counter the number of instructions is unknown, never zero."""
    g = guest("nop; nop; hlt")
    assert g.cpu.stats["insts"] == 0
    g.cpu.step(2)
    assert g.cpu.stats["insts"] == 2
    g.run()
    if g.cpu.insts_source is None:
        assert g.cpu.stats["insts"] is None
        assert g.vm.stats["insts"] is None
    else:
        assert g.cpu.stats["insts"] == 3


# ---- the whole VM


def spinners(vm: kvmcpu.VM, count: int, source: str = SPIN) -> list[kvmcpu.Vcpu]:
    code = guests.assemble(source)
    vm.add_memory(0, "1MiB")[guests.ORIGIN : guests.ORIGIN + len(code)] = code
    cpus = [vm.create_vcpu() for _ in range(count)]
    for cpu in cpus:
        guests.x86_start.real(cpu, guests.ORIGIN, stack=guests.ORIGIN)
    return cpus


def executed(cpu: kvmcpu.Vcpu, loop: int = guests.ORIGIN) -> int:
    """By the guest's own state: two instructions a turn, of which the first counts."""
    # Hardware leaves the access that came before the loop to be finished at the next entry (V8).
    if cpu.regs.rip < loop:
        return 0
    return 2 * cpu.regs.rbx - (cpu.regs.rip != loop)


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1001, 5000])
def test_two_cpus_together(vm, count) -> None:
    """V23: a stop on the sum of two vCPUs on two threads is exact, and stops both."""
    code = "out 0x10, al; again: inc ebx; jmp again"
    cpus = spinners(vm, 2, code)
    # Both are in their runs when it is set: handlers of exits do not hold the device lock.
    start = threading.Barrier(2, action=lambda: vm.schedule_inst_stop(count))
    for _ in range(3):
        threads = []
        for cpu in cpus:
            cpu.set_exit_handler(ExitReason.IO, lambda cpu, last: start.wait(20) and None)
            cpu.enter(0)  # ends the access of before (V8): on hardware RIP would move only now
            cpu.regs.update({"rip": guests.ORIGIN, "rbx": 0})
            threads.append(threading.Thread(target=cpu.run))
            threads[-1].start()
        for thread in threads:
            thread.join(20)
        stuck = [thread for thread in threads if thread.is_alive()]
        vm.stop()
        assert not stuck
        assert [cpu.stop_reason for cpu in cpus] == ["instructions"] * 2
        assert sum(executed(cpu, guests.ORIGIN + 2) for cpu in cpus) == count


def test_one_after_the_other(vm) -> None:
    """V23: the sum counts whoever runs."""
    one, two = spinners(vm, 2)
    vm.schedule_inst_stop(30)
    one.step(10)
    two.run()
    assert two.stop_reason == "instructions"
    assert (executed(one), executed(two)) == (10, 20)
    assert vm.stats["insts"] == 30


def test_own_and_common_stops(vm) -> None:
    """V23: a vCPU's own stop comes first when it is nearer, and the VM's stays."""
    one, two = spinners(vm, 2)
    vm.schedule_inst_stop(50)
    one.schedule_inst_stop(20)
    one.run()
    assert executed(one) == 20
    two.run()
    assert executed(two) == 30


# ---- a counter's overflow


def clocked(guest, **options) -> guests.Guest:
    try:
        return guest(SPIN, perf_event=SOFTWARE_CLOCK, **options)
    except kvmcpu.KvmError as error:
        pytest.skip(f"no perf event, not even of software: {error}")


def test_sampling_stop_on_a_software_clock(long_guest) -> None:
    """V23: the sampling stop, with a clock in the place of the counter that this host lacks."""
    g = clocked(long_guest, time_source="perf")
    came_forward = 0
    for _ in range(500):  # on a busy machine the time is over at times before the guest begins
        before = g.cpu.regs.rbx
        g.cpu.schedule_inst_stop(5_000_000)  # nanoseconds, with this event
        ticks = g.run()
        assert g.cpu.stop_reason == "instructions"
        came_forward += g.cpu.regs.rbx > before
        assert ticks >= 4 * 10**9
        # The last of it is stepped, which is slow: a few times the time, but not for ever.
        assert ticks < 10**12
        if came_forward == 5:
            break
    assert came_forward == 5
    assert g.cpu.time_source == "perf"


def test_time_by_a_software_clock(long_guest) -> None:
    """V3, V9: runs end by the overflow of the chosen event, and time is what it counts."""
    g = clocked(long_guest, time_source="perf", use_perf_overflow=True)
    for _ in range(10):
        assert 10**9 <= g.run("1ms") < 10**12
        assert g.cpu.stop_reason == "ticks"


def test_the_same_period_does_nothing(long_guest) -> None:
    """V23: a stop that is scheduled again before it is reached starts anew."""
    g = clocked(long_guest, time_source="perf")
    g.cpu.schedule_inst_stop(1 << 50)
    g.run("2ms")
    assert g.cpu.stop_reason == "ticks"
    g.cpu.schedule_inst_stop(1_000_000)
    g.run()
    assert g.cpu.stop_reason == "instructions"


def test_why_there_is_no_counter(cpu) -> None:
    """V9: what counts, or why nothing does and what to do about it."""
    if cpu.insts_source is None:
        assert len(cpu.counter_error) > 20
    else:
        assert cpu.counter_error is None
