# SPDX-License-Identifier: MIT
"""Multiboot kernels of both versions: what they are handed, and headers that are broken."""

from __future__ import annotations

import struct
from pathlib import Path

import guests
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvmcpu
from kvmcpu import System
from kvmcpu.loaders import LoadError, Multiboot2Image, MultibootImage, open_image
from kvmcpu.loaders.multiboot import Module
from kvmcpu.ram import add_ram

MAGIC1, MAGIC2 = 0x1BADB002, 0xE85250D6
BASE = 0x100000
# Keeps EAX and EBX, and tells that it got here.
BODY = "start: mov [0x8000], eax; mov [0x8004], ebx; mov al, 42; out 0xf4, al; 1: hlt; jmp 1b"


def header1(flags: int = 0, *fields: int) -> bytes:
    return struct.pack(
        f"<{3 + len(fields)}I", MAGIC1, flags, -(MAGIC1 + flags) & 0xFFFFFFFF, *fields
    )


def header2(*tags: bytes, architecture: int = 0, length: int | None = None) -> bytes:
    content = b"".join(tag + bytes(-len(tag) % 8) for tag in tags)
    size = 16 + len(content) if length is None else length
    checksum = -(MAGIC2 + architecture + size) & 0xFFFFFFFF
    return struct.pack("<4I", MAGIC2, architecture, size, checksum) + content


def tag(kind: int, *values: int, flags: int = 0) -> bytes:
    return struct.pack(f"<HHI{len(values)}I", kind, flags, 8 + 4 * len(values), *values)


END = tag(0)


def elf(header: bytes) -> bytes:
    data = ", ".join(f"{byte:#x}" for byte in header)
    source = f".section .text; .balign 8; .byte {data}; .globl _start; _start: {BODY}"
    return guests.link_elf(source, bits=32, origin=BASE)


def flat1(flags: int = 1 << 16, place: tuple[int, ...] | None = None) -> bytes:
    """A kernel without ELF: header, then code."""
    size = 32
    code = guests.assemble(BODY, bits=32, origin=BASE + size)
    fields = place or (BASE, BASE, 0, BASE + 0x2000, BASE + size)
    return header1(flags, *fields).ljust(size, b"\0") + code


def flat2(*extra: bytes) -> bytes:
    size = 128
    code = guests.assemble(BODY, bits=32, origin=BASE + size)
    tags = (tag(2, BASE, BASE, 0, 0), tag(3, BASE + size), *extra, END)
    return header2(*tags).ljust(size, b"\0") + code


def booted(
    tmp_path: Path, data: bytes, arguments=(), modules=()
) -> tuple[int, int, kvmcpu.VM, System]:
    path = tmp_path / "kernel"
    path.write_bytes(data)
    system = System(memory="8MiB")
    system.load(path, arguments, modules=modules)
    assert system.image_kind == "multiboot kernel"
    assert system.run(timeout=20).exit_code == 42
    eax, ebx = struct.unpack("<2I", system.vm.read(0x8000, 8))
    return eax, ebx, system.vm, system


def text(vm: kvmcpu.VM, address: int) -> str:
    return bytes(vm.read(address, 256)).split(b"\0")[0].decode()


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize("kernel", [elf(header1(3)), flat1()], ids=["elf", "addresses"])
def test_version_1(tmp_path, kernel) -> None:
    module = tmp_path / "module"
    module.write_bytes(b"module's data")
    eax, ebx, vm, system = booted(tmp_path, kernel, ["a", "b c"], [module, (module, "two")])
    with system:
        assert eax == 0x2BADB002
        flags, lower, upper = struct.unpack("<3I", vm.read(ebx, 12))
        assert (flags & 0x4D, lower, upper) == (0x4D, 640, 7 << 10)
        line, count, modules = struct.unpack("<3I", vm.read(ebx + 16, 12))
        assert text(vm, line) == "kernel a b c"
        assert count == 2
        for at, command in ((modules, str(module)), (modules + 16, "two")):
            start, end, words = struct.unpack("<3I", vm.read(at, 12))
            assert start % 4096 == 0
            assert start > BASE
            assert vm.read(start, end - start) == b"module's data"
            assert text(vm, words) == command
        length, at = struct.unpack("<2I", vm.read(ebx + 44, 8))
        entries = [struct.unpack("<IQQI", vm.read(at + i, 24)) for i in range(0, length, 24)]
        assert (20, 0, 0xA0000, 1) in entries
        assert (20, 0x100000, 7 << 20, 1) in entries
        assert text(vm, struct.unpack("<I", vm.read(ebx + 64, 4))[0]) == "kvmcpu"


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize(
    "kernel",
    [
        elf(header2(tag(1, 1, 3, 4, 6), END)),
        flat2(tag(5, 0, 0, 0, flags=1)),
        flat2(tag(2, BASE, 0xFFFFFFFF, 0, 0)),
    ],
    ids=["elf", "addresses", "from the file's beginning"],
)
def test_version_2(tmp_path, kernel) -> None:
    module = tmp_path / "module"
    module.write_bytes(b"m" * 5000)
    eax, ebx, vm, system = booted(tmp_path, kernel, ["x"], [(module, "m")])
    with system:
        assert (eax, ebx % 8) == (0x36D76289, 0)
        total = struct.unpack("<I", vm.read(ebx, 4))[0]
        found, at = {}, 8
        while at < total:
            kind, size = struct.unpack("<2I", vm.read(ebx + at, 8))
            found[kind] = vm.read(ebx + at + 8, size - 8)
            at += size + -size % 8
        assert found[0] == b""
        assert found[1] == b"kernel x\0"
        assert found[2] == b"kvmcpu\0"
        start, end = struct.unpack("<2I", found[3][:8])
        assert vm.read(start, end - start) == b"m" * 5000
        assert found[3][8:] == b"m\0"
        assert struct.unpack("<2I", found[4]) == (640, 7 << 10)
        assert struct.unpack("<2I", found[6][:8]) == (24, 0)
        assert struct.pack("<QQII", 0x100000, 7 << 20, 1, 0) in found[6]


