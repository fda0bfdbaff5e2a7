# SPDX-License-Identifier: MIT
"""Exits: each one that can be had here, its fields, handlers for them, errors, statistics (V14)."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import textwrap
import threading

import guests
import pytest

import kvmcpu
from kvmcpu import Cap, ExitReason

DEVICE = 0x20000000
MSR_EXIT_UNKNOWN = 1 << 1  # Linux, linux/kvm.h: KVM_MSR_EXIT_REASON_UNKNOWN
MSR_EXIT_INVALID = 1 << 0

GEM5_NAMES = {
    "committedInsts",
    "numCycles",
    "numVMExits",
    "numVMHalfEntries",
    "numExitSignal",
    "numMMIO",
    "numCoalescedMMIO",
    "numIO",
    "numHalt",
    "numInterrupts",
    "numHypercalls",
}


def names(cpu: kvmcpu.Vcpu) -> list[str]:
    return [record.name for record in cpu.last_exits()]


# ---- each reason


def test_io(guest) -> None:
    """V7: a port is an IoExit with direction, port, size, count and data."""
    g = guest("mov ax, 0x1234; out 0x10, ax; in al, 0x12; hlt")
    assert g.cpu.exit is None
    g.cpu.enter()
    last = g.cpu.exit
    assert isinstance(last, kvmcpu.IoExit)
    assert (last.reason, last.name) == (ExitReason.IO, "IO")
    assert (last.direction, last.port, last.size, last.count) == ("out", 0x10, 2, 1)
    assert last.data == b"\x34\x12"
    assert last.as_dict() == {
        "reason": 2,
        "name": "IO",
        "direction": "out",
        "port": 0x10,
        "size": 2,
        "count": 1,
        "data": b"\x34\x12",
    }
    assert "0x10" in repr(last)
    assert g.cpu.status == "RunningService"
    with pytest.raises(AttributeError):
        last.port = 5
    # Serviced by hand: what the guest is to read is set in the exit.
    g.cpu.enter()
    reading = g.cpu.exit
    assert (reading.direction, reading.port, reading.size) == ("in", 0x12, 1)
    reading.data = b"\x77"
    for wrong in (b"", b"12"):
        with pytest.raises(ValueError):
            reading.data = wrong
    g.cpu.enter()
    assert g.cpu.exit.name == "HLT"
    assert g.cpu.regs.rax == 0x1277
    # It is the last exit no more: its fields stay, but it cannot be answered.
    assert reading.port == 0x12
    with pytest.raises((kvmcpu.StateError, ValueError)):
        reading.data = b"\x78"


def test_mmio(long_guest) -> None:
    """V7: an address is an MmioExit with address, size, direction and data."""
    g = long_guest(
        f"mov rbx, {DEVICE:#x}; mov eax, 0x11223344; mov [rbx + 4], eax; mov ax, [rbx]; hlt"
    )
    g.cpu.enter()
    last = g.cpu.exit
    assert isinstance(last, kvmcpu.MmioExit)
    assert (last.reason, last.name) == (ExitReason.MMIO, "MMIO")
    assert (last.address, last.size, last.is_write) == (DEVICE + 4, 4, True)
    assert last.data == bytes.fromhex("44332211")
    assert last.as_dict()["address"] == DEVICE + 4
    g.cpu.enter()
    assert g.cpu.exit.is_write is False
    g.cpu.exit.data = b"\xcd\xab"
    g.cpu.enter()
    assert g.cpu.regs.rax == 0x1122ABCD


def test_hlt(guest) -> None:
    """V7: a halt suspends the context; nothing can wake it, and the run ends."""
    g = guest("hlt")
    g.run()
    assert isinstance(g.cpu.exit, kvmcpu.HltExit)
    assert (g.cpu.exit.reason, g.cpu.exit.name) == (ExitReason.HLT, "HLT")
    assert g.cpu.stop_reason == "idle"
    assert g.cpu.status == "Idle"
    assert g.cpu.stats["halts"] == 1


def test_single_step(guest) -> None:
    """V7: a single step is a DebugExit with vector, pc and the debug registers."""
    g = guest("nop; nop; nop; hlt")
    g.cpu.guest_debug(singlestep=True)
    for i in range(3):
        g.run()
        last = g.cpu.exit
        assert isinstance(last, kvmcpu.DebugExit)
        assert g.cpu.stop_reason == "exit"
        assert (last.name, last.exception, last.pc) == ("DEBUG", 1, guests.ORIGIN + i + 1)
        assert last.dr6 & 1 << 14
        assert g.cpu.regs.rip == last.pc
    g.cpu.guest_debug()
    g.run()
    assert g.cpu.exit.name == "HLT"


def test_enter_single_step(guest) -> None:
    g = guest("nop; hlt")
    g.cpu.guest_debug(singlestep=True)
    g.cpu.enter()
    assert g.cpu.exit.name == "DEBUG"
    assert g.cpu.regs.rip == guests.ORIGIN + 1


@pytest.mark.outside("QEMU's emulated SVM does not load a nested guest's DR7, and keeps its DR0")
def test_breakpoints(guest) -> None:
    """V7: up to four breakpoints in debug registers, which the guest does not see."""
    g = guest("xor cx, cx; again: inc cx; nop; cmp cx, 3; jne again; hlt")
    address = guests.symbols("xor cx, cx; again: inc cx; nop; cmp cx, 3; jne again; hlt")["again"]
    g.cpu.guest_debug(breakpoints=[address])
    for i in range(3):
        g.run()
        assert isinstance(g.cpu.exit, kvmcpu.DebugExit)
        assert (g.cpu.exit.pc, g.cpu.regs.rip, g.cpu.regs.rcx) == (address, address, i)
        # Over the breakpoint by hand, as a debugger does.
        g.cpu.guest_debug()
        g.cpu.step()
        g.cpu.guest_debug(breakpoints=[address])
    g.run()
    assert g.cpu.exit.name == "HLT"
    assert g.cpu.debugregs.dr7 & 0xFF == 0


def test_guest_debug_arguments(cpu) -> None:
    with pytest.raises(ValueError):
        cpu.guest_debug(breakpoints=[1, 2, 3, 4, 5])
    for wrong in ([-1], [1 << 64], 5, ["a"]):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            cpu.guest_debug(breakpoints=wrong)
    with pytest.raises(TypeError):
        cpu.guest_debug(True)


def test_irq_window(guest) -> None:
    """V17: an interrupt that the guest cannot take yet waits for the window, which is an exit."""
    g = guest("""
        mov word ptr [0x20 * 4], offset handler
        mov word ptr [0x20 * 4 + 2], 0
        out 0x10, al
        nop
        sti
    again:
        cmp byte ptr [0x8000], 0
        je again
        hlt
    handler:
        mov byte ptr [0x8000], 1
        iret""")
    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.interrupt(0x20))
    windows: list[kvmcpu.Exit] = []
    g.cpu.set_exit_handler(ExitReason.IRQ_WINDOW_OPEN, lambda cpu, last: windows.append(last))
    g.run()
    assert isinstance(windows[0], kvmcpu.IrqWindowExit)
    assert windows[0].name == "IRQ_WINDOW_OPEN"
    assert g.cpu.stats["interrupts"] == 1


def test_shutdown(kvm, long_guest) -> None:
    """V7: a triple fault is a ShutdownError with registers and the exits that led there."""
    g = long_guest("out 0x10, al; ud2")
    g.vm.map_io(0x10, 1)
    with pytest.raises(kvmcpu.ShutdownError, match="triple fault") as caught:
        g.run()
    assert isinstance(caught.value, kvmcpu.GuestError)
    assert isinstance(caught.value.exit, kvmcpu.ShutdownExit)
    assert caught.value.exit.reason == ExitReason.SHUTDOWN
    assert "rip=" in caught.value.registers
    assert "rip=" in str(caught.value)
    assert "IO" in str(caught.value)  # the exit before it
    assert g.cpu.stop_reason == "error"
    # The vCPU stays there to be looked at; only on AMD KVM resets it before it tells.
    at, limit = guests.ORIGIN + len(g.code) - 2, 0
    if kvm.backend == "svm":
        at, limit = 0xFFF0, 0xFFFF
    assert (g.cpu.regs.rip, g.cpu.sregs.idt.limit) == (at, limit)


def test_internal_error(long_guest) -> None:
    """V7: an instruction that the kernel cannot emulate is an InternalError that says so."""
    # cmpxchg16b on MMIO is beyond every KVM's emulator.
    g = long_guest(f"mov rsi, {DEVICE:#x}; lock cmpxchg16b [rsi]; hlt")
    g.vm.map_mmio(DEVICE, 64)
    with pytest.raises(kvmcpu.InternalError, match="emulate") as caught:
        g.run()
    last = caught.value.exit
    assert isinstance(last, kvmcpu.InternalErrorExit)
    assert last.suberror == 1
    assert isinstance(last.data, tuple)
    assert len(last.data) <= 16
    assert g.cpu.last_exits()[-1].data == 1
    assert g.cpu.regs.rip == guests.ORIGIN + 7


def test_interrupted(user_guest) -> None:
    """V7: an entry that a kick ended is an IntrExit, which is no error."""
    g = user_guest("again: jmp again")
    g.cpu.enter(1_000_000_000)
    last = g.cpu.exit
    assert isinstance(last, kvmcpu.IntrExit)
    assert (last.reason, last.name) == (ExitReason.INTR, "INTR")
    assert g.cpu.stats["exit_signal"] == 1
    assert g.cpu.status == "Running"


def test_unknown_msrs_of_the_guest(long_guest) -> None:
    """V7: with MSR exits on, an access to an unknown MSR is an MsrExit that is answered."""
    code = """
        mov ecx, 0x12345678
        rdmsr
        mov [0x8000], eax
        mov [0x8004], edx
        mov eax, 0x55
        mov edx, 0x66
        wrmsr
        hlt"""
    g = long_guest(code)
    if not g.vm.check_extension(Cap.X86_USER_SPACE_MSR):
        pytest.skip("this kernel does not hand MSR accesses out")
    g.vm.enable_cap(Cap.X86_USER_SPACE_MSR, MSR_EXIT_UNKNOWN | MSR_EXIT_INVALID)
    g.run()
    last = g.cpu.exit
    assert g.cpu.stop_reason == "exit"
    assert isinstance(last, kvmcpu.MsrExit)
    assert (last.reason, last.name) == (ExitReason.X86_RDMSR, "X86_RDMSR")
    assert last.index == 0x12345678
    assert last.msr_reason in (MSR_EXIT_UNKNOWN, MSR_EXIT_INVALID)
    last.data = 0xAAAA_BBBB_CCCC_DDDD
    last.error = 0
    g.run()
    assert int.from_bytes(g.vm.read(0x8000, 8), "little") == 0xAAAA_BBBB_CCCC_DDDD
    last = g.cpu.exit
    assert (last.name, last.index, last.data) == ("X86_WRMSR", 0x12345678, 0x66_0000_0055)
    g.run()
    assert g.cpu.exit.name == "HLT"


def test_msr_exit_with_a_fault(guest) -> None:
    """V7: an MsrExit answered with error=1 is a general protection fault for the guest."""
    g = guest("mov ecx, 0x12345678; rdmsr; hlt; handler: mov byte ptr [0x8000], 1; hlt")
    if not g.vm.check_extension(Cap.X86_USER_SPACE_MSR):
        pytest.skip("this kernel does not hand MSR accesses out")
    g.vm.enable_cap(Cap.X86_USER_SPACE_MSR, MSR_EXIT_UNKNOWN | MSR_EXIT_INVALID)
    g.vm.write(4 * 13, struct.pack("<HH", guests.ORIGIN + 9, 0))

    def refuse(cpu: kvmcpu.Vcpu, last: kvmcpu.MsrExit) -> None:
        last.error = 1

    g.cpu.set_exit_handler(ExitReason.X86_RDMSR, refuse)
    g.run()
    assert g.ram[0x8000] == 1


@pytest.mark.kvm(interrupts=True)
@pytest.mark.parametrize("handled", [False, True])
def test_hypercall(kvm, long_guest, handled) -> None:
    """V7: a hypercall that the kernel passes on is a HypercallExit, counted, for a handler, else an
    error; what is answered is the guest's when it goes on. PVM passes none on."""
    number = 12  # KVM_HC_MAP_GPA_RANGE (Linux, linux/kvm_para.h)
    instruction = "vmmcall" if kvm.backend == "svm" else "vmcall"
    arguments = "mov rbx, 0x1000; mov rcx, 1; mov rdx, 0x10; mov rsi, 0"
    g = long_guest(f"mov eax, {number}; {arguments}; {instruction}; hlt")
    if not g.vm.check_extension(Cap.EXIT_HYPERCALL) & 1 << number:
        pytest.skip("this kernel passes no hypercall on")
    g.vm.enable_cap(Cap.EXIT_HYPERCALL, 1 << number)

    def answer(cpu: kvmcpu.Vcpu, last: kvmcpu.HypercallExit) -> None:
        assert isinstance(last, kvmcpu.HypercallExit)
        assert (last.nr, last.args[:3], len(last.args)) == (number, (0x1000, 1, 0x10), 6)
        last.ret = 0x1234

    if handled:
        g.cpu.set_exit_handler(ExitReason.HYPERCALL, answer)
    else:
        with pytest.raises(kvmcpu.UnhandledExitError) as caught:
            g.run()
        assert caught.value.exit.as_dict() == g.cpu.exit.as_dict()
        answer(g.cpu, g.cpu.exit)
    g.run()
    assert (g.cpu.exit.name, g.cpu.regs.rax) == ("HLT", 0x1234)
    assert g.cpu.stats["hypercalls"] == 1


