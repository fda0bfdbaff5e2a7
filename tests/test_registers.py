# SPDX-License-Identifier: MIT
"""Registers: every file read and written, when they are fetched, how they print (V12, V13, V22)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest

import kvmcpu
from kvmcpu import Cap

EFER = 0xC0000080
STAR = 0xC0000081
X86_REG_MSR = 0x2030_0002_0000_0000  # Linux, asm/kvm.h: KVM_X86_REG_MSR()

GENERAL = kvmcpu.Regs.fields[:16]


@pytest.fixture
def context_lines() -> Iterator[Callable[[], list[str]]]:
    """What the category KvmContext says: each time that registers are fetched or handed over."""
    lines: list[str] = []
    kvmcpu.set_trace_sink(lambda category, tick, cpu, message: lines.append(message))
    kvmcpu.set_debug_flags("KvmContext")

    def take() -> list[str]:
        taken = lines[:]
        lines.clear()
        return taken

    yield take
    kvmcpu.set_debug_flags()
    kvmcpu.set_trace_sink(None)


# ---- general registers


def test_general_registers_reach_the_guest(long_guest) -> None:
    """V13: each of the sixteen is written here and seen there, and the other way round."""
    stores = "; ".join(f"mov [{0x8000 + 8 * i:#x}], {name}" for i, name in enumerate(GENERAL))
    changes = "; ".join(f"add {name}, {i + 1}" for i, name in enumerate(GENERAL))
    g = long_guest(f"{stores}; {changes}; hlt")
    before = {name: 0x1111_0000_0000_0000 * (i % 7) + i for i, name in enumerate(GENERAL)}
    for name, value in before.items():
        setattr(g.cpu.regs, name, value)
        assert getattr(g.cpu.regs, name) == value
    g.run()
    assert list(memoryview(g.ram)[0x8000:0x8080].cast("Q")) == list(before.values())
    for i, name in enumerate(GENERAL):
        assert getattr(g.cpu.regs, name) == before[name] + i + 1
    assert g.cpu.regs.rip == 0x1000 + len(g.code)
    assert g.cpu.regs.rflags & 2


def test_field_values(cpu) -> None:
    """V13: a field takes what fits it, and nothing else."""
    regs = cpu.regs
    regs.rax = (1 << 64) - 1
    assert regs.rax == (1 << 64) - 1
    for wrong in (-1, 1 << 64, 1 << 100):
        with pytest.raises((ValueError, OverflowError)):
            regs.rax = wrong
    for wrong in (None, "1", 1.0, [1]):
        with pytest.raises(TypeError):
            regs.rax = wrong
    assert regs.rax == (1 << 64) - 1
    with pytest.raises(AttributeError):
        regs.eax = 1
    with pytest.raises(AttributeError):
        regs.eax  # noqa: B018
    with pytest.raises((AttributeError, TypeError)):
        del regs.rax
    with pytest.raises((ValueError, OverflowError)):
        cpu.sregs.cs.selector = 0x10000
    with pytest.raises((ValueError, OverflowError)):
        cpu.sregs.cs.present = 256


FILES = ("regs", "sregs", "fpu", "debugregs", "events", "xcrs")
CLASSES = {
    "regs": kvmcpu.Regs,
    "sregs": kvmcpu.Sregs,
    "fpu": kvmcpu.Fpu,
    "debugregs": kvmcpu.DebugRegs,
    "events": kvmcpu.VcpuEvents,
    "xcrs": kvmcpu.Xcrs,
}


@pytest.mark.parametrize("name", FILES)
def test_files_as_objects(cpu, name) -> None:
    """V13: fields, dict, copy, comparison and repr of each register file."""
    view = getattr(cpu, name)
    assert type(view) is CLASSES[name]
    assert isinstance(view, kvmcpu.RegisterFile)
    values = view.as_dict()
    assert set(values) <= set(type(view).fields)
    assert all(isinstance(value, int | dict) for value in values.values())
    duplicate = view.copy()
    assert type(duplicate) is type(view)
    assert duplicate == view
    assert view == values
    assert not view != values  # noqa: SIM202
    assert duplicate.as_dict() == values
    text = repr(view)
    assert text.startswith(type(view).__name__)
    for field, value in values.items():
        assert field in text
        if isinstance(value, int):
            assert getattr(view, field) == value
    assert set(type(view).fields) <= set(dir(view))
    assert view != 5
    assert view != {}
    with pytest.raises(TypeError):
        hash(view)
    # Written back as it is: nothing changes.
    setattr(cpu, name, duplicate)
    assert getattr(cpu, name) == duplicate
    with pytest.raises(TypeError):
        setattr(cpu, name, 5)
    with pytest.raises(TypeError):
        type(view)()


def test_a_view_follows_and_a_copy_does_not(guest) -> None:
    """V12: a view shows what the guest did since; a copy what was."""
    g = guest("mov ax, 0x1234; hlt")
    view, before = g.cpu.regs, g.cpu.regs.copy()
    g.run()
    assert view.rax == 0x1234
    assert before.rax != 0x1234
    assert view != before
    before.rax = 0x77
    assert before.rax == 0x77
    assert view.rax == 0x1234
    g.cpu.regs = before
    assert view.rax == 0x77
    g.cpu.regs = {"rax": 1, "rbx": 2}
    assert (view.rax, view.rbx) == (1, 2)


def test_update_is_all_or_nothing(cpu) -> None:
    cpu.regs.update({"rax": 1, "rbx": 2})
    for wrong in (
        {"rax": 5, "nonsense": 1},
        {"rax": 5, "rbx": -1},
        {"rax": 5, "rbx": "x"},
        {"rax": 5, 7: 1},
    ):
        with pytest.raises((AttributeError, ValueError, OverflowError, TypeError)):
            cpu.regs.update(wrong)
        assert (cpu.regs.rax, cpu.regs.rbx) == (1, 2)
    with pytest.raises(AttributeError, match="nonsense"):
        cpu.regs.update({"nonsense": 1})
    with pytest.raises(TypeError):
        cpu.regs.update(5)
    with pytest.raises(TypeError):
        cpu.regs.update(cpu.sregs)
    cpu.sregs.update({"cr2": 0x1000, "fs": {"base": 0x5000, "selector": 0x500}})
    assert (cpu.sregs.cr2, cpu.sregs.fs.base, cpu.sregs.fs.selector) == (0x1000, 0x5000, 0x500)
    with pytest.raises((AttributeError, ValueError, TypeError)):
        cpu.sregs.update({"cr2": 0x2000, "fs": {"base": 1, "bas": 2}})
    assert (cpu.sregs.cr2, cpu.sregs.fs.base) == (0x1000, 0x5000)


def test_copies_by_the_library(cpu) -> None:
    """A view cannot be pickled by accident: its dict can."""
    cpu.regs.rbx = 3
    assert pickle.loads(pickle.dumps(cpu.regs.as_dict()))["rbx"] == 3
    duplicate = copy.copy(cpu.regs.as_dict())
    assert duplicate == cpu.regs


# ---- special registers


def test_segments(guest) -> None:
    """V13: a segment's base and selector, one field at a time, as the guest sees them."""
    g = guest(
        """
                mov ax, fs
                mov [0x8000], ax
                mov eax, fs:[0]
                mov [0x8004], eax
                mov ax, 0x900
                mov gs, ax
                hlt"""
    )
    fs = g.cpu.sregs.fs
    assert isinstance(fs, kvmcpu.Segment)
    fs.base = 0x9000
    fs.selector = 0x123
    g.vm.write(0x9000, b"base")
    g.run()
    assert g.vm.read(0x8000, 8) == b"\x23\x01\0\0base"
    gs = g.cpu.sregs.gs
    assert (gs.selector, gs.base) == (0x900, 0x9000)
    assert set(gs.as_dict()) == set(kvmcpu.Segment.fields)
    assert "9000" in repr(gs)
    g.cpu.sregs.es = g.cpu.sregs.gs
    assert g.cpu.sregs.es == gs
    saved = gs.copy()
    gs.base = 0
    assert saved.base == 0x9000
    g.cpu.sregs.gs = saved
    assert g.cpu.sregs.gs.base == 0x9000


