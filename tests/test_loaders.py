# SPDX-License-Identifier: MIT
"""Images into memory, and the states that guests start in."""

from __future__ import annotations

import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import guests
import pytest

import kvmcpu
from kvmcpu import devices, loaders
from kvmcpu.loaders import base, x86_start
from kvmcpu.ram import add_ram

SEABIOS = Path("/usr/share/seabios/bios.bin")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def load(vm: kvmcpu.VM, image: loaders.Loader, *arguments: str) -> kvmcpu.Vcpu:
    """Load an image, start a CPU of it, and run it until it halts."""
    start = image.load(vm)
    cpu = vm.create_vcpu()
    start.begin(vm, cpu, arguments)
    return cpu


# ---------------------------------------------------------------------------- telling files apart


def test_open_image_tells_the_kind(tmp_path: Path) -> None:
    elf = write(tmp_path / "a", guests.link_elf(".globl _start\n_start: hlt"))
    assert isinstance(loaders.open_image(elf), loaders.ElfImage)
    flat = write(tmp_path / "b", b"\xf4")
    assert isinstance(loaders.open_image(flat), loaders.FlatImage)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\necho hello\n", "text"),
        (b"Hello there, this is a text.\n", "text"),
        (b"\x1f\x8b\x08" + bytes(64), "gzip"),
        (bytes(0x202) + b"HdrS" + bytes(64), "Linux kernel"),
        (b"\x7fELF", "broken"),
        (b"\x7fELF" + b"\xff" * 300, "ELF file"),
        (b"\x7fELF\x02\x01\x01" + bytes(100), "ELF file"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, data: bytes, says: str) -> None:
    path = write(tmp_path / "file", data)
    with pytest.raises(loaders.LoadError, match=says) as caught:
        loaders.open_image(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_text_is_a_flat_binary_if_one_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "file", b"just text")
    assert isinstance(loaders.open_image(path, mode="real"), loaders.FlatImage)
    assert isinstance(loaders.open_image(path, address=0x7C00), loaders.FlatImage)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(loaders.LoadError, match=r"cannot read .*gone: No such file"):
        loaders.open_image(tmp_path / "gone")
    with pytest.raises(loaders.LoadError, match="not a regular file"):
        loaders.open_image(tmp_path)
    with pytest.raises(loaders.LoadError, match="not a regular file"):
        loaders.open_image("/dev/null")


def test_an_elf_has_its_own_mode_and_address(tmp_path: Path) -> None:
    path = write(tmp_path / "a", guests.link_elf(".globl _start\n_start: hlt"))
    with pytest.raises(loaders.LoadError, match="says itself"):
        loaders.open_image(path, mode="real")


@pytest.mark.parametrize("package", [devices, loaders])
def test_packages_show_what_they_import_later(package) -> None:
    shown = dir(package)
    assert set(package.__all__) <= set(shown)
    assert all(
        getattr(package, name).__name__ == name for name in package.__all__ if name[0].isupper()
    )
    # Also before anybody asked for one of them.
    code = f"import {package.__name__} as p; print(*(set(p.__all__) - set(dir(p))))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        package.Nothing  # noqa: B018


# ---------------------------------------------------------------------------- ELF files

ELF = guests.link_elf(".globl _start\n_start: hlt")
E_TYPE, E_MACHINE, E_ENTRY, E_PHOFF = 16, 18, 24, 32  # in the 64-bit header
P_OFFSET, P_PADDR, P_FILESZ, P_MEMSZ = 8, 24, 32, 40  # in the 64-bit program header


def patched(offset: int, code: str, value: int) -> bytes:
    data = bytearray(ELF)
    struct.pack_into(code, data, offset, value)
    return bytes(data)


def header(data: bytes, index: int) -> int:
    """Where a program header is."""
    return int(struct.unpack_from("<Q", data, E_PHOFF)[0]) + 56 * index


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (patched(E_MACHINE, "<H", 183), r"another architecture \(AARCH64, 64-bit\)"),
        (patched(E_MACHINE, "<H", 243), r"another architecture \(RISCV, 64-bit\)"),
        (patched(E_MACHINE, "<H", 3), r"another architecture \(386, 64-bit\)"),
        (patched(E_MACHINE, "<H", 60000), "another architecture"),
        (patched(E_TYPE, "<H", 1), "object file"),
        (patched(E_TYPE, "<H", 3), "position-independent"),
        (patched(E_TYPE, "<H", 4), "core dump"),
        (patched(E_TYPE, "<H", 77), "unknown type"),
        (patched(E_ENTRY, "<Q", 0xDEAD0000), "entry point 0xdead0000 lies in none"),
        (patched(header(ELF, 0) + P_FILESZ, "<Q", 1 << 40), "broken|cut short"),
        (patched(header(ELF, 0) + P_MEMSZ, "<Q", 1), "larger in the file"),
        (patched(E_PHOFF, "<Q", 1 << 60), "broken|ELF file"),
        (ELF[:100], "broken|cut short"),
    ],
)
def test_elf_files_that_cannot_run(data: bytes, says: str) -> None:
    with pytest.raises(loaders.LoadError, match=says):
        loaders.ElfImage(data)


