# SPDX-License-Identifier: MIT
"""Several vCPUs and threads: who waits for whom, and who does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from conftest import Held, Maker
from guests import ORIGIN, Guest, assemble

import kvmcpu
from kvmcpu.loaders import x86_start

pytestmark = pytest.mark.kvm(arch="x86_64")

SPIN = "spin: jmp spin"


def add_cpu(g: Guest, code: str, at: int) -> kvmcpu.Vcpu:
    """One more vCPU, in real mode with all segments 0, that is about to run code at an address."""
    binary = assemble(code, origin=at)
    g.ram[at : at + len(binary)] = binary
    cpu = g.vm.create_vcpu()
    x86_start.real(cpu, at, stack=at)
    return cpu


@contextmanager
def running(*cpus: kvmcpu.Vcpu) -> Iterator[list[threading.Thread]]:
    """The vCPUs run, each on a thread of its own, until the end of the block at the latest."""
    raised: list[BaseException] = []

    def run(cpu: kvmcpu.Vcpu) -> None:
        try:
            cpu.run()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(cpu,)) for cpu in cpus]
    for thread in threads:
        thread.start()
    for cpu, thread in zip(cpus, threads, strict=True):
        while cpu.thread is None and thread.is_alive():
            time.sleep(0.0005)
    try:
        yield threads
    finally:
        for cpu, thread in zip(cpus, threads, strict=True):
            while thread.is_alive():
                cpu.stop()
                thread.join(0.01)
    if raised:
        raise raised[0]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(what)
        time.sleep(0.0005)


# ---- devices belong to the VM (V24)


def test_no_access_sees_half_of_another(guest: Maker) -> None:
    """V24: accesses of several threads come to a device one after the other, each whole."""
    code = "mov cx, 300\nmore: mov ax, {n}; out 0x40, ax; in ax, 0x40; out 0x42, ax; loop more\nhlt"
    g = guest(code.format(n=0))
    cpus = [g.cpu] + [add_cpu(g, code.format(n=n), 0x4000 + 0x1000 * n) for n in (1, 2)]
    inside: list[str] = []
    overlaps: list[list[str]] = []
    counts = {"write": 0, "read": 0}

    def access(what: str) -> None:
        inside.append(what)
        if len(inside) != 1:
            overlaps.append(list(inside))
        counts[what] += 1
        if counts[what] % 16 == 0:
            time.sleep(0)  # lets go of the interpreter lock: another thread comes now, if it can
        if len(inside) != 1:
            overlaps.append(list(inside))
        inside.pop()

    def read(_offset: int, _size: int) -> int:
        access("read")
        return 7

    g.vm.map_io(0x40, 2, read=read, write=lambda _o, _s, _v: access("write"))
    g.vm.map_io(0x42, 2, write=lambda _o, _s, _v: access("write"))
    with running(*cpus) as threads:
        for thread in threads:
            thread.join(60)
    assert {cpu.status for cpu in cpus} == {"Idle"}
    assert overlaps == []
    assert counts == {"write": 1800, "read": 900}


def test_read_modify_write_of_a_device(guest: Maker) -> None:
    """V24: a device that reads, thinks and writes needs no lock of its own; nothing is lost."""
    code = "mov cx, 400\nmore: out 0x40, al; loop more\nhlt"
    g = guest(code)
    cpus = [g.cpu, add_cpu(g, code, 0x4000), add_cpu(g, code, 0x5000)]
    count = 0

    def write(_offset: int, _size: int, _value: int) -> None:
        nonlocal count
        seen = count
        if seen % 10 == 0:
            time.sleep(0)
        count = seen + 1

    g.vm.map_io(0x40, 1, write=write)
    with running(*cpus) as threads:
        for thread in threads:
            thread.join(60)
    assert count == 1200


def test_events_and_accesses_exclude_each_other(guest: Maker) -> None:
    """V24: events are called with the device lock held: none comes in the middle of an access."""
    g = guest("mov cx, 300\nmore: out 0x40, al; loop more\nhlt")
    spinning = add_cpu(g, SPIN, 0x4000)
    inside = False
    met: list[str] = []

    def write(_offset: int, _size: int, _value: int) -> None:
        nonlocal inside
        inside = True
        time.sleep(0)
        inside = False

    def event() -> None:
        if inside:
            met.append("an event in an access")
        timer.reschedule(delay="100us")

    g.vm.map_io(0x40, 1, write=write)
    timer = g.vm.queue.schedule(event, "100us")
    with running(g.cpu, spinning) as (first, _):
        wait_for(lambda: g.cpu.stats["halts"] == 1, "the guest does not end")
        timer.cancel()
        g.cpu.stop()
        first.join(10)
    assert met == []


def test_many_cpus_each_with_its_log(guest: Maker) -> None:
    """V24: what each vCPU writes arrives whole and in its order."""
    code = """
        mov ebx, 0
    more:
        inc ebx
        mov eax, {n} * 65536
        or eax, ebx
        out 0x40, eax
        cmp bx, 250
        jne more
        hlt
    """
    g = guest(code.format(n=0))
    cpus = [g.cpu] + [add_cpu(g, code.format(n=n), 0x4000 + 0x1000 * n) for n in range(1, 4)]
    log: list[int] = []
    g.vm.map_io(0x40, 4, write=lambda _o, _s, value: log.append(value))
    with running(*cpus) as threads:
        for thread in threads:
            thread.join(60)
    assert len(log) == 1000
    for n in range(4):
        assert [value & 0xFFFF for value in log if value >> 16 == n] == list(range(1, 251))


# ---- nobody waits who need not


def test_python_goes_on_while_a_guest_spins(guest: Maker) -> None:
    """V24: a Python thread goes on while a guest spins, and does not disturb it."""
    g = guest(SPIN)
    with running(g.cpu):
        # If the guest held the interpreter, the loop would not even begin.
        for _ in range(2_000_000):
            pass
        exits = g.cpu.stats["exits"]
    assert exits is not None
    assert exits <= 2


def test_two_guests_at_once(guest: Maker) -> None:
    """V24: two guests play ping-pong through memory, without an exit: both are inside at once."""
    code = """
        xor ax, ax
        mov ds, ax
        mov bx, {first}
    again:
        cmp [0x800], bx
        jne again
        inc bx
        mov [0x800], bx
        inc bx
        cmp bx, 2000 + {first}
        jne again
        hlt
    """
    g = guest(code.format(first=0))
    other = add_cpu(g, code.format(first=1), 0x4000)
    with running(g.cpu, other):
        wait_for(
            lambda: g.cpu.stats["halts"] == 1 and other.stats["halts"] == 1, "the ball is lost", 60
        )
    for cpu in (g.cpu, other):
        assert (cpu.stats["io"], cpu.stats["mmio"]) == (0, 0)


def test_exits_in_c_do_not_wait_for_python(guest: Maker, interpreter_held: Held) -> None:
    """V24: exits that C handles do not wait for a Python thread that computes."""
    g = guest("again: out 0x40, al; jmp again")
    sink = kvmcpu.ByteSink(limit=16)
    g.vm.map_io(0x40, 1, write=sink)
    with running(g.cpu):
        interpreter_held(lambda: sink.total, 3000)


def test_a_guest_holds_no_lock(guest: Maker) -> None:
    """V24: while guests spin, other threads change memory, devices, events and vCPUs of the VM."""
    g = guest(SPIN)
    with running(g.cpu):
        ram = g.vm.add_memory(0x10000000, "1MiB")
        ram[0] = 5
        assert g.vm.read(0x10000000, 1) == b"\x05"
        g.vm.map_io(0x40, 4).remove()
        g.vm.map_mmio(0x20000000, 0x1000, coalesced=True).remove()
        g.vm.queue.schedule(str, delay="1000s").cancel()
        other = add_cpu(g, "hlt", 0x4000)
        for _ in range(500):  # on a busy machine, not in the first run
            assert other.run("1ms") >= 10**9
            if g.vm.stats["halts"]:
                break
        ram.remove()
        assert g.vm.stats["halts"] == 1
        assert g.cpu.thread is not None


# ---- one thread at a time

BUSY: list[Callable[[kvmcpu.Vcpu], object]] = [
    lambda cpu: cpu.run(),
    lambda cpu: cpu.enter(),
    lambda cpu: cpu.enter(0),
    lambda cpu: cpu.tick(),
    lambda cpu: cpu.step(),
    lambda cpu: cpu.regs.rax,
    lambda cpu: setattr(cpu, "regs", {"rax": 1}),
    lambda cpu: cpu.sregs.cs.base,
    lambda cpu: cpu.msrs["EFER"],
    lambda cpu: cpu.reg_list(),
    lambda cpu: cpu.dump(),
    lambda cpu: cpu.serialize(),
    lambda cpu: cpu.activate(),
    lambda cpu: cpu.suspend(),
    lambda cpu: cpu.resume(),
    lambda cpu: cpu.switch_out(),
    lambda cpu: cpu.schedule_inst_stop(5),
    lambda cpu: cpu.guest_debug(singlestep=True),
    lambda cpu: cpu.translate(0),
    lambda cpu: cpu.start(),
]


def test_busy(guest: Maker) -> None:
    """V24: what needs the vCPU at rest is refused at once while another thread runs it."""
    g = guest(SPIN)
    view = g.cpu.regs
    with running(g.cpu):
        for call in BUSY:
            with pytest.raises(kvmcpu.VcpuBusy, match="cpu0"):
                call(g.cpu)
        with pytest.raises(kvmcpu.VcpuBusy):
            _ = view.rax
        # These work at any time.
        assert g.cpu.kick()
        assert g.cpu.stats["exits"] is not None
        assert g.cpu.status == "Running"
        assert (g.cpu.id, g.cpu.name) == (0, "cpu0")
        assert "cpu0" in repr(g.cpu)
        assert g.cpu.thread not in (None, threading.get_native_id())
        g.cpu.wakeup()
    assert g.cpu.stop_reason == "stop"
    assert view.rip == ORIGIN
    g.run("100us")


def test_two_threads_want_to_run(guest: Maker) -> None:
    """V24: of several threads that run one vCPU at once one does, the others are told."""
    g = guest("hlt; jmp 0x1000")
    results: list[str] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        for _ in range(50):
            barrier.wait(30)
            try:
                g.run("50us")
                results.append("ran")
            except kvmcpu.VcpuBusy:
                results.append("busy")

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 200
    assert set(results) <= {"ran", "busy"}
    assert results.count("ran") >= 50
    assert g.cpu.thread is None


# ---- interrupts from any thread (V17)

HANDLERS = """
    xor ax, ax
    mov ds, ax
    mov word ptr [0x20 * 4], offset one
    mov word ptr [0x20 * 4 + 2], ax
    mov word ptr [0x21 * 4], offset two
    mov word ptr [0x21 * 4 + 2], ax
    mov word ptr [2 * 4], offset nmi
    mov word ptr [2 * 4 + 2], ax
    mov word ptr [0x800], ax
    mov word ptr [0x802], ax
    mov word ptr [0x804], ax
    out 0x40, al
    sti
