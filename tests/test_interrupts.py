# SPDX-License-Identifier: MIT
"""Interrupts: a vector, NMI, the kernel's controllers, and eventfds for both directions (V17)."""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
import time
from itertools import pairwise

import guests
import pytest

import kvmcpu

# Counts what comes at vector 0x20 in [0x8000], at 2 (NMI) in [0x8001], the last other in [0x8002].
HANDLERS = """
    timer: inc byte ptr cs:[0x8000]; iret
    nmi: inc byte ptr cs:[0x8001]; iret
    other: mov byte ptr cs:[0x8002], 0x21; iret
"""
SETUP = """
    mov word ptr [0x20 * 4], offset timer
    mov word ptr [0x20 * 4 + 2], 0
    mov word ptr [2 * 4], offset nmi
    mov word ptr [2 * 4 + 2], 0
    mov word ptr [0x21 * 4], offset other
    mov word ptr [0x21 * 4 + 2], 0
"""
# Both 8259s: vectors from 0x20 and 0x28 on, all lines open (Intel 8259A, initialization).
PIC = """
    mov al, 0x11; out 0x20, al; out 0xa0, al
    mov al, 0x20; out 0x21, al
    mov al, 0x28; out 0xa1, al
    mov al, 4; out 0x21, al
    mov al, 2; out 0xa1, al
    mov al, 1; out 0x21, al; out 0xa1, al
    mov al, 0; out 0x21, al; out 0xa1, al
"""
# The same handler, which also tells the 8259 that it is over.
PIC_HANDLERS = """
    timer: push ax; inc byte ptr cs:[0x8000]; mov al, 0x20; out 0x20, al; pop ax; iret
    nmi: inc byte ptr cs:[0x8001]; iret
    other: push ax; mov byte ptr cs:[0x8002], 0x21; mov al, 0x20; out 0x20, al; pop ax; iret
"""
SPIN = f"{SETUP}; sti; again: jmp again; {HANDLERS}"


def wait_for(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.0005)


class Running:
    """A vCPU that runs on a thread while the block lasts."""

    def __init__(self, cpu: kvmcpu.Vcpu) -> None:
        self.cpu = cpu
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.cpu.run()
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        while self.thread.is_alive():
            self.cpu.stop()
            self.thread.join(0.01)
        if self.error:
            raise self.error


# ---- without the kernel's controllers


def test_a_vector(guest) -> None:
    """V17: a vector is delivered when the guest can take it, once, and counted."""
    g = guest(f"{SETUP}; sti; again: cmp byte ptr [0x8000], 0; je again; cli; hlt; {HANDLERS}")
    g.cpu.interrupt(0x20)
    g.run()
    assert g.ram[0x8000] == 1
    assert g.cpu.stats["interrupts"] == 1


def test_it_waits_until_the_guest_can_take_it(guest) -> None:
    """V17: with interrupts off it waits, however long."""
    g = guest(f"""
        {SETUP}
        out 0x10, al
        mov cx, 100
        some: loop some
        out 0x11, al
        sti
        again: cmp byte ptr [0x8000], 0
        je again
        cli
        hlt
        {HANDLERS}""")
    seen: list[int] = []
    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.interrupt(0x20))
    g.vm.map_io(0x11, 1, write=lambda *_: seen.append(g.ram[0x8000]))
    g.run()
    assert seen == [0]
    assert g.ram[0x8000] == 1


@pytest.mark.parametrize("order", [(0x20, 0x21), (0x21, 0x20)])
def test_several_vectors(guest, order) -> None:
    """V17: several wait, and all come; the same twice before it is taken is one."""
    g = guest(f"""
            {SETUP}
            sti
            again: cmp byte ptr [0x8002], 0x21
            jne again
            cmp byte ptr [0x8000], 0
            je again
            cli
            hlt
            {HANDLERS}""")
    for vector in order * 2:
        g.cpu.interrupt(vector)
    g.run()
    assert (g.ram[0x8000], g.ram[0x8002]) == (1, 0x21)
    assert g.cpu.stats["interrupts"] == 2


def test_many_in_a_row(guest) -> None:
    """V17: a thousand from another thread, each waited for: none lost, none twice."""
    g = guest(SPIN)
    with Running(g.cpu):
        for i in range(1, 1001):
            g.cpu.interrupt(0x20)
            wait_for(lambda i=i: g.ram[0x8000] == i & 0xFF)
    assert g.cpu.stats["interrupts"] == 1000
    assert g.ram[0x8000] == 1000 & 0xFF


def test_nmi(guest) -> None:
    """V17: an NMI comes with interrupts off, too."""
    g = guest(f"{SETUP}; cli; out 0x10, al; nop; nop; hlt; {HANDLERS}")
    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.nmi())
    g.run()
    assert g.ram[0x8001] == 1
    assert g.cpu.stats["interrupts"] == 1