def test_tables_and_control_registers(guest) -> None:
    g = guest("mov eax, cr0; mov [0x8000], eax; sidt [0x8010]; lgdt [0x8020]; hlt")
    assert isinstance(g.cpu.sregs.gdt, kvmcpu.DTable)
    g.cpu.sregs.idt.update({"base": 0x1000 * 5, "limit": 0x3FF})
    g.vm.write(0x8020, b"\x37\x00\x00\x60\x00\x00")
    g.run()
    assert int.from_bytes(g.vm.read(0x8000, 4), "little") == g.cpu.sregs.cr0
    assert g.vm.read(0x8010, 6)[:5] == b"\xff\x03\x00\x50\x00"
    assert (g.cpu.sregs.gdt.base, g.cpu.sregs.gdt.limit) == (0x6000, 0x37)


def test_refused_special_registers(cpu) -> None:
    """V13: a state that the kernel refuses is an error that names it, at the latest on entry."""
    cpu.sregs.efer = 0x500
    cpu.sregs.cr0 = 0x80000000  # paging without protection
    with pytest.raises((kvmcpu.KvmError, kvmcpu.FailEntryError)) as caught:
        cpu.run()
    assert "sregs" in str(caught.value).lower()
    cpu.sregs.efer = 0
    cpu.sregs.cr0 = 0x10
    cpu.run()
    assert cpu.exit.name == "HLT"