# ---- handlers


def test_handler_takes_the_place(guest) -> None:
    """V7: any reason can be given a handler; it takes the place of what is done otherwise."""
    g = guest("mov al, 3; out 0x10, al; in al, 0x11; hlt; hlt")
    seen: list[str] = []

    def handle(cpu: kvmcpu.Vcpu, last: kvmcpu.IoExit) -> int:
        assert cpu is g.cpu
        assert cpu.exit.as_dict() == last.as_dict()
        seen.append(f"{last.direction} {last.port:#x}")
        if last.direction == "in":
            last.data = b"\x99"
        return 10**12

    g.cpu.set_exit_handler(ExitReason.IO, handle)
    g.vm.map_io(0x10, 2, write=lambda *_: seen.append("bus"))
    assert g.run() >= 2 * 10**12
    assert seen == ["out 0x10", "in 0x11"]
    assert g.cpu.regs.rax & 0xFF == 0x99
    assert g.cpu.stats["io"] == 2
    assert [r.latency for r in g.cpu.last_exits() if r.name == "IO"] == [10**12, 10**12]
    g.cpu.set_exit_handler(ExitReason.IO, None)
    g.cpu.regs.rip = guests.ORIGIN
    g.cpu.activate()
    g.run()
    assert seen[2:] == ["bus"]


