# SPDX-License-Identifier: MIT
"""What takes a KVM that runs all of the guest on hardware: interrupts in protected and long mode,
exact completion of accesses, instructions that a paravirtual backend does not emulate."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import guests
import pytest
from guests import ORIGIN

import kvmcpu
from kvmcpu.loaders import x86_start

pytestmark = pytest.mark.kvm(arch="x86_64", interrupts=True)

LAPIC = 0xFEE00000
END = 0xF4  # the port that ends a guest
EOI = f"push rax; mov rax, {LAPIC + 0xB0:#x}; mov dword ptr [rax], 0; pop rax"
# An interrupt between STI and HLT would leave the guest halted for good. STI keeps it off until
# HLT has begun, but QEMU's SVM forgets that when the hypervisor itself is interrupted there: so a
# handler that would return to the HLT, whose address is in r13 (edi in protected mode), skips it.
RETURN = "cmp [rsp], r13; jne 1f; inc qword ptr [rsp]; 1: iretq"
RETURN32 = "cmp [esp], edi; jne 1f; inc dword ptr [esp]; 1: iretd"
COUNTED = f"inc r15; {EOI}; {RETURN}"
# Open the local APIC, and wait until r15 has counted so many interrupts (Intel SDM vol. 3, 11.9).
OPEN = f"mov rbx, {LAPIC:#x}; mov dword ptr [rbx + 0xf0], 0x1ff"
WAIT = f"""
    lea r13, [rip + 8f]; {OPEN}
    {{}}
    again: cli; cmp r15, {{}}; jae 9f; sti; 8: hlt; jmp again
    9: out {END:#x}, al
"""


def ends(g: guests.Guest) -> guests.Guest:
    """With the in-kernel irqchip a halt does not leave the kernel: a port ends the run."""
    g.vm.map_io(END, 1, write=lambda *_: g.cpu.stop() and None)
    return g


@contextmanager
def running(cpu: kvmcpu.Vcpu) -> Iterator[None]:
    """The vCPU runs on a thread while the block lasts, and ends by itself in 60 s after it."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            cpu.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
        thread.join(60)
        late = thread.is_alive()
    finally:
        while thread.is_alive():
            cpu.stop()
            thread.join(0.01)
    assert not errors, errors
    assert not late, "it did not end"


# ---- interrupts through the controllers in the kernel (V17)


def test_local_timer_in_long_mode(long_guest) -> None:
    """V17: the local APIC's timer interrupts 64-bit code through its IDT, again and again."""
    timer = """
        mov dword ptr [rbx + 0x3e0], 0xb      # divided by 1
        mov dword ptr [rbx + 0x320], 0x20030  # periodic, vector 0x30
        mov dword ptr [rbx + 0x380], 1000000
    """
    g = ends(long_guest(WAIT.format(timer, 5), handlers={0x30: COUNTED}, irqchip=True))
    g.run("60s")
    assert g.cpu.stop_reason == "stop"
    assert g.cpu.regs.r15 >= 5


def test_interrupts_of_a_spinning_guest(long_guest) -> None:
    """V17: a guest that never leaves native code is interrupted as well, and goes on after it."""
    code = f"""
        {OPEN}
        mov dword ptr [rbx + 0x3e0], 0xb
        mov dword ptr [rbx + 0x320], 0x30  # once
        mov dword ptr [rbx + 0x380], 1000000
        sti
        again: inc r14; cmp r15, 1; jb again
        cli; out {END:#x}, al
    """
    g = ends(long_guest(code, handlers={0x30: COUNTED}, irqchip=True))
    g.run("60s")
    assert (g.cpu.stop_reason, g.cpu.regs.r15) == ("stop", 1)
    assert g.cpu.regs.r14 > 1


def test_message_in_long_mode(long_guest) -> None:
    """V17: messages of a device interrupt a halted guest, one after the other."""
    ready = threading.Semaphore(0)
    told = f"{EOI}; inc r15; out 0x10, al; {RETURN}"
    g = ends(long_guest(WAIT.format("out 0x10, al", 7), handlers={0x31: told}, irqchip=True))
    g.vm.map_io(0x10, 1, write=lambda *_: ready.release())
    with running(g.cpu):
        for _ in range(7):
            assert ready.acquire(timeout=60)
            assert g.vm.signal_msi(LAPIC, 0x31) == 1  # it was delivered
    assert g.cpu.regs.r15 == 7


def test_irqfd_in_long_mode(long_guest) -> None:
    """V17: an eventfd interrupts a halted guest; what comes while it is pending is one."""
    ready = threading.Event()
    g = ends(long_guest(WAIT.format("out 0x10, al", 1), handlers={0x31: COUNTED}, irqchip=True))
    g.vm.map_io(0x10, 1, write=lambda *_: ready.set())
    g.vm.set_gsi_routing([(24, "msi", LAPIC, 0x31)])
    fd = g.vm.irqfd(24)
    try:
        with running(g.cpu):
            assert ready.wait(60)
            os.write(fd, (1).to_bytes(8, "little"))
    finally:
        os.close(fd)
    assert g.cpu.regs.r15 == 1


def test_line_in_long_mode(long_guest) -> None:
    """V17: a level-triggered line comes through the I/O APIC as long as its device holds it."""
    ioapic = 0xFEC00000
    setup = f"""
        mov al, 0xff; out 0x21, al; out 0xa1, al  # not through the 8259s
        mov rcx, {ioapic:#x}
        mov dword ptr [rcx], 0x1a; mov dword ptr [rcx + 0x10], 0x8032  # pin 5: level, vector 0x32
        mov dword ptr [rcx], 0x1b; mov dword ptr [rcx + 0x10], 0
        out 0x10, al
    """
    lower = f"inc r15; mov al, 1; out 0x11, al; {EOI}; {RETURN}"
    g = ends(long_guest(WAIT.format(setup, 3), handlers={0x32: lower}, irqchip=True))
    times: list[int] = []

    def write(_offset: int, _size: int, _value: int) -> None:
        times.append(1)
        if len(times) == 3:
            g.vm.irq_line(5, 0)

    g.vm.map_io(0x10, 1, write=lambda *_: g.vm.irq_line(5, 1))
    g.vm.map_io(0x11, 1, write=write)
    g.run("60s")
    assert (g.cpu.stop_reason, g.cpu.regs.r15, len(times)) == ("stop", 3, 3)


# Where the second processor begins: page 8 by its start-up message, in real mode. It goes to
# protected mode, opens its local APIC and sends vector 0x30 to the first (Intel SDM vol. 3, 9.4).
SECOND = 0x8000
SECOND_CODE = f"""
    .code16
    cli; xor ax, ax; mov ds, ax; lgdt [table]
    mov eax, cr0; or al, 1; mov cr0, eax
    ljmp {x86_start.CODE32:#x}, offset 1f
    table: .word 0x3f; .long {guests.TABLES:#x}
    .code32
    1: mov ax, {x86_start.DATA:#x}; mov ds, ax
    mov ebx, {LAPIC:#x}; mov dword ptr [ebx + 0xf0], 0x1ff
    mov dword ptr [ebx + 0x310], 0; mov dword ptr [ebx + 0x300], 0x4030
    2: hlt; jmp 2b
"""


def test_two_processors(long_guest) -> None:
    """V17, V24: the first processor starts the second by INIT and a start-up message, and is
    interrupted by it; each runs on a thread of its own."""
    start = """
        mov dword ptr [rbx + 0x310], 0x1000000
        mov dword ptr [rbx + 0x300], 0x4500
        mov dword ptr [rbx + 0x300], 0x4608
    """
    g = ends(long_guest(WAIT.format(start, 1), handlers={0x30: COUNTED}, irqchip=True))
    code = guests.assemble(SECOND_CODE, bits=32, origin=SECOND)
    g.ram[SECOND : SECOND + len(code)] = code
    second = g.vm.create_vcpu()
    assert second.mp_state == 1  # it waits for INIT
    thread = threading.Thread(target=second.run)
    thread.start()
    try:
        g.run("60s")
    finally:
        while thread.is_alive():
            second.stop()
            thread.join(0.01)
    assert (g.cpu.stop_reason, g.cpu.regs.r15) == ("stop", 1)
    assert second.sregs.cs.selector == x86_start.CODE32


def protected(kvm: kvmcpu.Kvm, code: str, handlers: dict[int, str]) -> guests.Guest:
    """A guest in 32-bit protected mode with an IDT (Intel SDM vol. 3, 6.11) and the irqchip."""
    vm = kvm.create_vm()
    ram = vm.add_memory(0, "2MiB")
    vm.create_irqchip()
    vm.create_pit()
    cpu = vm.create_vcpu()
    binary = guests.assemble(code, bits=32)
    ram[ORIGIN : ORIGIN + len(binary)] = binary
    for vector, source in handlers.items():
        address = guests.HANDLERS + vector * guests.HANDLER_SIZE
        handler = guests.assemble(source, bits=32, origin=address)
        ram[address : address + len(handler)] = handler
        gate = struct.pack("<HHHH", address & 0xFFFF, x86_start.CODE32, 0x8E00, address >> 16)
        ram[guests.IDT + 8 * vector : guests.IDT + 8 * vector + 8] = gate
    x86_start.protected(vm, cpu, ORIGIN, stack=guests.STACK, tables=guests.TABLES)
    cpu.sregs.idt.update({"base": guests.IDT, "limit": 8 * 256 - 1})
    return guests.Guest(vm, ram, cpu, binary)


def test_interval_timer_in_protected_mode(kvm) -> None:
    """V17: the 8254's interrupts come through the 8259 into 32-bit code, at its frequency."""
    code = f"""
        mov al, 0x11; out 0x20, al; mov al, 0x20; out 0x21, al
        mov al, 4; out 0x21, al; mov al, 1; out 0x21, al
        mov al, 0xfe; out 0x21, al                              # line 0 alone
        mov al, 0x34; out 0x43, al                              # channel 0, mode 2
        mov al, 0xa9; out 0x40, al; mov al, 4; out 0x40, al     # 1193 counts: 1 kHz
        sti
        again: hlt; cmp esi, 20; jb again
        cli; out {END:#x}, al
    """
    g = ends(protected(kvm, code, {0x20: "inc esi; mov al, 0x20; out 0x20, al; iretd"}))
    with g.vm:
        passed = g.run("60s")
        assert g.cpu.stop_reason == "stop"
        assert g.cpu.regs.rsi >= 20
        assert passed >= kvmcpu.parse_ticks("15ms")


def test_lines_and_nmi_in_protected_mode(kvm) -> None:
    """V17: lines of both 8259s, one within the other, and an NMI within that interrupt 32-bit
    code that halts."""
    code = f"""
        mov al, 0x11; out 0x20, al; out 0xa0, al
        mov al, 0x20; out 0x21, al; mov al, 0x28; out 0xa1, al
        mov al, 4; out 0x21, al; mov al, 2; out 0xa1, al
        mov al, 1; out 0x21, al; out 0xa1, al
        mov al, 0xfa; out 0x21, al; mov al, 0xfd; out 0xa1, al  # lines 0, 9, and 2 between them
        mov edi, offset 8f; mov al, 1; out 0x10, al
        again: cli; cmp esi, 0x111; je 9f; sti; 8: hlt; jmp again
        9: out {END:#x}, al
    """
    over = "mov al, 0x20; out 0xa0, al; out 0x20, al"
    handlers = {
        0x20: f"{over}; mov al, 2; out 0x10, al; add esi, 1; {RETURN32}",
        0x29: f"{over}; mov al, 3; out 0x10, al; add esi, 0x10; {RETURN32}",
        2: f"add esi, 0x100; {RETURN32}",
    }
    g = ends(protected(kvm, code, handlers))

    def raise_line(line: int) -> None:
        g.vm.irq_line(line, 1)
        g.vm.irq_line(line, 0)

    asked = {1: lambda: raise_line(0), 2: lambda: raise_line(9), 3: g.cpu.nmi}
    g.vm.map_io(0x10, 1, write=lambda _offset, _size, value: asked[value]())
    with g.vm:
        g.run("60s")
        assert (g.cpu.stop_reason, g.cpu.regs.rsi) == ("stop", 0x111)


def test_exception_in_protected_mode(kvm) -> None:
    """V7: a fault in 32-bit code goes to the guest's handler, with its error code."""
    g = ends(protected(kvm, f"mov ax, 0x1234; mov ds, ax; 1: jmp 1b; back: out {END:#x}, al", {
        13: f"pop ebx; mov dword ptr [esp], offset 1f; iretd; 1: out {END:#x}, al"
    }))  # fmt: skip
    with g.vm:
        g.run("60s")
        assert (g.cpu.stop_reason, g.cpu.regs.rbx) == ("stop", 0x1234)


# ---- NMI, and the end of a halt (V11, V17)


def test_nmi_in_long_mode(long_guest) -> None:
    """V17: an NMI gets through though interrupts are off, also to a guest that spins."""
    g = ends(long_guest(
        f"cli; again: inc r14; test r15, r15; jz again; out {END:#x}, al",
        handlers={2: "inc r15; iretq"},
    ))  # fmt: skip
    g.vm.queue.schedule(g.cpu.nmi, delay="5ms")
    g.run("60s")
    assert (g.cpu.stop_reason, g.cpu.regs.r15) == ("stop", 1)
    assert g.cpu.regs.r14 > 0


def test_nmis_within_an_nmi(long_guest) -> None:
    """V17: what comes while an NMI is handled waits for its end, and is one however many came
    (AMD APM vol. 2, 8.2.3)."""
    handler = "inc r15; out 0x11, al; add r14, r15; iretq"
    g = long_guest("out 0x10, al; nop; mov rbx, r15; hlt", handlers={2: handler})
    handled: list[int] = []

    def within(_offset: int, _size: int, _value: int) -> None:
        handled.append(g.cpu.regs.r15)
        if len(handled) == 1:
            for _ in range(3):
                g.cpu.nmi()

    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.nmi())
    g.vm.map_io(0x11, 1, write=within)
    g.run()
    assert (g.cpu.exit.name, handled) == ("HLT", [1, 2])
    assert (g.cpu.regs.r14, g.cpu.regs.rbx) == (1 + 2, 2)  # one ended before the next began