def symbols(vm: kvmcpu.VM, count: int, names: int, table: bytes) -> dict[str, int]:
    """The kernel's symbols, found as a kernel finds them: by the section headers alone."""
    headers = [struct.unpack_from("<10I", table, 40 * i) for i in range(count)]
    at = headers[names][3]
    named = {text(vm, at + header[0]): header for header in headers}
    strings, (_, kind, _, address, _, size, *_) = named[".strtab"], named[".symtab"]
    assert kind == 2  # SHT_SYMTAB
    data = bytes(vm.read(address, size))
    return {
        text(vm, strings[3] + name): value
        for name, value, *_ in struct.iter_unpack("<IIIBBH", data)
    }


@pytest.mark.kvm(arch="x86_64")
def test_symbols_1(tmp_path) -> None:
    """The section headers of an ELF file, with what no segment loads (3.3, syms)."""
    _, info, vm, system = booted(tmp_path, elf(header1()))
    with system:
        check_symbols_1(vm, info)


def check_symbols_1(vm: kvmcpu.VM, info: int) -> None:
    assert struct.unpack("<I", vm.read(info, 4))[0] & 0x20
    count, size, table, names = struct.unpack("<4I", vm.read(info + 28, 16))
    assert size == 40
    assert symbols(vm, count, names, bytes(vm.read(table, count * size)))["_start"] == BASE + 12


@pytest.mark.kvm(arch="x86_64")
def test_symbols_2(tmp_path) -> None:
    """The same as a tag (3.6.7), which a kernel may insist on."""
    _, info, vm, system = booted(tmp_path, elf(header2(tag(1, 9), END)))
    with system:
        check_symbols_2(vm, info)


def check_symbols_2(vm: kvmcpu.VM, info: int) -> None:
    at, found = info + 8, {}
    while at < info + struct.unpack("<I", vm.read(info, 4))[0]:
        kind, size = struct.unpack("<2I", vm.read(at, 8))
        found[kind] = bytes(vm.read(at + 8, size - 8))
        at += size + -size % 8
    count, size, names = struct.unpack_from("<3I", found[9])
    assert size == 40
    assert len(found[9]) == 12 + 40 * count
    assert symbols(vm, count, names, found[9][12:])["_start"] > BASE


def test_memory_above_4_gib(vm: kvmcpu.VM) -> None:
    add_ram(vm, 5 << 30)  # nothing touches it
    lower, upper = 640, (3 << 20) - 1024  # KiB
    entry = struct.pack("<QQI", 4 << 30, 2 << 30, 1)
    first, second = MultibootImage(flat1()), Multiboot2Image(flat2())
    one = first.information(vm, 0x200000, "", first.load(vm))
    assert struct.unpack_from("<2I", one, 4) == (lower, upper)
    assert struct.pack("<I", 20) + entry in one
    two = second.information(vm, 0x200000, "", second.load(vm))
    assert struct.pack("<4I", 4, 16, lower, upper) in two
    assert entry + bytes(4) in two
    # What the kernel is given stays below, where it can reach it.
    module = Module(bytes(4096), "m")
    start = MultibootImage(flat1(), modules=[module]).load(vm)
    assert all(end <= 1 << 32 for _, end in start.taken)