def test_handler_of_a_halt(guest) -> None:
    g = guest("mov al, 1; hlt; mov al, 2; hlt")
    halts: list[int] = []
    g.cpu.set_exit_handler(
        ExitReason.HLT, lambda cpu, last: halts.append(1) or (cpu.stop() and None)
    )
    g.run()
    assert (g.cpu.stop_reason, g.cpu.regs.rax & 0xFF) == ("stop", 1)
    g.run()
    assert (g.cpu.stop_reason, g.cpu.regs.rax & 0xFF) == ("stop", 2)
    assert len(halts) == 2


def test_handler_of_an_error(long_guest) -> None:
    """V7: also what would be an error: a triple fault becomes a reset."""
    g = long_guest("ud2; hlt")
    faults: list[str] = []

    def reset(cpu: kvmcpu.Vcpu, last: kvmcpu.Exit) -> None:
        faults.append(last.name)
        cpu.sregs.cs.base = 0  # where KVM has reset the vCPU (AMD) it is elsewhere
        cpu.regs.rip = guests.ORIGIN + 2

    g.cpu.set_exit_handler(ExitReason.SHUTDOWN, reset)
    g.run()
    assert faults == ["SHUTDOWN"]
    assert g.cpu.exit.name == "HLT"


def test_handler_raises(guest) -> None:
    """V7: what it raises comes out of run, and the vCPU goes on behind the exit."""
    g = guest("out 0x10, al; hlt")

    def fail(cpu: kvmcpu.Vcpu, last: kvmcpu.Exit) -> None:
        raise LookupError(last.name)

    g.cpu.set_exit_handler(ExitReason.IO, fail)
    with pytest.raises(LookupError, match="IO"):
        g.run()
    assert g.cpu.stop_reason == "error"
    g.run()
    assert g.cpu.exit.name == "HLT"