def test_vectors_in_long_mode(long_guest) -> None:
    """V11, V17: without controllers in the kernel a vector wakes a halted guest up; with
    interrupts off it waits for them."""
    g = long_guest("sti; hlt; cli; hlt; sti; nop; hlt", handlers={0x30: "inc r15; iretq"})
    g.run()
    assert (g.cpu.stop_reason, g.cpu.exit.name, g.cpu.regs.r15) == ("idle", "HLT", 0)
    g.cpu.interrupt(0x30)
    g.run()
    assert (g.cpu.stop_reason, g.cpu.regs.r15) == ("idle", 1)
    g.cpu.interrupt(0x30)
    g.cpu.activate()
    g.run()
    assert (g.cpu.stop_reason, g.cpu.regs.r15) == ("idle", 2)
    assert g.cpu.regs.rip == ORIGIN + len(g.code)


# ---- accesses that end with the next entry (V8)


def test_port_read_ends_at_the_next_entry(long_guest) -> None:
    """V8: until a half entry the instruction is not over: its register and RIP are the old ones."""
    g = long_guest("mov eax, 0x55; in al, 0x10; mov ebx, eax; hlt")
    g.cpu.enter()
    assert isinstance(g.cpu.exit, kvmcpu.IoExit)
    g.cpu.exit.data = b"\x99"
    assert (g.cpu.regs.rip, g.cpu.regs.rax) == (ORIGIN + 5, 0x55)
    g.cpu.enter(0)
    assert (g.cpu.regs.rip, g.cpu.regs.rax, g.cpu.regs.rbx) == (ORIGIN + 7, 0x99, 0)
    g.cpu.enter()
    assert g.cpu.regs.rbx == 0x99