# ---- floating point and vectors


def test_vector_registers(user_guest) -> None:
    """V13: a guest computes with what is written to xmm here, and the result is read back."""
    g = user_guest("""
        fld1
        fldpi
        paddd xmm1, xmm0
        movdqu [0x100000], xmm1
        movdqa xmm15, xmm0
        mov rbx, 0x20000000
        mov [rbx], al""")
    g.vm.map_mmio(0x20000000, 1, write=lambda *_: g.cpu.stop() and None)
    fpu = g.cpu.fpu
    fpu.fcw = 0x37F
    fpu.mxcsr = 0x1F80
    fpu.xmm0 = 0x00000001_00000002_00000003_00000004
    fpu.xmm1 = 0x10000000_20000000_30000000_40000000
    g.run()
    total = 0x10000001_20000002_30000003_40000004
    assert int.from_bytes(g.vm.read(0x100000, 16), "little") == total
    assert fpu.xmm1 == total
    assert fpu.xmm15 == fpu.xmm0
    assert fpu.st1 == 0x3FFF_8000_0000_0000_0000  # 1.0
    assert fpu.st0 == 0x4000_C90F_DAA2_2168_C235  # pi
    assert fpu.ftw == 0xC0
    with pytest.raises((ValueError, OverflowError)):
        fpu.xmm0 = 1 << 128
    with pytest.raises((ValueError, OverflowError)):
        fpu.st0 = 1 << 80
    with pytest.raises((ValueError, OverflowError)):
        fpu.fcw = 1 << 16