@pytest.mark.parametrize("kind", ["interrupt", "nmi"])
def test_wakes_a_halted_cpu(guest, kind) -> None:
    """V11, V17: a halted vCPU is activated by it, in the run or before the next."""
    g = guest(f"{SETUP}; sti; hlt; mov bl, 1; cli; hlt; {HANDLERS}")
    g.run()
    assert g.cpu.status == "Idle"
    if kind == "nmi":
        g.cpu.nmi()
    else:
        g.cpu.interrupt(0x20)
    g.run()
    assert g.cpu.regs.rbx & 0xFF == 1
    assert (g.ram[0x8000], g.ram[0x8001]) == ((0, 1) if kind == "nmi" else (1, 0))


def test_wakes_a_waiting_cpu_of_another_thread(guest) -> None:
    """V11: a guest that waits in a run goes on as soon as another thread wakes it."""
    g = guest(f"{SETUP}; sti; again: hlt; jmp again; spin: jmp spin; {HANDLERS}")
    # Another one of the VM spins, and could wake it: so its run does not end when it halts.
    other = g.vm.create_vcpu()
    guests.x86_start.real(other, guests.ORIGIN + g.code.index(b"\xeb\xfe"), stack=0x4000)
    with Running(other), Running(g.cpu):
        for i in range(1, 20):
            wait_for(lambda: g.cpu.status == "Idle")
            g.cpu.interrupt(0x20)
            wait_for(lambda i=i: g.ram[0x8000] == i)


def test_a_halt_with_interrupts_off(guest) -> None:
    """V17: an NMI ends a halt with interrupts off, a vector does not (Intel SDM vol. 2)."""
    g = guest(f"{SETUP}; cli; hlt; mov bl, 1; sti; nop; cli; hlt; {HANDLERS}")
    g.cpu.interrupt(0x20)
    g.run()
    assert (g.cpu.stop_reason, g.cpu.regs.rbx & 0xFF) == ("idle", 0)
    g.cpu.nmi()
    g.run()
    assert (g.ram[0x8001], g.cpu.regs.rbx & 0xFF) == (1, 1)


def test_a_timer_of_the_queue(guest) -> None:
    """V7, V17: an event injects; time jumps to it while the guest is halted."""
    g = guest(f"""
            {SETUP}
            sti
            again: hlt
            cmp byte ptr [0x8000], 5
            jne again
            cli
            hlt
            {HANDLERS}""")
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(g.vm.queue.now)
        g.cpu.interrupt(0x20)
        if len(ticks) < 5:
            event.reschedule(delay="10s")

    event = g.vm.queue.schedule(tick, delay="10s")
    g.run()
    assert g.ram[0x8000] == 5
    assert len(ticks) == 5
    assert g.vm.queue.now >= 50 * 10**12
    assert all(b - a >= 10 * 10**12 for a, b in pairwise(ticks))


def test_arguments(vm, cpu) -> None:
    for wrong in (-1, 256, 1 << 40):
        with pytest.raises((ValueError, OverflowError)):
            cpu.interrupt(wrong)
    with pytest.raises(TypeError):
        cpu.interrupt("timer")
    cold = vm.create_vcpu(start=False)
    with pytest.raises(kvmcpu.NotStartedError):
        cold.interrupt(0x20)
    with pytest.raises(kvmcpu.NotStartedError):
        cold.nmi()


# ---- the kernel's controllers


def test_creation(kvm) -> None:
    """V17: the controllers come before vCPUs, the timer after the controllers, each once."""
    with kvm.create_vm() as vm:
        with pytest.raises(kvmcpu.StateError, match="create_irqchip"):
            vm.create_pit()
        with pytest.raises(kvmcpu.StateError, match="create_irqchip"):
            vm.irq_line(0, 1)
        with pytest.raises(kvmcpu.StateError):
            vm.signal_msi(0xFEE00000, 0x20)
        with pytest.raises(kvmcpu.StateError):
            vm.set_gsi_routing([])
        with pytest.raises(kvmcpu.StateError):
            vm.irqfd(0)
        vm.create_irqchip()
        with pytest.raises((kvmcpu.KvmError, kvmcpu.StateError)):
            vm.create_irqchip()
        vm.create_pit(speaker_dummy=True)
        with pytest.raises(kvmcpu.KvmError, match="KVM_CREATE_PIT2"):
            vm.create_pit()
        cpu = vm.create_vcpu()
        with pytest.raises(kvmcpu.StateError, match="irq_line"):
            cpu.interrupt(0x20)
    with kvm.create_vm() as vm:
        cpu = vm.create_vcpu()
        with pytest.raises(kvmcpu.StateError, match="first vCPU"):
            vm.create_irqchip()