spin:
    jmp spin
one:
    inc word ptr [0x800]
    iret
two:
    inc word ptr [0x802]
    iret
nmi:
    inc word ptr [0x804]
    iret
"""


def test_interrupts_from_any_thread(guest: Maker) -> None:
    """V17, V24: interrupts from several threads reach a spinning guest, each one, at once."""
    g = guest(HANDLERS)
    ready = threading.Event()
    g.vm.map_io(0x40, 1, write=lambda _o, _s, _v: ready.set())
    late: list[str] = []

    def counted(at: int) -> int:
        return int.from_bytes(g.ram[at : at + 2], "little")

    def inject(send: Callable[[], object], at: int) -> None:
        for n in range(1, 101):
            send()
            try:
                wait_for(lambda n=n: counted(at) >= n, f"{at:#x}: interrupt {n} is lost", 20)  # type: ignore[misc]
            except AssertionError as error:
                late.append(str(error))
                return

    with running(g.cpu):
        assert ready.wait(30)
        threads = [
            threading.Thread(target=inject, args=args)
            for args in (
                (lambda: g.cpu.interrupt(0x20), 0x800),
                (lambda: g.cpu.interrupt(0x21), 0x802),
                (g.cpu.nmi, 0x804),
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert late == []
    assert [counted(at) for at in (0x800, 0x802, 0x804)] == [100, 100, 100]
    assert g.cpu.stats["interrupts"] == 300


# ---- a run inside a run


def test_a_handler_runs_another_vcpu(guest: Maker) -> None:
    """V24: a handler may run another vCPU; accesses of that one come first, then all goes on."""
    g = guest("out 0x40, al; mov al, 2; out 0x41, al; hlt")
    inner = add_cpu(g, "mov al, 1; out 0x41, al; hlt", 0x4000)
    out = g.collect(0x41)
    ends: list[str | None] = []

    def write(_offset: int, _size: int, _value: int) -> None:
        inner.run()
        ends.append(inner.stop_reason)

    g.vm.map_io(0x40, 1, write=write)
    g.run()
    assert (out, ends, g.cpu.stop_reason) == ([1, 2], ["idle"], "idle")


def test_a_handler_does_not_run_its_own_vcpu(guest: Maker) -> None:
    """V24: a vCPU cannot be run by a handler of its own run; what it holds can be seen there."""
    g = guest("mov ebx, 77; out 0x40, al; hlt")
    seen: list[int] = []

    def write(_offset: int, _size: int, _value: int) -> None:
        for call in (g.cpu.run, g.cpu.tick, g.cpu.step, g.cpu.enter):
            with pytest.raises(kvmcpu.StateError, match="inside a run"):
                call()
        seen.append(g.cpu.regs.rbx)
        g.cpu.regs.rbx = 78

    g.vm.map_io(0x40, 1, write=write)
    g.run()
    assert seen == [77]
    assert g.cpu.regs.rbx == 78
    assert g.cpu.stop_reason == "idle"


def test_timer_of_the_outer_run(guest: Maker) -> None:
    """V3, V10, V24: a run inside a handler takes no kick and no timer away from the one outside."""
    g = guest("again: out 0x40, al\nspin: jmp spin")
    inner = add_cpu(g, SPIN, 0x4000)
    inner_queue_now: list[int] = []

    def write(_offset: int, _size: int, _value: int) -> None:
        inner.run("3ms")  # longer than the outer one's whole run
        inner_queue_now.append(g.vm.queue.now)

    g.vm.map_io(0x40, 1, write=write)
    for _ in range(10):
        g.cpu.regs.rip = ORIGIN
        thread = threading.Thread(target=g.run, args=("5ms",))
        thread.start()
        thread.join(20)
        lost = thread.is_alive()
        g.cpu.stop()
        thread.join()
        assert not lost
        assert g.cpu.stop_reason == "ticks"


def test_stop_of_the_outer_run_from_within_the_inner(guest: Maker) -> None:
    """V10, V24: a stop for a vCPU whose thread is deep inside another's run is not lost."""
    g = guest("out 0x40, al\nspin: jmp spin")
    inner = add_cpu(g, SPIN, 0x4000)
    g.vm.map_io(0x40, 1, write=lambda _o, _s, _v: inner.run() and None)
    for _ in range(20):
        g.cpu.enter(0)  # ends the access of before (V8): on hardware RIP would move only now
        g.cpu.regs.rip = ORIGIN
        thread = threading.Thread(target=g.run)
        thread.start()
        wait_for(lambda: inner.thread is not None, "the inner vCPU does not run")
        assert g.cpu.stop()
        assert inner.stop()
        thread.join(20)
        lost = thread.is_alive()
        g.cpu.stop()
        thread.join()
        assert not lost
        assert (g.cpu.stop_reason, inner.stop_reason) == ("stop", "stop")


def test_inner_run_leaves_the_devices_to_others(guest: Maker) -> None:
    """V24: a vCPU that a handler runs does not keep the handler's device lock in the guest."""
    g = guest("out 0x40, al; hlt")
    inner = add_cpu(g, SPIN, 0x4000)
    third = add_cpu(g, "mov al, 3; out 0x41, al; hlt", 0x5000)
    out = g.collect(0x41)
    g.vm.map_io(0x40, 1, write=lambda _o, _s, _v: inner.run() and None)
    with running(g.cpu):
        wait_for(lambda: inner.thread is not None, "the inner vCPU does not run")
        with running(third):
            wait_for(lambda: out == [3], "the third vCPU waits for a guest that spins")
            third.stop()
        inner.stop()
