# SPDX-License-Identifier: MIT
"""The states in which an x86 guest is started: real, protected and long mode.

Protected and long mode need tables in guest memory. These functions write them to an address
that the caller chooses, ``tables_size()`` bytes of it, and set the vCPU's registers. The global
descriptor table is the same everywhere, so that a guest can rely on the selectors below. They
are in the order that SYSCALL and SYSRET want (Intel SDM vol. 2, SYSRET): STAR = 0x0018_0008 << 32.
Unless it is given one, the guest has no interrupt descriptor table: an exception is a triple
fault, which ends the run with ShutdownError and the registers.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmcpu._kvm import VM, Segment, Vcpu

CODE64 = 0x08
DATA = 0x10
CODE32 = 0x18
USER_DATA = 0x20 | 3
USER_CODE64 = 0x28 | 3
TSS = 0x30

PAGE = 0x1000
LARGE_PAGE = 2 << 20
GIB = 1 << 30

_GDT_ENTRIES = TSS // 8 + 2  # a 64-bit TSS descriptor takes two
_TSS_OFFSET = 0x100  # in the page of the GDT
_TSS_SIZE = 104  # Intel SDM vol. 3, 8.7

# Type fields of segment descriptors (Intel SDM vol. 3, tables 3-1 and 3-2), as accessed.
_TYPE_DATA = 3
_TYPE_CODE = 11
_TYPE_TSS_BUSY = 11

# Bits of a page table entry (Intel SDM vol. 3, 4.5.4).
_PRESENT, _WRITABLE, _USER, _LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7

# Control registers and EFER (Intel SDM vol. 3, 2.5 and 2.2.1).
_CR0_PE, _CR0_MP, _CR0_ET, _CR0_NE, _CR0_WP, _CR0_PG = 1, 1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 31
_CR4_PAE, _CR4_OSFXSR, _CR4_OSXMMEXCPT = 1 << 5, 1 << 9, 1 << 10
_EFER_SCE, _EFER_LME, _EFER_LMA = 1, 1 << 8, 1 << 10

RFLAGS = 1 << 1  # always set
RFLAGS_IOPL3 = 3 << 12


def _descriptor(kind: int, *, dpl: int = 0, long: bool = False) -> int:
    """A flat 4 GiB code or data descriptor (Intel SDM vol. 3, figure 3-8)."""
    access = 0x90 | dpl << 5 | kind
    flags = 0xA if long else 0xC  # granularity, and L or D/B
    return 0xFFFF | access << 40 | 0xF << 48 | flags << 52


def _tss_descriptor(base: int) -> tuple[int, int]:
    low = (_TSS_SIZE - 1) | (base & 0xFFFFFF) << 16 | (0x80 | _TYPE_TSS_BUSY) << 40
    return low | (base >> 24 & 0xFF) << 56, base >> 32


def _write_gdt(vm: VM, address: int) -> None:
    entries = [0] * _GDT_ENTRIES
    entries[CODE64 >> 3] = _descriptor(_TYPE_CODE, long=True)
    entries[DATA >> 3] = _descriptor(_TYPE_DATA)
    entries[CODE32 >> 3] = _descriptor(_TYPE_CODE)
    entries[USER_DATA >> 3] = _descriptor(_TYPE_DATA, dpl=3)
    entries[USER_CODE64 >> 3] = _descriptor(_TYPE_CODE, dpl=3, long=True)
    entries[TSS >> 3], entries[(TSS >> 3) + 1] = _tss_descriptor(address + _TSS_OFFSET)
    vm.write(address, struct.pack(f"<{_GDT_ENTRIES}Q", *entries))


def _set_flat(segment: Segment, selector: int, kind: int, *, dpl: int = 0, long: int = 0) -> None:
    segment.update(
        {
            "base": 0,
            "limit": 0xFFFFFFFF,
            "selector": selector,
            "type": kind,
            "present": 1,
            "dpl": dpl,
            "db": 0 if long else 1,
            "s": 1,
            "l": long,
            "g": 1,
            "avl": 0,
            "unusable": 0,
        }
    )


def tables_size(mode: str, mapped: int = 4 * GIB) -> int:
    """How many bytes of guest memory the tables of a mode take; ``mapped`` as for ``long()``."""
    if mode == "long":
        return PAGE * (3 + -(-mapped // GIB))
    return PAGE if mode == "protected" else 0


def identity_page_tables(vm: VM, address: int, mapped: int, *, user: bool = False) -> None:
    """Page tables that map the first ``mapped`` bytes, rounded up to GiB, to themselves.

    Pages of 2 MiB, which every processor has. user: ring 3 may use them too. The top table is
    at address; all of them take ``PAGE * (2 + GiB)`` bytes.
    """
    directories = -(-mapped // GIB)
    if not 0 < directories <= 512:
        raise ValueError(f"{mapped:#x} bytes cannot be mapped: 1 byte to 512 GiB can")
    flags = _PRESENT | _WRITABLE | (_USER if user else 0)
    pointers, first = address + PAGE, address + 2 * PAGE
    vm.write(address, struct.pack("<512Q", pointers | flags, *[0] * 511))
    entries = [(first + i * PAGE) | flags for i in range(directories)]
    vm.write(pointers, struct.pack("<512Q", *entries, *[0] * (512 - directories)))
    pages = range(0, directories * GIB, LARGE_PAGE)
    vm.write(first, struct.pack(f"<{len(pages)}Q", *(page | flags | _LARGE for page in pages)))


def write_gate(vm: VM, idt: int, vector: int, handler: int, *, dpl: int = 0) -> None:
    """An interrupt gate of a 64-bit interrupt descriptor table (Intel SDM vol. 3, figure 6-8)."""
    low = (handler & 0xFFFF) | CODE64 << 16 | (0x8E | dpl << 5) << 40
    low |= (handler >> 16 & 0xFFFF) << 48
    vm.write(idt + 16 * vector, struct.pack("<QQ", low, handler >> 32))


def real(cpu: Vcpu, entry: int, *, stack: int) -> None:
    """Start in real mode at a linear address; all data segments are at 0.

    Below 64 KiB CS is 0 and IP the address, above CS carries what IP cannot. stack is SP, in
    segment 0: 0x10000 for a stack that begins at the end of the segment.
    """
    if not 0 <= entry < 1 << 20:
        raise ValueError(f"real mode reaches the first MiB, and the entry point is {entry:#x}")
    base = 0 if entry <= 0xFFFF else entry & ~0xF
    sregs = cpu.sregs
    sregs.cs.update({"base": base, "selector": base >> 4})
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        segment.update({"base": 0, "selector": 0})
    cpu.regs.update({"rip": entry - base, "rsp": stack & 0xFFFF, "rflags": RFLAGS})


def protected(vm: VM, cpu: Vcpu, entry: int, *, stack: int, tables: int) -> None:
    """Start in 32-bit protected mode, flat segments, paging off, SSE on."""
    if not 0 <= entry < 1 << 32:
        raise ValueError(f"protected mode reaches 4 GiB, and the entry point is {entry:#x}")
    _write_gdt(vm, tables)
    sregs = cpu.sregs
    _set_flat(sregs.cs, CODE32, _TYPE_CODE)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        _set_flat(segment, DATA, _TYPE_DATA)
    sregs.gdt.update({"base": tables, "limit": 8 * _GDT_ENTRIES - 1})
    sregs.idt.update({"base": 0, "limit": 0})
    sregs.update(
        {
            "cr0": _CR0_PE | _CR0_MP | _CR0_ET | _CR0_NE,
            "cr4": _CR4_OSFXSR | _CR4_OSXMMEXCPT,
            "efer": 0,
        }
    )
    cpu.regs.update({"rip": entry, "rsp": stack, "rflags": RFLAGS})


def long(
    vm: VM,
    cpu: Vcpu,
    entry: int,
    *,
    stack: int,
    tables: int,
    mapped: int = 4 * GIB,
    user: bool = False,
    kernel_stack: int | None = None,
    idt: int | None = None,
) -> None:
    """Start in 64-bit mode, the first ``mapped`` bytes mapped to themselves, SSE on.

    user: at ring 3, which may use every page and, as IOPL is 3, every port. kernel_stack: load
    a task state segment whose stack for ring 0 this is; exceptions at ring 3 need one. idt: the
    address of an interrupt descriptor table of 256 gates (``write_gate()``).
    """
    dpl = 3 if user else 0
    _write_gdt(vm, tables)
    identity_page_tables(vm, tables + PAGE, mapped, user=user)
    sregs = cpu.sregs
    _set_flat(sregs.cs, USER_CODE64 if user else CODE64, _TYPE_CODE, dpl=dpl, long=1)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        _set_flat(segment, USER_DATA if user else DATA, _TYPE_DATA, dpl=dpl)
    if kernel_stack is not None:
        tss = tables + _TSS_OFFSET
        # RSP0 at 4; the I/O permission map's offset, at 102, lies outside: there is none.
        vm.write(tss, struct.pack("<IQ90xH", 0, kernel_stack, _TSS_SIZE))
        sregs.tr.update(
            {
                "base": tss,
                "limit": _TSS_SIZE - 1,
                "selector": TSS,
                "type": _TYPE_TSS_BUSY,
                "present": 1,
                "dpl": 0,
                "s": 0,
                "g": 0,
                "unusable": 0,
            }
        )
    sregs.gdt.update({"base": tables, "limit": 8 * _GDT_ENTRIES - 1})
    sregs.idt.update({"base": idt or 0, "limit": 0 if idt is None else 16 * 256 - 1})
    sregs.update(
        {
            "cr0": _CR0_PE | _CR0_MP | _CR0_ET | _CR0_NE | _CR0_WP | _CR0_PG,
            "cr3": tables + PAGE,
            "cr4": _CR4_PAE | _CR4_OSFXSR | _CR4_OSXMMEXCPT,
            "efer": _EFER_SCE | _EFER_LME | _EFER_LMA,
        }
    )
    flags = RFLAGS | (RFLAGS_IOPL3 if user else 0)
    cpu.regs.update({"rip": entry, "rsp": stack, "rflags": flags})