def test_avx_registers(user_guest) -> None:
    """V13: ymm in full, where the processor has it; else they say so."""
    g = user_guest("""
        vpaddq ymm2, ymm0, ymm1
        vmovdqu [0x100000], ymm2
        mov rbx, 0x20000000
        mov [rbx], al""")
    fpu = g.cpu.fpu
    try:
        fpu.ymm0  # noqa: B018
    except AttributeError:
        pytest.skip("this processor has no AVX")
    g.vm.map_mmio(0x20000000, 1, write=lambda *_: g.cpu.stop() and None)
    g.cpu.sregs.cr4 |= 1 << 18  # OSXSAVE
    g.cpu.xcrs.xcr0 = 7
    fpu.ymm0 = sum((i + 1) << 64 * i for i in range(4))
    fpu.ymm1 = sum((i + 1) << (64 * i + 32) for i in range(4))
    assert fpu.xmm1 == fpu.ymm1 & ((1 << 128) - 1)
    g.run()
    total = sum((i + 1) * (1 + (1 << 32)) << 64 * i for i in range(4))
    assert int.from_bytes(g.vm.read(0x100000, 32), "little") == total
    assert fpu.ymm2 == total
    assert fpu.ymm0 == sum((i + 1) << 64 * i for i in range(4))
    with pytest.raises((ValueError, OverflowError)):
        fpu.ymm0 = 1 << 256


def test_xsave_area(cpu) -> None:
    """V13: the whole area as bytes, of which the named registers are parts."""
    cpu.fpu.xmm3 = 0xABCD
    area = cpu.xsave
    assert isinstance(area, bytes)
    assert len(area) >= 4096
    assert area[160 + 48 : 160 + 64] == (0xABCD).to_bytes(16, "little")
    changed = bytearray(area)
    changed[160 + 48] = 0xEE
    cpu.xsave = bytes(changed)
    assert cpu.fpu.xmm3 == 0xABEE
    for wrong in (b"", area[:-1], area + b"\0"):
        with pytest.raises(ValueError):
            cpu.xsave = wrong
    with pytest.raises(TypeError):
        cpu.xsave = 5
    assert cpu.fpu.xmm3 == 0xABEE


# ---- debug registers, events, XCRs


def test_debug_registers(long_guest) -> None:
    g = long_guest("mov rax, dr0; mov rbx, dr3; mov rcx, 0x5678; mov dr1, rcx; hlt")
    g.cpu.debugregs.db0 = 0x1234
    g.cpu.debugregs.update({"db3": 0x4321})
    g.run()
    assert (g.cpu.regs.rax, g.cpu.regs.rbx) == (0x1234, 0x4321)
    assert g.cpu.debugregs.db1 == 0x5678
    assert g.cpu.debugregs.dr6 & 0xFFFF0FF0 == 0xFFFF0FF0


def test_events(guest) -> None:
    """V13, V17: a guest's shadow after sti, an NMI that waits, a vector for start-up."""
    g = guest("sti; hlt")
    events = g.cpu.events
    assert events.nmi_pending == 0
    events.nmi_masked = 1
    assert events.nmi_masked == 1
    g.cpu.nmi()
    g.cpu.enter(0)
    g.cpu.events.sipi_vector = 0x12
    assert g.cpu.events.exception_injected == 0
    assert set(events.as_dict()) == set(kvmcpu.VcpuEvents.fields)
    g.run()
    assert g.cpu.events.nmi_masked == 1


def test_an_event_that_is_put_in(guest) -> None:
    """V13: an interrupt written as being delivered is delivered."""
    g = guest("nop; hlt; handler: mov byte ptr [0x8000], 1; iret")
    handler = 0x1002
    g.vm.write(4 * 0x33, handler.to_bytes(4, "little"))
    g.cpu.events.update({"interrupt_injected": 1, "interrupt_nr": 0x33})
    g.run()
    assert g.ram[0x8000] == 1


def test_xcrs(kvm, user_guest) -> None:
    """V13: XCR0, written here, is what XGETBV reads there."""
    g = user_guest("xor ecx, ecx; xgetbv; mov rbx, 0x20000000; mov [rbx], al")
    g.vm.map_mmio(0x20000000, 1, write=lambda *_: g.cpu.stop() and None)
    assert g.cpu.xcrs.xcr0 & 1
    g.cpu.sregs.cr4 |= 1 << 18
    g.cpu.xcrs.xcr0 = 3
    assert g.cpu.xcrs.xcr0 == 3
    g.run()
    # Where ring 3 runs natively on a paravirtual backend, XGETBV reads the host's.
    assert g.cpu.regs.rax == 3 or kvm.backend == "pvm"