@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (flat1(flags=1 << 16 | 1 << 8), "unknown"),
        (header1(1 << 16 | 4, BASE, BASE, 0, 0, BASE, 0, 640, 480, 32), "graphics"),
        (header1(0) + bytes(100), "no ELF file"),
        (header1(1 << 16, BASE), "cut short"),
        (flat1(place=(BASE, BASE + 16, 0, 0, BASE)), "load address"),
        (flat1(place=(BASE, BASE, BASE - 16, 0, BASE)), "load_end_addr"),
        (flat1(place=(BASE, BASE, BASE + 99999, 0, BASE)), "load_end_addr"),
        (flat1(place=(BASE, BASE, 0, BASE + 4, BASE + 32)), "bss_end_addr"),
        (flat1(place=(BASE, BASE, 0, 0, BASE - 1)), "entry point"),
        (flat2(tag(7)), "tag 7"),
        (flat2(tag(1, 9)), "type 9"),
        (header2(tag(2, BASE, BASE, 0, 0), END) + bytes(64), "no entry address"),
        (header2(END) + bytes(64), "no ELF file"),
        (header2(tag(4, 1), END) + bytes(64), "console"),
        (header2(tag(2, BASE), END) + bytes(64), "cut short"),
        (header2(struct.pack("<HHI", 4, 0, 3), END) + bytes(64), "size of 3"),
        (header2(tag(4, 0)) + bytes(64), "no end tag"),
        (header2(END, architecture=4) + bytes(64), "architecture 4"),
    ],
)
def test_broken_headers(tmp_path, data, pattern) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(data)
    with pytest.raises(LoadError, match=pattern):
        open_image(path)


def test_a_wrong_checksum_is_no_header(tmp_path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(struct.pack("<3I", MAGIC1, 0, 0) + b"\x90" * 100)
    assert open_image(path).kind == "flat binary"


@pytest.mark.kvm(arch="x86_64")
def test_what_does_not_fit(tmp_path) -> None:
    path, module = tmp_path / "kernel", tmp_path / "module"
    path.write_bytes(elf(header1(3)))
    module.write_bytes(bytes(3 << 20))
    with System(memory="2MiB") as system:
        system.load(path, modules=[module])
        with pytest.raises(LoadError, match="room for the module"):
            system.build()
    with pytest.raises(LoadError, match="a module is a path"):
        open_image(path, modules=[7])
    with pytest.raises(LoadError, match="cannot read the module"):
        open_image(path, modules=["/nonexistent"])
    plain = tmp_path / "plain"
    plain.write_bytes(guests.link_elf("_start: hlt", bits=32))
    with pytest.raises(LoadError, match="no multiboot kernel"):
        open_image(plain, modules=[module])


@pytest.fixture(scope="module")
def machine():
    with kvmcpu.Kvm() as kvm, kvm.create_vm() as vm:
        vm.add_memory(0, "16MiB")
        yield vm, vm.create_vcpu()


@pytest.mark.kvm(arch="x86_64")
@settings(max_examples=300, deadline=None)
@given(
    second=st.booleans(),
    load=st.none() | st.integers(0x1000, 17 << 20) | st.integers(0, 0xFFFFFFFF),
    words=st.lists(st.integers(0, 0xFFFFFFFF), max_size=30),
    rest=st.binary(max_size=200),
)
def test_any_header(machine, second, load, words, rest) -> None:
    """Whatever stands behind a magic number: a kernel that is loaded, or a LoadError.

    load: where the header says that it goes, as if the rest made sense; few get that far else.
    """
    vm, cpu = machine
    fields = struct.pack(f"<{len(words)}I", *words)
    place = () if load is None else (load, load, 0, 0, load)
    if second:
        tags = (tag(2, *place[:4]), tag(3, load)) if place else ()
        data, kind = header2(*tags, fields, END) + rest, Multiboot2Image
        if place and len(words) % 2:
            data = header2(*tags, END) + fields + rest
    else:
        flags = 1 << 16 if place else words[0] & 0x1FFFF if words else 0
        data, kind = header1(flags, *place) + fields + rest, MultibootImage
    try:
        kernel = kind(data, modules=[Module(b"x", "")])
        start = kernel.load(vm)
        start.begin(vm, cpu, ["an argument"])
    except LoadError:
        return
    assert cpu.regs.rip == kernel.entry
    assert (cpu.regs.rax, cpu.regs.rbx % 8) == (kernel.booted, 0)
    (segment,) = kernel.segments
    assert vm.read(segment.physical, len(segment.data)) == segment.data
