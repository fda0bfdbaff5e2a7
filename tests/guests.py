# SPDX-License-Identifier: MIT
"""Guests for the tests: assembled with binutils, started on a real vCPU.

    code = assemble("mov al, 'A'; out 0xe9, al; hlt", bits=16, origin=ORIGIN)

Sources are in Intel syntax without prefixes unless they say ``.att_syntax``. Where the parts of
a guest lie in its memory is the same for all of them:

    ORIGIN        0x01000   the code, up to TABLES; the stack of real mode grows down from here
    TABLES        0x20000   descriptor and page tables of long mode
    IDT           0x3f000   interrupt descriptor table, if there are handlers
    HANDLERS      0x40000   handler of vector n at HANDLERS + n * HANDLER_SIZE
    STACK         0x90000   the stack of long mode grows down from here
    KERNEL_STACK  0xa0000   the stack of a ring-3 guest's handlers
    MMIO       0x10000000   no memory unless a test asks for as much: free for devices
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import kvmcpu
from kvmcpu.loaders import x86_start

ORIGIN = 0x1000
TABLES = 0x20000
IDT = 0x3F000
HANDLERS = 0x40000
HANDLER_SIZE = 0x400
STACK = 0x90000
KERNEL_STACK = 0xA0000
MMIO = 0x1000_0000

EMULATED = os.uname().nodename.startswith("lab-")  # this is a lab: the processor itself is emulated


def sized(count: int) -> int:
    """How often a test repeats what a slow processor shows as well with an eighth of it."""
    return count // 8 if EMULATED else count


# Everything in one piece, so that a flat binary holds its data and its zeros too.
FLAT_SCRIPT = """
SECTIONS {
    . = %#x;
    .text : { *(.text*) *(.rodata*) *(.data*) *(.bss*) *(COMMON) }
    /DISCARD/ : { *(.note*) *(.comment*) *(.eh_frame*) }
}
"""


def _tool(*command: str | Path, stdin: str = "") -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed:\n{done.stderr}\n{stdin}")
    return done.stdout


def _link(source: str, bits: int, directory: Path, *options: str | Path) -> Path:
    if bits not in (16, 32, 64):
        raise ValueError(f"bits is 16, 32 or 64, not {bits}")
    assembled, linked = directory / "guest.o", directory / "guest"
    text = f".intel_syntax noprefix\n.code{bits}\n{source}\n"
    _tool("as", "--64" if bits == 64 else "--32", "-o", assembled, "-", stdin=text)
    emulation = "elf_x86_64" if bits == 64 else "elf_i386"
    _tool("ld", "-m", emulation, "-z", "noexecstack", "-o", linked, *options, assembled)
    return linked


@cache
def assemble(source: str, *, bits: int = 16, origin: int = ORIGIN) -> bytes:
    """The machine code of a source that is to lie at ``origin``, data and zeros included."""
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "flat.ld"
        script.write_text(FLAT_SCRIPT % origin)
        options = ("-T", script, "-e", "0", "--oformat", "binary")
        return _link(source, bits, Path(name), *options).read_bytes()


@cache
def symbols(source: str, *, bits: int = 16, origin: int = ORIGIN) -> Mapping[str, int]:
    """The addresses of the labels of a source, as ``assemble()`` places them."""
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "flat.ld"
        script.write_text(FLAT_SCRIPT % origin)
        lines = _tool("nm", _link(source, bits, Path(name), "-T", script, "-e", "0")).splitlines()
    return {words[2]: int(words[0], 16) for words in (line.split() for line in lines)}


@cache
def link_elf(
    source: str,
    *,
    bits: int = 64,
    origin: int = 0x100000,
    entry: str = "_start",
    script: str | None = None,
    options: tuple[str, ...] = (),
) -> bytes:
    """An ELF executable. script: a linker script in place of the text at ``origin``."""
    with tempfile.TemporaryDirectory() as name:
        place: tuple[str | Path, ...] = (f"-Ttext={origin:#x}",)
        if script is not None:
            path = Path(name) / "script.ld"
            path.write_text(script)
            place = ("-T", path)
        return _link(source, bits, Path(name), "-e", entry, *place, *options).read_bytes()


@dataclass
class Guest:
    """A VM with memory at 0 and a vCPU that is about to run the code."""

    vm: kvmcpu.VM
    ram: kvmcpu.Memory
    cpu: kvmcpu.Vcpu
    code: bytes
    out: list[int] = field(default_factory=list)

    def collect(self, port: int = 0xE9) -> list[int]:
        """Have what the guest writes to a port appended to ``out``, value by value."""
        self.vm.map_io(port, 1, write=lambda offset, size, value: self.out.append(value))
        return self.out

    def run(self, ticks: int | str | None = None) -> int:
        return self.cpu.run(ticks)


def _new(
    kvm: kvmcpu.Kvm, code: str | bytes, bits: int, memory: int | str, irqchip: bool, **vcpu: Any
) -> Guest:
    vm = kvm.create_vm()
    try:
        ram = vm.add_memory(0, memory)
        if irqchip:
            vm.create_irqchip()
        binary = assemble(code, bits=bits) if isinstance(code, str) else code
        if ORIGIN + len(binary) > TABLES:
            raise ValueError(f"the code has {len(binary)} bytes, and there is room for 124 KiB")
        ram[ORIGIN : ORIGIN + len(binary)] = binary
        return Guest(vm, ram, vm.create_vcpu(**vcpu), binary)
    except BaseException:
        vm.close()
        raise


def real_guest(
    kvm: kvmcpu.Kvm,
    code: str | bytes,
    *,
    memory: int | str = "1MiB",
    irqchip: bool = False,
    **vcpu: Any,
) -> Guest:
    """A guest in real mode, at ORIGIN, all segments 0. Interrupts and exceptions work."""
    guest = _new(kvm, code, 16, memory, irqchip, **vcpu)
    x86_start.real(guest.cpu, ORIGIN, stack=ORIGIN)
    return guest


def long_guest(
    kvm: kvmcpu.Kvm,
    code: str | bytes,
    *,
    user: bool = False,
    handlers: Mapping[int, str | bytes] | None = None,
    memory: int | str = "2MiB",
    irqchip: bool = False,
    **vcpu: Any,
) -> Guest:
    """A guest in 64-bit mode, at ring 0, or at ring 3 with ``user=True``; first 4 GiB mapped.

    handlers: 64-bit code for vectors, run at ring 0. They bring an interrupt descriptor table
    and a task state segment along, without which a fault ends in a triple fault. At ring 3, port
    I/O works without handlers; with them some hosts refuse it: use MMIO then (kvm-hosts).
    """
    guest = _new(kvm, code, 64, memory, irqchip, **vcpu)
    for vector, source in (handlers or {}).items():
        address = HANDLERS + vector * HANDLER_SIZE
        binary = assemble(source, bits=64, origin=address) if isinstance(source, str) else source
        if len(binary) > HANDLER_SIZE:
            raise ValueError(f"the handler of vector {vector} is longer than {HANDLER_SIZE} bytes")
        guest.ram[address : address + len(binary)] = binary
        x86_start.write_gate(guest.vm, IDT, vector, address, dpl=3)
    x86_start.long(
        guest.vm,
        guest.cpu,
        ORIGIN,
        stack=STACK,
        tables=TABLES,
        user=user,
        kernel_stack=KERNEL_STACK if handlers else None,
        idt=IDT if handlers else None,
    )
    return guest