# ---- MSRs


def test_msrs_by_number_and_name(long_guest) -> None:
    """V13: read and written by number and by name, and what the guest does with them."""
    g = long_guest(
        """
                mov ecx, 0xc0000081
                rdmsr
                mov [0x8000], eax
                mov [0x8004], edx
                mov ecx, 0xc0000082
                mov eax, 0x1111
                mov edx, 0x2222
                wrmsr
                hlt"""
    )
    msrs = g.cpu.msrs
    msrs["STAR"] = 0x0018_0008_0000_1234
    assert msrs[STAR] == msrs["STAR"] == 0x0018_0008_0000_1234
    msrs[0x174] = 8
    assert msrs["SYSENTER_CS"] == 8
    assert msrs["EFER"] == msrs[EFER] == g.cpu.sregs.efer
    g.run()
    assert int.from_bytes(g.vm.read(0x8000, 8), "little") == 0x0018_0008_0000_1234
    assert msrs["LSTAR"] == 0x2222_0000_1111
    assert msrs.name(EFER) == "EFER"
    assert msrs.name(0x12345678) is None


def test_msrs_and_special_registers_agree(cpu) -> None:
    """V12: what is written one way is read the other way at once."""
    cpu.sregs.fs.base = 0x1230000
    assert cpu.msrs["FS_BASE"] == 0x1230000
    cpu.msrs["GS_BASE"] = 0x4560000
    assert cpu.sregs.gs.base == 0x4560000


def test_msr_listing(cpu, kvm) -> None:
    msrs = cpu.msrs
    assert list(msrs) == kvm.msr_index_list()
    assert len(msrs) == len(kvm.msr_index_list())
    everything = msrs.as_dict()
    assert everything["STAR"] == msrs["STAR"]
    assert len(everything) > 20
    for name in everything:
        assert not name.startswith(("IA32_", "MSR_"))
    text = repr(msrs)
    assert "STAR" in text


def test_msr_errors(cpu) -> None:
    """V13: an MSR that the kernel does not know, or a value that it refuses, is named."""
    with pytest.raises(KeyError, match="NONSENSE"):
        cpu.msrs["NONSENSE"]
    with pytest.raises(KeyError):
        cpu.msrs["NONSENSE"] = 1
    with pytest.raises(kvmcpu.KvmError, match="0x12345678"):
        cpu.msrs[0x12345678]
    with pytest.raises(kvmcpu.KvmError):
        cpu.msrs["EFER"] = 0xFFFF_FFFF_FFFF_FFFF
    for wrong in (-1, 1 << 32, None, 1.0):
        with pytest.raises((TypeError, ValueError, OverflowError, KeyError)):
            cpu.msrs[wrong]
    with pytest.raises((ValueError, OverflowError)):
        cpu.msrs["STAR"] = -1
    with pytest.raises(TypeError):
        cpu.msrs["STAR"] = "1"
    with pytest.raises(TypeError):
        del cpu.msrs["STAR"]


# ---- the rest