def test_elf_without_anything_to_load() -> None:
    data = bytearray(ELF)
    struct.pack_into("<H", data, 56, 0)  # e_phnum
    with pytest.raises(loaders.LoadError, match="nothing to load"):
        loaders.ElfImage(bytes(data))


def test_elf_with_overlapping_segments() -> None:
    script = """PHDRS { a PT_LOAD; b PT_LOAD; }
        SECTIONS {
            .text 0x100000 : AT(0x100000) { *(.text) } :a
            .data 0x200000 : AT(0x100800) { *(.data) } :b
        }"""
    source = ".globl _start\n_start: hlt; .skip 0x1000\n.data\n.skip 0x10"
    data = guests.link_elf(source, script=script, options=("--no-check-sections",))
    with pytest.raises(loaders.LoadError, match=r"overlap: 0x100000 to .* and 0x100800"):
        loaders.ElfImage(data)


def test_any_cut_or_flipped_elf_loads_or_says_why() -> None:
    for end in range(0, len(ELF), 7):
        with suppress(loaders.LoadError):
            loaders.ElfImage(ELF[:end])
    for position in range(200):
        for bits in (0x01, 0x80, 0xFF):
            data = bytearray(ELF)
            data[position] ^= bits
            with suppress(loaders.LoadError):
                loaders.ElfImage(bytes(data))


def test_elf_that_needs_more_memory(vm: kvmcpu.VM) -> None:
    vm.add_memory(0, "64KiB")
    with pytest.raises(loaders.LoadError, match=r"needs memory at 0x[0-9a-f]+ .*0x0 to 0xffff"):
        loaders.ElfImage(ELF).load(vm)


def test_elf_with_a_bss_beyond_memory(vm: kvmcpu.VM) -> None:
    vm.add_memory(0, "2MiB")
    data = guests.link_elf(".globl _start\n_start: hlt\n.bss\n.skip 0x200000")
    with pytest.raises(loaders.LoadError, match="needs memory"):
        loaders.ElfImage(data).load(vm)


SUM = """
    .globl _start
_start:
    mov eax, [table]
    add eax, [table + 4]
    mov ebx, [zero]
    push {r}ax
    pop {r}cx
    hlt
    .data
table: .long 40, 2
    .bss
    .skip 0x3000
zero: .long 0
    .skip 0x3000
"""


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize("bits", [32, 64])
def test_elf_runs(vm: kvmcpu.VM, bits: int) -> None:
    ram = vm.add_memory(0, "4MiB")
    ram[0x100000:0x200000] = b"\xcc" * 0x100000  # a BSS has to be made zero
    source = SUM.format(r="r" if bits == 64 else "e")
    cpu = load(vm, loaders.ElfImage(guests.link_elf(source, bits=bits)))
    cpu.run()
    assert cpu.stop_reason == "idle"
    assert cpu.regs.rcx == 42
    assert cpu.regs.rbx == 0
    assert cpu.regs.rdi == 0
    assert cpu.sregs.cs.l == (bits == 64)
    assert cpu.regs.rsp % 16 == 0


@pytest.mark.kvm(arch="x86_64")
def test_elf_linked_high_loads_low(vm: kvmcpu.VM) -> None:
    # As kernels are: virtual addresses in the upper half, physical ones at 2 MiB.
    vm.add_memory(0, "4MiB")
    script = """SECTIONS {
        . = 0xffffffff80200000;
        .text : AT(0x200000) { *(.text) }
    }"""
    source = ".globl _start\n_start: lea rax, [rip]; here: hlt"
    image = loaders.ElfImage(guests.link_elf(source, script=script))
    assert image.entry == 0x200000
    cpu = load(vm, image)
    cpu.run()
    assert cpu.regs.rax == 0x200007


@pytest.mark.kvm(arch="x86_64")
def test_elf_gets_its_arguments(vm: kvmcpu.VM) -> None:
    ram = vm.add_memory(0, "4MiB")
    cpu = load(vm, loaders.ElfImage(ELF), "-v", "näme")
    address = cpu.regs.rdi
    assert bytes(ram[address : address + 9]) == b"-v n\xc3\xa4me\0"


def test_arguments_that_do_not_fit(vm: kvmcpu.VM) -> None:
    vm.add_memory(0, "4MiB")
    cpu = vm.create_vcpu()
    start = loaders.ElfImage(ELF).load(vm)
    with pytest.raises(loaders.LoadError, match="room for 2816"):
        start.begin(vm, cpu, ["x" * 5000])
    start = loaders.FlatImage(b"\xf4" * 0x1000, address=0x200).load(vm)
    with pytest.raises(loaders.LoadError, match="where the image lies"):
        start.begin(vm, cpu, ["x"])