def test_port_write_ends_at_the_next_entry(long_guest) -> None:
    """V8: a write is told while RIP is still at it; after a half entry it is past."""
    g = long_guest("mov al, 7; out 0x10, al; hlt")
    g.cpu.enter()
    assert isinstance(g.cpu.exit, kvmcpu.IoExit)
    assert (g.cpu.exit.data, g.cpu.regs.rip) == (b"\x07", ORIGIN + 2)
    g.cpu.enter(0)
    assert g.cpu.regs.rip == ORIGIN + 4


def test_string_read_ends_at_the_next_entry(long_guest) -> None:
    """V8: what `rep insb` read gets into memory with the half entry, and RDI moves then."""
    g = long_guest("mov edi, 0x8000; mov ecx, 4; mov edx, 0x10; cld; rep insb; hlt")
    g.cpu.enter()
    assert isinstance(g.cpu.exit, kvmcpu.IoExit)
    count = g.cpu.exit.count
    g.cpu.exit.data = bytes(range(0x41, 0x41 + count))
    assert bytes(g.ram[0x8000:0x8004]) == bytes(4)
    g.cpu.enter(0)
    assert bytes(g.ram[0x8000 : 0x8000 + count]) == b"ABCD"[:count]


def test_memory_read_ends_at_the_next_entry(long_guest) -> None:
    """V8: likewise a read of a device's memory."""
    g = long_guest(f"mov esi, {guests.MMIO:#x}; mov eax, [rsi]; mov ebx, eax; hlt")
    g.cpu.enter()
    assert isinstance(g.cpu.exit, kvmcpu.MmioExit)
    g.cpu.exit.data = (0x12345678).to_bytes(4, "little")
    assert (g.cpu.regs.rip, g.cpu.regs.rax) == (ORIGIN + 5, 0)
    g.cpu.enter(0)
    assert (g.cpu.regs.rip, g.cpu.regs.rax) == (ORIGIN + 7, 0x12345678)