def test_cpuid(kvm, long_guest) -> None:
    """V13: the table can be read and replaced, until the guest ran; the guest sees it."""
    g = long_guest("mov eax, 0x40000100; cpuid; mov [0x8000], eax; mov [0x8004], ebx; hlt")
    table = g.cpu.cpuid
    assert all(len(entry) == 7 for entry in table)
    assert {entry[0] for entry in table} >= {0, 1}
    mine = [entry for entry in table if entry[0] != 0x40000100]
    mine.append((0x40000100, 0, 0, 0xAAAA5555, 0x12345678, 0, 0))
    g.cpu.cpuid = mine
    assert (0x40000100, 0, 0, 0xAAAA5555, 0x12345678, 0, 0) in [tuple(e) for e in g.cpu.cpuid]
    g.run()
    assert list(memoryview(g.ram)[0x8000:0x8008].cast("I")) == [0xAAAA5555, 0x12345678]
    with pytest.raises((kvmcpu.KvmError, kvmcpu.StateError), match="CPUID"):
        g.cpu.cpuid = table[:2]
    for wrong in (
        5,
        [1],
        [(1, 2)],
        [(0, 0, 0, 0, 0, 0, -1)],
        [(0, 0, 0, 0, 0, 0, 1 << 32)],
        ["abcdefg"],
    ):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            g.cpu.cpuid = wrong


def test_cpuid_at_creation(vm, kvm) -> None:
    none = vm.create_vcpu(cpuid=None)
    assert list(none.cpuid) == []
    few = vm.create_vcpu(cpuid=[(0, 0, 0, 1, 2, 3, 4)])
    assert [tuple(entry) for entry in few.cpuid] == [(0, 0, 0, 1, 2, 3, 4)]
    supported = {tuple(entry)[:2]: tuple(entry)[3:] for entry in kvm.supported_cpuid()}
    full = {tuple(entry)[:2] for entry in vm.create_vcpu(cpuid=kvm.supported_cpuid()).cpuid}
    assert full <= supported.keys()
    # Some kernels take away what is empty (seen: the leaves of AMX, where guests have none).
    assert not any(any(supported[leaf]) for leaf in supported.keys() - full)
    with pytest.raises((TypeError, ValueError)):
        vm.create_vcpu(cpuid="all")


def test_apic_id_follows_the_vcpu(vm) -> None:
    """V4: the supported table is given to each vCPU with its own id in it."""
    for i in range(3):
        cpu = vm.create_vcpu()
        (leaf,) = [entry for entry in cpu.cpuid if entry[0] == 1]
        assert leaf[4] >> 24 == cpu.id == i


def test_tsc_khz(cpu) -> None:
    khz = cpu.tsc_khz
    assert 100_000 < khz < 10_000_000
    cpu.tsc_khz = khz
    assert cpu.tsc_khz == khz
    for wrong in (-1, 1 << 40):
        with pytest.raises((ValueError, OverflowError)):
            cpu.tsc_khz = wrong
    with pytest.raises(TypeError):
        cpu.tsc_khz = "2GHz"


def test_mp_state(vm, cpu) -> None:
    """V13: the first vCPU is runnable; what needs the interrupt controller says so."""
    assert cpu.mp_state == 0
    cpu.mp_state = 0
    for wrong in (-1, 1 << 32):
        with pytest.raises((ValueError, OverflowError)):
            cpu.mp_state = wrong


def test_mp_state_with_the_irqchip(kvm) -> None:
    with kvm.create_vm() as vm:
        vm.create_irqchip()
        first, second = vm.create_vcpu(), vm.create_vcpu()
        assert (first.mp_state, second.mp_state) == (0, 1)  # the second waits for INIT
        second.mp_state = 0
        assert second.mp_state == 0


def test_lapic(kvm, cpu) -> None:
    """V13: the local APIC's page, where the kernel has one; else an error that says why."""
    with kvm.create_vm() as vm:
        vm.create_irqchip()
        one = vm.create_vcpu(3)
        page = one.lapic
        assert len(page) == 1024
        assert page[0x20:0x24] == b"\0\0\0\x03"  # the id, Intel SDM vol. 3, 11.4.6
        assert page[0x30] & 0xF0 == 0x10  # the version of one in a processor
        changed = bytearray(page)
        changed[0x80] = 0x20  # the task priority
        one.lapic = bytes(changed)
        assert one.lapic[0x80] == 0x20
        for wrong in (b"", page + page, page[1:]):
            with pytest.raises(ValueError):
                one.lapic = wrong
    with pytest.raises(kvmcpu.UnsupportedError, match="interrupt controller"):
        cpu.lapic  # noqa: B018