# ---------------------------------------------------------------------------- flat binaries


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize("address", [0x1000, 0x7C00, 0xFFF0, 0x12340, 0x80000])
def test_flat_in_real_mode(vm: kvmcpu.VM, address: int) -> None:
    vm.add_memory(0, "1MiB")
    code = guests.assemble("push 7; pop bx; call 1f; 1: pop cx; hlt", bits=16, origin=address & 15)
    cpu = load(vm, loaders.FlatImage(code, address=address))
    cpu.run()
    assert cpu.regs.rbx == 7
    assert cpu.sregs.cs.base + cpu.regs.rcx == address + 6
    assert cpu.sregs.cs.base == cpu.sregs.cs.selector * 16


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize(("mode", "bits"), [("protected", 32), ("long", 64)])
def test_flat_in_other_modes(vm: kvmcpu.VM, mode, bits: int) -> None:
    vm.add_memory(0, "4MiB")
    r = "r" if bits == 64 else "e"
    code = guests.assemble(f"mov {r}ax, {r}sp; push {r}ax; pop {r}ax; hlt", bits=bits)
    cpu = load(vm, loaders.FlatImage(code, mode=mode))
    cpu.run()
    assert cpu.stop_reason == "idle"
    assert cpu.regs.rax == cpu.regs.rsp != 0
    assert cpu.sregs.cs.db == (bits == 32)


def test_flat_that_does_not_fit(vm: kvmcpu.VM) -> None:
    vm.add_memory(0, "64KiB")
    with pytest.raises(loaders.LoadError, match="needs memory at 0xff00 to 0x100ff"):
        loaders.FlatImage(bytes(0x200), address=0xFF00).load(vm)
    with pytest.raises(loaders.LoadError, match="cannot be entered in real mode at 0x200000"):
        loaders.FlatImage(b"\xf4", address=0x200000)
    with pytest.raises(loaders.LoadError, match="cannot be entered"):
        loaders.FlatImage(b"\xf4", address=-1)


# ---------------------------------------------------------------------------- firmware


@pytest.mark.kvm(arch="x86_64")
def test_firmware_is_at_both_places_and_starts_at_its_reset_vector(vm: kvmcpu.VM) -> None:
    vm.add_memory(0, "1MiB")
    # At the reset vector: jump to the copy below 1 MiB, at 0xf0000, which halts.
    rom = bytearray(b"\x90" * (256 << 10))
    code = guests.assemble("mov al, cs:[0xfff0]; mov ah, 9; hlt", origin=0)
    rom[-0x10000 : -0x10000 + len(code)] = code
    rom[-16:-11] = b"\xea\x00\x00\x00\xf0"
    cpu = load(vm, loaders.Firmware(bytes(rom)))
    assert cpu.sregs.cs.base + cpu.regs.rip == 0xFFFFFFF0
    cpu.run()
    assert cpu.stop_reason == "idle"
    assert cpu.sregs.cs.base == 0xF0000
    assert cpu.regs.rax & 0xFFFF == 0x09EA
    assert vm.read(0x100000000 - len(rom), len(rom)) == rom
    assert vm.read(0xE0000, 0x20000) == rom[-0x20000:]
    low, high = vm.memory
    assert not low.readonly
    assert high.readonly


@pytest.mark.parametrize("size", [0, 1, 0x1001, (16 << 20) + 0x1000])
def test_firmware_of_a_wrong_size(size: int) -> None:
    with pytest.raises(loaders.LoadError, match="multiple of 4 KiB"):
        loaders.Firmware(bytes(size))


def test_firmware_needs_the_first_mib(vm: kvmcpu.VM) -> None:
    vm.add_memory(0, "64KiB")
    with pytest.raises(loaders.LoadError, match="copy needs memory at 0xff000"):
        loaders.Firmware(bytes(0x1000)).load(vm)


def test_firmware_refuses_arguments(vm: kvmcpu.VM) -> None:
    vm.add_memory(0, "1MiB")
    start = loaders.Firmware(bytes(0x1000)).load(vm)
    with pytest.raises(loaders.LoadError, match="no arguments"):
        start.begin(vm, vm.create_vcpu(), ["x"])


# ---------------------------------------------------------------------------- places and tables


def test_find_room(vm: kvmcpu.VM) -> None:
    vm.add_memory(0, "2MiB")
    assert base.find_room(vm, 0x1000, []) == 0x1000
    assert base.find_room(vm, 0x1000, [(0x1000, 0x1001)]) == 0x2000
    assert base.find_room(vm, 0x9F000, []) == 0x1000
    assert base.find_room(vm, 0x9F001, []) == 0x100000  # not into the hole
    assert base.find_room(vm, 0x9F000, [(0x5000, 0x6000)]) == 0x100000
    with pytest.raises(loaders.LoadError, match="no room"):
        base.find_room(vm, 0x100000, [(0x1FFFFF, 0x200000)])