# ---- instructions and modes


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("int 0x30; mov ebx, r15d", 1),
        ("int3; mov ebx, r15d", 0x10),
        ("ud2; mov ebx, r15d", 0x100),
        (
            "mov rsi, 0x8000; xor eax, eax; xor edx, edx; mov ecx, 2; mov ebx, 5;"
            " lock cmpxchg16b [rsi]; mov ebx, [rsi]",
            5,
        ),
        (
            "mov rdi, 0x8000; mov eax, 3; xor edx, edx; mov ebx, 7; movd xmm1, ebx;"
            " fxsave [rdi]; pxor xmm1, xmm1; fxrstor [rdi]; movd ebx, xmm1",
            7,
        ),
        ("mov rax, cr0; mov cr0, rax; mov ebx, 9", 9),
    ],
    ids=["int n", "int3", "ud2", "cmpxchg16b", "fxrstor", "mov cr0"],
)
def test_native_instructions(long_guest, code, result) -> None:
    """V7: ring 0 in long mode runs on the processor, whatever the instruction."""
    handlers = {
        0x30: "add r15, 1; iretq",
        3: "add r15, 0x10; iretq",
        6: "add r15, 0x100; add qword ptr [rsp], 2; iretq",
    }
    g = long_guest(f"{code}; hlt", handlers=handlers)
    g.run()
    assert g.cpu.exit.name == "HLT"
    assert g.cpu.regs.rbx == result