# ---- the one-register interface


def needs_one_reg(kvm: kvmcpu.Kvm) -> None:
    if not kvm.check_extension(Cap.ONE_REG):
        pytest.skip("this kernel has no one-register interface on x86: it came with Linux 6.18")


def test_one_reg(kvm, cpu) -> None:
    """V13: an MSR by its one-register id, read and written."""
    needs_one_reg(kvm)
    assert X86_REG_MSR | STAR in cpu.reg_list()
    cpu.set_one_reg(X86_REG_MSR | STAR, 0x1234_0000_0000)
    assert cpu.get_one_reg(X86_REG_MSR | STAR) == 0x1234_0000_0000 == cpu.msrs["STAR"]
    assert cpu.format_one_reg(X86_REG_MSR | STAR) == "0x123400000000"
    # What is written another way and not handed over yet is seen.
    cpu.sregs.fs.base = 0x7000
    assert cpu.get_one_reg(X86_REG_MSR | 0xC0000100) == 0x7000
    cpu.set_one_reg(X86_REG_MSR | 0xC0000100, 0x9000)
    assert cpu.sregs.fs.base == 0x9000
    cpu.set_one_reg(X86_REG_MSR | STAR, (5).to_bytes(8, "little"))
    assert cpu.get_one_reg(X86_REG_MSR | STAR) == 5


def test_one_reg_sizes(kvm, cpu) -> None:
    """V13: an id of another size than the register, of no size, and values that do not fit."""
    needs_one_reg(kvm)
    for wrong in (-1, 1 << 64):
        with pytest.raises(ValueError):
            cpu.set_one_reg(X86_REG_MSR | STAR, wrong)
    for wrong in (b"1234", b"123456789"):
        with pytest.raises(ValueError):
            cpu.set_one_reg(X86_REG_MSR | STAR, wrong)
    with pytest.raises(TypeError):
        cpu.set_one_reg(X86_REG_MSR | STAR, None)
    with pytest.raises(kvmcpu.KvmError):
        cpu.get_one_reg(0x2040_0002_0000_0000 | STAR)  # 128 bits: there is no such register
    # The sizes end at 2048 bits: 9 to 15 are none.
    assert cpu.format_one_reg(0x2090_0000_0000_0000) == "??"
    assert cpu.format_one_reg(0x20F0_0000_0000_0000) == "??"
    with pytest.raises(ValueError):
        cpu.get_one_reg(0x2090_0000_0000_0000)
    for wrong in (-1, 1 << 64):
        with pytest.raises((ValueError, OverflowError)):
            cpu.get_one_reg(wrong)
    with pytest.raises(TypeError):
        cpu.get_one_reg("EFER")


def test_one_reg_missing(kvm, cpu) -> None:
    """V13: where a kernel lacks the interface the error names it."""
    if kvm.check_extension(Cap.ONE_REG):
        with pytest.raises(kvmcpu.KvmError, match="KVM_GET_ONE_REG"):
            cpu.get_one_reg(0x2030_0003_0000_0000)
        return
    with pytest.raises(kvmcpu.UnsupportedError, match="KVM_GET_ONE_REG"):
        cpu.get_one_reg(X86_REG_MSR | STAR)
    with pytest.raises(kvmcpu.UnsupportedError, match="KVM_GET_REG_LIST"):
        cpu.reg_list()


# ---- when they are fetched (V12)