def test_irq_line(guest) -> None:
    """V17: a line of the kernel's controller interrupts a guest that halts in the kernel."""
    g = guest(f"{SETUP}; {PIC}; sti; again: hlt; jmp again; {PIC_HANDLERS}", irqchip=True)
    with Running(g.cpu):
        time.sleep(0.01)
        for i in range(1, 51):
            g.vm.irq_line(0, 1)
            g.vm.irq_line(0, 0)
            wait_for(lambda i=i: g.ram[0x8000] == i)
        g.vm.irq_line(1, 1)
        g.vm.irq_line(1, 0)
        wait_for(lambda: g.ram[0x8002] == 0x21)
    assert g.ram[0x8000] == 50
    for wrong in [(-1, 0), ("0", 1), (1 << 40, 1), (0,)]:
        with pytest.raises((TypeError, ValueError, OverflowError)):
            g.vm.irq_line(*wrong)


def test_nmi_with_the_irqchip(guest) -> None:
    g = guest(f"{SETUP}; cli; again: hlt; jmp again; {HANDLERS}", irqchip=True)
    with Running(g.cpu):
        time.sleep(0.01)
        g.cpu.nmi()
        wait_for(lambda: g.ram[0x8001] == 1)


def test_pit(guest) -> None:
    """V17: the kernel's timer chip ticks by itself."""
    # Channel 0, mode 2, 1193182 / 1193 Hz = 1 kHz (Intel 8254, control word).
    program = "mov al, 0x34; out 0x43, al; mov al, 0xa9; out 0x40, al; mov al, 4; out 0x40, al"
    code = f"{SETUP}; {PIC}; {program}; sti; again: hlt; jmp again; {PIC_HANDLERS}"
    g = guest(code, irqchip=True)
    g.vm.create_pit()
    with Running(g.cpu):
        wait_for(lambda: g.ram[0x8000] >= 20)