def test_xrstor(kvm, long_guest) -> None:
    """V7, V13: XSAVE and XRSTOR, for the state components that were put into XCR0."""
    features = next(words[5] for words in kvm.supported_cpuid() if words[0] == 1)
    if not features >> 26 & 1:
        pytest.skip("this processor has no XSAVE")
    g = long_guest("""
        mov edi, 0x8000; mov eax, 3; xor edx, edx; mov ebx, 7; movd xmm1, ebx
        xsave [rdi]; pxor xmm1, xmm1; xrstor [rdi]; movd ebx, xmm1; hlt
    """)
    g.cpu.sregs.cr4 |= 1 << 18  # OSXSAVE
    g.cpu.xcrs.xcr0 = 3  # x87 and SSE; QEMU's SVM would lose what the guest itself writes there
    g.run()
    assert (g.cpu.exit.name, g.cpu.regs.rbx) == ("HLT", 7)
    assert g.ram[0x8000 + 512] == 3  # XSTATE_BV (Intel SDM vol. 1, 13.4.2)


def test_invpcid(kvm, long_guest) -> None:
    """V7: INVPCID, for all of the address spaces."""
    features = next(words[4] for words in kvm.supported_cpuid() if words[:2] == (7, 0))
    if not features >> 10 & 1:
        pytest.skip("this processor has no INVPCID")
    g = long_guest("mov edi, 0x8000; mov eax, 2; invpcid rax, [rdi]; mov ebx, 7; hlt")
    g.run()
    assert (g.cpu.exit.name, g.cpu.regs.rbx) == ("HLT", 7)