def test_pulled_only_if_the_guest_ran(guest, context_lines) -> None:
    """V12: the second read of a file costs nothing, the first after an entry fetches it."""
    g = guest("hlt; hlt")
    g.cpu.sregs.cr0, g.cpu.debugregs.dr7  # noqa: B018
    context_lines()
    for _ in range(3):
        g.cpu.sregs.cr0, g.cpu.debugregs.dr7, g.cpu.xcrs.xcr0, g.cpu.xcrs.xcr0  # noqa: B018
    lines = context_lines()
    assert len([line for line in lines if "debugregs" in line]) == 0
    assert len([line for line in lines if "xcrs" in line]) == 1
    g.run()
    context_lines()
    g.cpu.debugregs.dr7  # noqa: B018
    lines = context_lines()
    assert len([line for line in lines if "debugregs" in line]) == 1
    g.cpu.debugregs.dr6  # noqa: B018
    assert context_lines() == []


def test_pushed_only_if_written(guest, context_lines) -> None:
    """V12: entering hands over what was written, and nothing when nothing was."""
    g = guest("again: out 0x10, al; jmp again")
    stops: list[int] = []
    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.stop() and None)
    g.run()
    context_lines()
    g.run()
    assert context_lines() == []
    g.cpu.regs.rbx = 5
    g.cpu.debugregs.db0 = 0x77
    context_lines()
    g.run()
    lines = context_lines()
    assert any("debugregs" in line for line in lines)
    assert not any("xcrs" in line or "xsave" in line for line in lines)
    assert g.cpu.regs.rbx == 5
    assert g.cpu.debugregs.db0 == 0x77
    assert not stops


def test_general_registers_come_with_the_exit(guest, context_lines) -> None:
    """V12: on a kernel with synchronised registers, reading them needs no call of the kernel."""
    if not g_has_sync(guest):
        pytest.skip("this kernel has no synchronised registers")
    g = guest("mov bx, 0x42; hlt")
    g.run()
    context_lines()
    assert g.cpu.regs.rbx == 0x42
    assert g.cpu.regs.rip
    assert context_lines() == []


def g_has_sync(guest) -> bool:
    return guest("hlt").vm.check_extension(Cap.SYNC_REGS) > 0


def test_both_ways_of_one_register(guest) -> None:
    """V12: what is written here before an entry is not lost, nor what the guest wrote after it."""
    g = guest("again: inc bx; out 0x10, al; jmp again")
    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.stop() and None)
    for i in range(100):
        g.cpu.regs.rbx = i * 7
        g.run()
        assert g.cpu.regs.rbx == i * 7 + 1
        g.cpu.sregs.fs.base = i
        g.cpu.fpu.xmm7 = i
        g.run()
        assert (g.cpu.regs.rbx, g.cpu.sregs.fs.base, g.cpu.fpu.xmm7) == (i * 7 + 2, i, i)


# ---- V22


def test_dump_has_everything(kvm, cpu) -> None:
    """V22: a dump holds every register of every file, the MSRs and the state, and is text."""
    cpu.regs.r11 = 0x1122334455667788
    cpu.fpu.xmm9 = 0xDEADBEEF
    cpu.msrs["STAR"] = 0x55550000
    text = cpu.dump()
    assert cpu.name in text
    assert cpu.status in text
    assert "1122334455667788" in text
    assert "deadbeef" in text.lower()
    for name in FILES:
        view = getattr(cpu, name)
        for field in view.as_dict():
            assert field in text, f"{name}.{field} is not in the dump"
    for name in ("STAR", "SYSENTER_CS", "TSC"):
        assert name in text
    for index in kvm.msr_index_list():
        name = cpu.msrs.name(index)
        try:
            cpu.msrs[index]
        except kvmcpu.KvmError:
            continue
        assert (name or f"{index:#x}") in text
    assert "mp_state" in text
    assert all(len(line) < 200 for line in text.splitlines())
    assert cpu.dump() == text or "TSC" in text


def test_dump_with_the_irqchip(kvm) -> None:
    with kvm.create_vm() as vm:
        vm.create_irqchip()
        assert "lapic" in vm.create_vcpu().dump()