def enable_lapic(cpu: kvmcpu.Vcpu) -> None:
    """At reset its spurious-interrupt register keeps the local APIC silent."""
    page = bytearray(cpu.lapic)
    page[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")  # Intel SDM vol. 3, 11.9
    cpu.lapic = bytes(page)


def test_msi(guest) -> None:
    """V17: a message interrupts the vCPU that it addresses; blocked, it says so."""
    g = guest(f"{SETUP}; sti; again: hlt; jmp again; {HANDLERS}", irqchip=True)
    enable_lapic(g.cpu)
    with Running(g.cpu):
        time.sleep(0.01)
        assert g.vm.signal_msi(0xFEE00000, 0x20) == 1
        wait_for(lambda: g.ram[0x8000] == 1)
    for wrong in [(-1, 0), (0, -1), (0, 1 << 32), (1 << 64, 0), ("a", 0)]:
        with pytest.raises((TypeError, ValueError, OverflowError)):
            g.vm.signal_msi(*wrong)


def test_gsi_routing(guest) -> None:
    """V17: a line is routed to a message, or to a pin of another chip."""
    # Through ES it tells the local APIC that the interrupt is over, without which no other comes.
    handlers = HANDLERS.replace("iret", "mov dword ptr es:[0xb0], 0; iret", 1)
    g = guest(f"{SETUP}; sti; again: hlt; jmp again; {handlers}", irqchip=True)
    g.cpu.sregs.es.base = 0xFEE00000
    enable_lapic(g.cpu)
    g.vm.set_gsi_routing(
        [(40, "msi", 0xFEE00000, 0x21), (1, "irqchip", 2, 1), (0, "irqchip", 0, 0)]
    )
    with Running(g.cpu):
        time.sleep(0.01)
        g.vm.irq_line(40, 1)
        wait_for(lambda: g.ram[0x8002] == 0x21)
    for wrong in (
        [(0, "pin", 0, 0)],
        [(0, "irqchip", 0)],
        [5],
        5,
        [("0", "irqchip", 0, 0)],
        [(0, "irqchip", -1, 0)],
        [(0, "msi", 0, 1 << 32)],
    ):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            g.vm.set_gsi_routing(wrong)
    with pytest.raises(kvmcpu.KvmError):
        g.vm.set_gsi_routing([(0, "irqchip", 77, 0)])


# ---- eventfds


def test_irqfd(guest) -> None:
    """V17: writing to an eventfd raises the interrupt, without a call of ours."""
    # Through ES it tells the local APIC that the interrupt is over, without which no other comes.
    handlers = HANDLERS.replace("iret", "mov dword ptr es:[0xb0], 0; iret", 1)
    g = guest(f"{SETUP}; sti; again: hlt; jmp again; {handlers}", irqchip=True)
    g.cpu.sregs.es.base = 0xFEE00000
    enable_lapic(g.cpu)
    g.vm.set_gsi_routing([(24, "msi", 0xFEE00000, 0x20)])
    fd = g.vm.irqfd(24)
    try:
        assert not os.get_inheritable(fd)
        with Running(g.cpu):
            time.sleep(0.01)
            for i in range(1, 20):
                os.write(fd, (1).to_bytes(8, "little"))
                wait_for(lambda i=i: g.ram[0x8000] == i)
            g.vm.remove_irqfd(24, fd)
            os.write(fd, (1).to_bytes(8, "little"))
            time.sleep(0.02)
            assert g.ram[0x8000] == 19
    finally:
        os.close(fd)


def test_irqfd_of_the_callers(kvm) -> None:
    with kvm.create_vm() as vm:
        vm.create_irqchip()
        reader, writer = os.pipe()
        try:
            with pytest.raises(kvmcpu.KvmError, match="KVM_IRQFD"):
                vm.irqfd(5, reader)
            with pytest.raises((kvmcpu.KvmError, ValueError)):
                vm.irqfd(5, 9999)
            with pytest.raises((kvmcpu.KvmError, ValueError)):
                vm.irqfd(5, -7)
        finally:
            os.close(reader)
            os.close(writer)
        fd = vm.irqfd(5)
        other = vm.irqfd(6)
        resample = vm.irqfd(7)
        vm.remove_irqfd(7, resample)
        again = vm.irqfd(8, resample=resample)
        for each in (fd, other, resample, again):
            os.close(each)


DOORBELL = 0x20000000


def test_ioeventfd_and_selectors(long_guest) -> None:
    """V17: a guest's write signals an eventfd without an exit, and a selector sees it."""
    g = long_guest(f"mov rbx, {DOORBELL:#x}; mov eax, 7; mov [rbx], eax; mov [rbx], eax; hlt")
    fd = g.vm.ioeventfd(DOORBELL, 4)
    try:
        assert not os.get_blocking(fd)
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            assert selector.select(0) == []
            g.run()
            assert [key.fd for key, _ in selector.select(1)] == [fd]
        assert int.from_bytes(os.read(fd, 8), "little") == 2
        with pytest.raises(BlockingIOError):
            os.read(fd, 8)
        assert g.cpu.stats["mmio"] == 0
        g.vm.remove_ioeventfd(DOORBELL, 4, fd)
        g.cpu.regs.rip = guests.ORIGIN
        g.cpu.activate()
        with pytest.raises(kvmcpu.UnassignedAccessError):
            g.run()
    finally:
        os.close(fd)


def test_ioeventfd_and_asyncio(guest) -> None:
    """V17: an event loop awaits what a guest does at a port."""
    g = guest("mov al, 3; out 0x50, al; mov al, 4; out 0x50, al; hlt")
    wanted = g.vm.ioeventfd(0x50, 1, value=4, io=True)
    g.vm.map_io(0x50, 1)

    async def main() -> int:
        loop = asyncio.get_running_loop()
        rung = asyncio.Event()
        loop.add_reader(wanted, rung.set)
        run = loop.run_in_executor(None, g.cpu.run)
        try:
            await asyncio.wait_for(rung.wait(), 10)
        finally:
            loop.remove_reader(wanted)
            await run
        return int.from_bytes(os.read(wanted, 8), "little")

    try:
        assert asyncio.run(main()) == 1
        assert g.cpu.stats["io"] == 1  # the 3, which nobody waits for by eventfd
    finally:
        os.close(wanted)


def test_ioeventfd_any_size_and_given_fd(long_guest) -> None:
    g = long_guest(f"mov rbx, {DOORBELL:#x}; mov [rbx], al; mov [rbx], eax; mov [rbx], rax; hlt")
    fd = g.vm.ioeventfd(DOORBELL, 0)
    try:
        assert g.vm.ioeventfd(DOORBELL + 64, 8, fd, value=5) == fd
        g.run()
        assert int.from_bytes(os.read(fd, 8), "little") == 3
        with pytest.raises(kvmcpu.KvmError, match="KVM_IOEVENTFD"):
            g.vm.ioeventfd(DOORBELL, 0, fd)  # there is one
    finally:
        os.close(fd)


def test_ioeventfd_arguments(vm) -> None:
    for arguments, options in [
        ((0, 3), {}),
        ((0, 16), {}),
        ((0, -1), {}),
        ((0, 1), {"value": 256}),
        ((0, 1), {"value": -1}),
        ((0, 0), {"value": 1}),
        ((-1, 1), {}),
        ((0, 1, "fd"), {}),
        (("0", 1), {}),
        ((0,), {}),
    ]:
        with pytest.raises((TypeError, ValueError, OverflowError)):
            vm.ioeventfd(*arguments, **options)