@pytest.mark.parametrize(
    ("access", "error", "after"),
    [("mov ecx, [rdi]", 0, (7, 7)), ("mov [rdi], ecx", 2, (5, 5))],
    ids=["read", "write"],
)
def test_page_fault(long_guest, access, error, after) -> None:
    """V7: an access to a page that is not there goes to the guest's handler, which maps it, and
    is then done again; error codes as in AMD APM vol. 2, 8.4.2."""
    top, far = guests.TABLES + x86_start.PAGE, 1 << 39  # the top table's second entry
    handler = f"pop rbx; mov r12, cr2; mov rax, [{top:#x}]; mov [{top + 8:#x}], rax; iretq"
    code = f"mov ecx, 5; mov rdi, {far + 0x8000:#x}; {access}; hlt"
    g = long_guest(code, handlers={14: handler})
    g.ram[0x8000] = 7
    g.run()
    assert g.cpu.exit.name == "HLT"
    assert (g.cpu.regs.r12, g.cpu.regs.rbx) == (far + 0x8000, error)
    assert (g.cpu.regs.rcx, g.ram[0x8000]) == after


def test_steps_of_ring_0(long_guest) -> None:
    """V23: single steps of native code at ring 0, into a call and back, are as many as there are
    instructions."""
    g = long_guest("call 1f; nop; hlt; 1: inc ebx; ret")
    seen = []
    while g.cpu.step() and g.cpu.exit.name != "HLT":
        seen.append(g.cpu.regs.rip - ORIGIN)
    assert seen == [7, 9, 5, 6]
    assert g.cpu.regs.rbx == 1


@pytest.mark.parametrize("event", ["int 0x30", "ud2", "nop"])
def test_a_step_over_a_handler(long_guest, event) -> None:
    """V23: a handler that is called in a step runs through as a part of it, for the processor
    clears the trap flag when it calls one; with the return it is set again, for the instruction
    after that. A step is not exact then."""
    handlers = {
        0x30: "inc r15; nop; nop; iretq",
        6: "inc r15; add qword ptr [rsp], 2; iretq",
    }
    g = long_guest(f"nop; {event}; nop; nop; hlt", handlers=handlers)
    g.cpu.regs.rflags |= 1 << 9  # interrupts on; a step over QEMU's STI is one over two
    there = ORIGIN + len(g.code) - 3
    assert g.cpu.step(1) == 1
    if event == "nop":
        g.cpu.interrupt(0x30)
    assert g.cpu.step(1) == 1
    assert g.cpu.regs.r15 == 1
    assert g.cpu.regs.rip in (there, there + 1)
    g.run()
    assert (g.cpu.exit.name, g.cpu.regs.r15) == ("HLT", 1)
    assert g.cpu.regs.rflags & 1 << 8 == 0


def test_fail_entry(kvm, long_guest) -> None:
    """V7: a state that only the hardware refuses is a FailEntryError with its code, and the VM
    goes on once the state is mended."""
    g = long_guest("mov ebx, 1; hlt")
    # 64-bit and 32-bit code at once (AMD APM vol. 2, 15.5.1; Intel SDM vol. 3, 27.3.1.2).
    g.cpu.sregs.cs.db = 1
    with pytest.raises(kvmcpu.FailEntryError, match="refuses to enter") as caught:
        g.run()
    assert isinstance(caught.value.exit, kvmcpu.FailEntryExit)
    code = caught.value.exit.hardware_entry_failure_reason
    if kvm.backend == "svm":
        assert code & 0xFFFFFFFF == 0xFFFFFFFF  # VMEXIT_INVALID (appendix C)
    else:
        assert code == 0x80000021  # invalid guest state, while it was loaded (appendix C)
    g.cpu.sregs.cs.db = 0
    g.cpu.regs.rip = ORIGIN
    g.run()
    assert (g.cpu.exit.name, g.cpu.regs.rbx) == ("HLT", 1)


def test_halts_in_the_kernel(long_guest) -> None:
    """V7, V10: with the irqchip a halted vCPU waits in the kernel, and a kick gets it out."""
    g = long_guest("cli; out 0x10, al; 1: hlt; jmp 1b", irqchip=True)
    halted = threading.Event()
    g.vm.map_io(0x10, 1, write=lambda *_: halted.set())
    thread = threading.Thread(target=g.run)
    thread.start()
    try:
        assert halted.wait(60)
    finally:
        g.cpu.stop()
        thread.join(60)
    assert not thread.is_alive()
    assert g.cpu.stop_reason == "stop"
    assert g.cpu.stats["halts"] == 0