@pytest.mark.parametrize("answer", ["x", 1.5, -1, 1 << 64])
def test_handler_answers_wrongly(guest, answer) -> None:
    g = guest("out 0x10, al; hlt")
    g.cpu.set_exit_handler(ExitReason.IO, lambda cpu, last: answer)
    with pytest.raises((TypeError, ValueError, OverflowError)):
        g.run()


def test_handler_arguments(cpu) -> None:
    for reason, handler in [("IO", None), (-1, None), (2, 5), (None, None), (1 << 40, None)]:
        with pytest.raises((TypeError, ValueError, OverflowError)):
            cpu.set_exit_handler(reason, handler)


# ---- error exits while another VM runs on (issue item 7)

ERRORS = {
    "triple fault": (64, "ud2", kvmcpu.ShutdownError),
    "cannot be emulated": (
        64,
        f"mov rsi, {DEVICE:#x}; lock cmpxchg16b [rsi]",
        kvmcpu.InternalError,
    ),
    "unmapped fetch": (64, f"mov rax, {DEVICE:#x}; jmp rax", kvmcpu.GuestError),
    "fetch of an unmapped page": (64, "mov rax, 0x8000000000; jmp rax", kvmcpu.GuestError),
    "unassigned port": (16, "out 0x10, al", kvmcpu.UnassignedAccessError),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_leave_the_others_alone(guest, long_guest, user_guest, name) -> None:
    """V7: each error exit comes out as an exception with registers while another VM runs on."""
    bits, code, error = ERRORS[name]
    other = user_guest(f"mov rbx, {DEVICE:#x}; again: mov [rbx], al; jmp again")
    beats: list[int] = []
    other.vm.map_mmio(DEVICE, 1, write=lambda *_: beats.append(1))
    thread = threading.Thread(target=other.run)
    thread.start()
    try:
        g = guest(code) if bits == 16 else long_guest(code)
        g.vm.unassigned = "ones" if "emulated" in name else "error"
        with pytest.raises(error) as caught:
            g.run()
        assert "rip=" in caught.value.registers
        assert caught.value.exit.as_dict() == g.cpu.exit.as_dict()
        assert g.cpu.stop_reason == "error"
        assert "cr0" in g.cpu.dump()
        before = len(beats)
        for _ in range(2000):
            if len(beats) > before + 5:
                break
            thread.join(0.005)
        assert len(beats) > before + 5
        # Again: the vCPU is where it was, and says the same.
        with pytest.raises(kvmcpu.GuestError):
            g.run()
    finally:
        other.cpu.stop()
        thread.join()
    assert other.cpu.stop_reason == "stop"


def test_a_bad_segment_state(guest) -> None:
    """V7: a state that the kernel or the hardware refuses at entry is an error that names it."""
    g = guest("hlt")
    g.cpu.sregs.update({"cr0": 0x80000001, "efer": 0x500, "cr4": 0})  # long mode without PAE
    with pytest.raises((kvmcpu.FailEntryError, kvmcpu.KvmError)) as caught:
        g.run()
    if isinstance(caught.value, kvmcpu.KvmError):
        assert "sregs" in str(caught.value)
        assert caught.value.errno == 22
    else:
        assert caught.value.exit.hardware_entry_failure_reason
    g.cpu.sregs.update({"cr0": 0x10, "efer": 0})
    g.run()
    assert g.cpu.exit.name == "HLT"


@pytest.mark.kvm(arch="x86_64")
def test_the_process_survives_without_a_handler() -> None:
    """V7: an error that nobody catches ends a script with a traceback that tells all."""
    script = """
        import kvmcpu
        from kvmcpu.loaders import x86_start
        with kvmcpu.Kvm() as kvm, kvm.create_vm() as vm:
            vm.add_memory(0, "1MiB")
            vm.write(0x100, bytes([0x0f, 0x0b]))
            cpu = vm.create_vcpu()
            x86_start.long(vm, cpu, 0x100, stack=0x1000, tables=0x10000)
            cpu.run()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "ShutdownError" in done.stderr
    assert "rip=" in done.stderr


# ---- the ring of last exits


def test_last_exits(guest) -> None:
    """V25: the last 64 exits are always there, as records."""
    g = guest(
        """
                xor cx, cx
                again: mov al, cl
                out 0x10, al
                in al, 0x11
                inc cx
                cmp cx, 100
                jne again
                hlt"""
    )
    g.vm.map_io(0x10, 2, lambda *_: 7)
    assert g.cpu.last_exits() == []
    g.run()
    records = g.cpu.last_exits()
    assert len(records) == 64
    assert records[-1].name == "HLT"
    assert records[-1].size == 0
    write, read = [r for r in records if r.name == "IO"][-2:]
    assert (write.name, write.address, write.size, write.data) == ("IO", 0x10, 1, 99)
    assert (read.name, read.address, read.size, read.data) == ("IO", 0x11, -1, 7)
    assert isinstance(write, tuple)
    name, address, size, data, latency, tick = write
    assert (name, address, size, data, latency) == ("IO", 0x10, 1, 99, 0)
    assert tick == write.tick
    ticks = [record.tick for record in records]
    assert ticks == sorted(ticks)


# ---- statistics (V14)


@pytest.mark.kvm(arch="x86_64")
def test_statistics_names() -> None:
    """V14: each has a name and a description."""
    with kvmcpu.Kvm() as kvm, kvm.create_vm() as vm:
        stats = vm.create_vcpu(cpuid=None).stats
        assert set(stats) >= {
            "insts",
            "cycles",
            "exits",
            "half_entries",
            "exit_signal",
            "mmio",
            "coalesced_mmio",
            "io",
            "halts",
            "interrupts",
            "hypercalls",
            "unassigned",
        }
        assert len(stats) == len(list(stats))
        for name in stats:
            assert name in stats
            assert len(stats.describe(name)) > 5
            assert stats[name] == 0 or stats[name] is None
        assert "nonsense" not in stats
        with pytest.raises(KeyError):
            stats["nonsense"]
        with pytest.raises(KeyError):
            stats.describe("nonsense")
        assert stats.get("nonsense") is None
        assert dict(stats) == dict(stats.items())
        assert stats == dict(stats)
        assert len(stats.keys()) == len(stats.values())


def test_statistics_count(guest) -> None:
    """V14: what is counted is what happened; a reset starts anew."""
    g = guest("out 0x10, al; in al, 0x10; mov es:[0], al; hlt")
    g.cpu.sregs.es.base = DEVICE
    g.vm.map_io(0x10, 1)
    g.vm.map_mmio(DEVICE, 1)
    g.run()
    stats = g.cpu.stats
    assert (stats["io"], stats["mmio"], stats["halts"]) == (2, 1, 1)
    assert stats["exits"] == 4 + stats["half_entries"] + stats["exit_signal"]
    assert stats["cycles"] > 0
    assert stats["ticks"] > 0
    assert g.vm.stats == stats
    stats.reset()
    assert (stats["io"], stats["exits"], stats["cycles"]) == (0, 0, 0)
    g.cpu.regs.rip = guests.ORIGIN
    g.cpu.activate()
    g.run()
    assert (stats["io"], stats["mmio"], stats["halts"]) == (2, 1, 1)


def test_half_entries_are_counted(guest) -> None:
    """V8, V14: a half entry delivers what is pending and is counted apart."""
    g = guest("in al, 0x10; hlt")
    g.cpu.enter()
    g.cpu.exit.data = b"\x42"
    assert g.cpu.enter(0) == g.cpu.clock_period
    assert g.cpu.stats["half_entries"] == 1
    assert g.cpu.stats["exits"] == 2
    assert g.cpu.regs.rax & 0xFF == 0x42
    assert g.cpu.regs.rip == guests.ORIGIN + 2


def test_gem5_dump(guest) -> None:
    """V14: a dump has gem5's names and lines, so that scripts for gem5's statistics read it."""
    g = guest("out 0x10, al; hlt", name="switch_cpus")
    g.vm.map_io(0x10, 1)
    g.run()
    text = g.cpu.stats.dump()
    assert "---------- Begin Simulation Statistics ----------" in text
    assert "---------- End Simulation Statistics   ----------" in text
    # As the scripts do it: name, value, and a comment behind a hash sign.
    values = {}
    for line in text.splitlines():
        match = re.match(r"(\S+)\s+(\S+)\s+.*#\s+(.+)", line)
        if match:
            values[match[1]] = match[2]
    assert {name.rpartition(".")[2] for name in values} >= GEM5_NAMES
    assert values["system.switch_cpus.numIO"] == "1"
    assert values["system.switch_cpus.numHalt"] == "1"
    assert int(values["system.switch_cpus.numVMExits"]) == g.cpu.stats["exits"]
    whole = g.vm.stats.dump()
    assert "system.switch_cpus.numIO" in whole
    assert "system.numIO" in whole


def test_insts_are_never_zero_passed_off(guest) -> None:
    """V9: without a counter the instructions of a free run are unknown, and say why."""
    g = guest("nop; nop; hlt")
    g.run()
    if g.cpu.insts_source is None:
        assert g.cpu.stats["insts"] is None
        assert g.cpu.counter_error
        assert "nan" in g.cpu.stats.dump()
    else:
        assert g.cpu.stats["insts"] == 3


def test_statistics_from_another_thread(user_guest) -> None:
    """V14: they can be read and reset at any time."""
    g = user_guest(f"mov rbx, {DEVICE:#x}; again: mov [rbx], al; jmp again")
    g.vm.map_mmio(DEVICE, 1)
    thread = threading.Thread(target=g.cpu.run)
    thread.start()
    try:
        for _ in range(5):
            while g.cpu.stats["mmio"] < 100:
                pass
            g.cpu.stats.reset()
            assert g.vm.stats["mmio"] < 100000
    finally:
        g.cpu.stop()
        thread.join()