def test_memory_above_3_gib_goes_above_4(vm: kvmcpu.VM) -> None:
    slots = add_ram(vm, 5 << 30)
    assert [(slot.address, slot.size) for slot in slots] == [(0, 3 << 30), (4 << 30, 2 << 30)]
    assert base.ram(vm) == [(0, 3 << 30), (4 << 30, 6 << 30)]


@pytest.mark.kvm(arch="x86_64")
def test_long_mode_maps_all_memory(vm: kvmcpu.VM) -> None:
    add_ram(vm, 5 << 30)
    code = guests.assemble("movabs rbx, 0x17ffffff8; mov qword ptr [rbx], 77; hlt", bits=64)
    cpu = load(vm, loaders.FlatImage(code, mode="long"))
    cpu.run()
    assert vm.read(0x17FFFFFF8, 8) == (77).to_bytes(8, "little")
    assert cpu.translate(0x17FFFFFF8) == 0x17FFFFFF8
    with pytest.raises(kvmcpu.UnmappedError):
        cpu.translate(0x180000000)


@pytest.mark.kvm(arch="x86_64")
def test_the_descriptor_table_says_what_the_registers_say(vm: kvmcpu.VM) -> None:
    # The hidden parts were set directly: loading them anew from the table must change nothing.
    vm.add_memory(0, "4MiB")
    code = guests.assemble(
        f"""
        mov ax, {x86_start.DATA}
        mov ss, ax
        mov ds, ax
        push {x86_start.CODE64}
        lea rax, [rip + 1f]
        push rax
        retfq
    1:  hlt
        """,
        bits=64,
    )
    cpu = load(vm, loaders.FlatImage(code, mode="long"))
    before = cpu.sregs.copy()
    cpu.run()
    assert cpu.stop_reason == "idle"
    for name in ("cs", "ds", "ss"):
        segment, old = getattr(cpu.sregs, name).as_dict(), getattr(before, name).as_dict()
        assert {k: segment[k] for k in ("base", "limit", "selector", "dpl", "l")} == {
            k: old[k] for k in ("base", "limit", "selector", "dpl", "l")
        }


# ---------------------------------------------------------------------------- the fixtures' guests


def test_long_guest(long_guest) -> None:
    g = long_guest("mov rax, 0x123456789abcdef0; out 0xe9, al; hlt")
    g.collect()
    g.run()
    assert g.cpu.stop_reason == "idle"
    assert g.out == [0xF0]
    assert g.cpu.regs.rax == 0x123456789ABCDEF0


def test_user_guest(user_guest) -> None:
    # Port I/O at ring 3, by IOPL; MMIO then leaves the guest for the test to see the end.
    g = user_guest("mov al, 5; out 0xe9, al; mov byte ptr [0x10000000], 1; 1: jmp 1b")
    g.collect()
    g.vm.map_mmio(guests.MMIO, 0x1000, write=lambda offset, size, value: g.cpu.stop())
    g.run()
    assert g.cpu.stop_reason == "stop"
    assert g.out == [5]
    assert g.cpu.sregs.cs.dpl == 3


def test_user_guest_with_handlers(user_guest) -> None:
    # An invalid instruction at ring 3 reaches ring 0, which skips it and returns.
    g = user_guest(
        "mov ebx, 1; ud2; mov ebx, 3; mov byte ptr [0x10000000], 1; 1: jmp 1b",
        handlers={6: "add qword ptr [rsp], 2; mov ecx, 2; iretq"},
    )
    g.vm.map_mmio(guests.MMIO, 0x1000, write=lambda offset, size, value: g.cpu.stop())
    g.run()
    assert (g.cpu.regs.rbx, g.cpu.regs.rcx) == (3, 2)
    assert g.cpu.sregs.cs.dpl == 3


# ---------------------------------------------------------------------------- real firmware


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.skipif(not SEABIOS.exists(), reason=f"no {SEABIOS} (Debian: seabios)")
def test_seabios_says_its_version(vm: kvmcpu.VM) -> None:
    add_ram(vm, 64 << 20)
    vm.unassigned = "ones"
    console = kvmcpu.ByteSink()
    vm.map_io(0x402, 1, lambda _offset, _size: 0xE9, console)
    cpu = load(vm, loaders.open_firmware(SEABIOS))
    for _ in range(2000):
        cpu.run("10ms")
        if cpu.stop_reason != "ticks" or "SeaBIOS (version " in console.text:
            break
    assert "SeaBIOS (version " in console.text
