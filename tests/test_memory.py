# SPDX-License-Identifier: MIT
"""Guest memory: slots, what backs them, views of them, the dirty log, virtual addresses."""

from __future__ import annotations

import gc
import mmap
import os
import threading

import guests
import pytest

import kvmcpu

PAGE = mmap.PAGESIZE
MIB = 1 << 20
ABSURD = (0, 1, 100, PAGE + 1, -PAGE, 1 << 63, (1 << 64) - PAGE, 1 << 64, 1 << 80)


# ---- slots


def test_added_removed_and_listed_while_the_vm_lives(vm, cpu) -> None:
    """V4: memory comes and goes while a vCPU exists, and between its runs."""
    low = vm.memory[0]
    high = vm.add_memory(16 * MIB, "2MiB")
    middle = vm.add_memory(4 * MIB, 8 * PAGE)
    assert vm.memory == (low, middle, high)
    assert [memory.address for memory in vm.memory] == [0, 4 * MIB, 16 * MIB]
    assert [memory.size for memory in vm.memory] == [MIB, 8 * PAGE, 2 * MIB]
    assert len({memory.slot for memory in vm.memory}) == 3
    assert not middle.closed
    cpu.run()
    middle.remove()
    middle.remove()
    assert middle.closed
    assert vm.memory == (low, high)
    with pytest.raises(kvmcpu.UnmappedError):
        vm.read(4 * MIB, 1)
    again = vm.add_memory(4 * MIB, PAGE)
    assert vm.memory == (low, again, high)
    assert again.slot == middle.slot  # the kernel has few of them: they come back
    assert again != middle


def test_the_guest_sees_it_come_and_go(guest) -> None:
    """V16: what is taken away leaves the guest as MMIO, and what is added is memory again."""
    g = guest("again: mov word ptr es:[0], 0x1234; out 0x10, al; jmp again")
    g.cpu.sregs.es.update({"base": 2 * MIB, "selector": 0})
    seen: list[object] = []

    def step(offset: int, size: int, value: int) -> None:
        seen.append(len(seen))
        g.cpu.stop()

    g.vm.map_io(0x10, 1, write=step)
    window = g.vm.add_memory(2 * MIB, PAGE)
    g.run()
    assert window[:2] == b"\x34\x12"
    window.remove()
    with pytest.raises(kvmcpu.UnassignedAccessError) as caught:
        g.run()
    assert (caught.value.address, caught.value.size) == (2 * MIB, 2)
    second = g.vm.add_memory(2 * MIB, PAGE)
    second[:2] = b"\0\0"
    g.vm.unassigned = "ones"  # the write that was refused is over
    g.run()
    g.run()
    assert second[:2] == b"\x34\x12"
    assert window[:2] == b"\x34\x12"  # the old bytes are kept by the old object


def test_many_slots(vm) -> None:
    slots = [vm.add_memory(i * 2 * PAGE, PAGE) for i in reversed(range(200))]
    assert [m.address for m in vm.memory] == [i * 2 * PAGE for i in range(200)]
    for memory in slots[::2]:
        memory.remove()
    assert len(vm.memory) == 100


@pytest.mark.parametrize("size", ABSURD)
def test_absurd_sizes(vm, size) -> None:
    """V16: what cannot be a slot is refused, and the VM is as it was."""
    keep = vm.add_memory(0, PAGE)
    with pytest.raises((ValueError, OverflowError, MemoryError)):
        vm.add_memory(MIB, size)
    assert vm.memory == (keep,)
    vm.add_memory(MIB, PAGE)


@pytest.mark.parametrize("text", ["", "4", "4 KB", "-4KiB", "4KiB4", "lots", "1e3PiB", "0"])
def test_sizes_as_text(vm, text) -> None:
    with pytest.raises(ValueError):
        vm.add_memory(0, text)
    assert vm.memory == ()


@pytest.mark.parametrize("address", [1, PAGE - 1, (1 << 64) - 1, -PAGE, 1 << 64, 1 << 70])
def test_bad_addresses(vm, address) -> None:
    with pytest.raises((ValueError, OverflowError)):
        vm.add_memory(address, PAGE)
    assert vm.memory == ()


def test_beyond_the_guests_physical_addresses(vm) -> None:
    """What only the kernel can know it refuses, with its number and the ioctl's name."""
    keep = vm.add_memory(0, PAGE)
    with pytest.raises((kvmcpu.KvmError, ValueError)) as caught:
        vm.add_memory((1 << 64) - 2 * PAGE, 2 * PAGE)
    if isinstance(caught.value, kvmcpu.KvmError):
        assert "KVM_SET_USER_MEMORY_REGION" in str(caught.value)
    assert vm.memory == (keep,)


def test_overlaps(vm) -> None:
    low, high = vm.add_memory(0, MIB), vm.add_memory(4 * MIB, MIB)
    for address, size in [
        (0, PAGE),
        (MIB - PAGE, PAGE),
        (MIB - PAGE, 8 * MIB),
        (4 * MIB - PAGE, 2 * PAGE),
        (3 * MIB, 4 * MIB),
        (4 * MIB, MIB),
    ]:
        with pytest.raises(ValueError, match="overlap") as caught:
            vm.add_memory(address, size)
        assert hex(address)[2:] in str(caught.value)
        assert vm.memory == (low, high)
    vm.add_memory(MIB, 3 * MIB)  # exactly between them


def test_wrong_types(vm) -> None:
    for arguments in [("0", PAGE), (0, None), (0, 1.5), (0, []), (None, PAGE)]:
        with pytest.raises(TypeError):
            vm.add_memory(*arguments)
    with pytest.raises(TypeError):
        vm.add_memory(0, bytearray(PAGE), file=0)
    with pytest.raises(TypeError):
        vm.add_memory(0, PAGE, file="memory")
    with pytest.raises(TypeError):
        kvmcpu.Memory()
    assert vm.memory == ()


# ---- what backs them


def test_anonymous(vm) -> None:
    memory = vm.add_memory(MIB, "64KiB")
    assert memory.backing == "anonymous"
    assert (memory.address, memory.size, len(memory)) == (MIB, 65536, 65536)
    assert not memory.readonly
    assert bytes(memory) == bytes(65536)
    assert "anonymous" in repr(memory)
    assert "0x100000" in repr(memory)


@pytest.mark.parametrize("kind", ["memfd", "file"])
def test_files(vm, tmp_path, kind) -> None:
    if kind == "memfd":
        file = os.fdopen(os.memfd_create("guest"), "w+b", buffering=0)
    else:
        file = open(tmp_path / "memory", "w+b", buffering=0)  # noqa: SIM115
    with file:
        file.write(b"\xaa" * PAGE + b"\xbb" * PAGE + b"\xcc" * PAGE)
        memory = vm.add_memory(MIB, 2 * PAGE, file=file.fileno(), offset=PAGE)
        assert memory.backing == "file"
        assert memory[:1] == b"\xbb"
        assert memory[PAGE] == 0xCC
        memory[0] = 0x11
        vm.write(MIB + PAGE, b"\x22")
        assert os.pread(file.fileno(), 1, PAGE) == b"\x11"
        assert os.pread(file.fileno(), 1, 2 * PAGE) == b"\x22"
        with pytest.raises(ValueError, match="ftruncate"):
            vm.add_memory(2 * MIB, 4 * PAGE, file=file.fileno())
        with pytest.raises(ValueError):
            vm.add_memory(2 * MIB, PAGE, file=file.fileno(), offset=1)
        with pytest.raises((ValueError, OverflowError)):
            vm.add_memory(2 * MIB, PAGE, file=file.fileno(), offset=1 << 63)
    assert memory[0] == 0x11  # the mapping needs no descriptor


def test_bad_files(vm, tmp_path) -> None:
    with pytest.raises((kvmcpu.KvmError, ValueError)):
        vm.add_memory(0, PAGE, file=9999)
    with open(os.devnull, "r+b") as null, pytest.raises((kvmcpu.KvmError, ValueError)):
        vm.add_memory(0, PAGE, file=null.fileno())
    path = tmp_path / "ro"
    path.write_bytes(bytes(PAGE))
    with path.open("rb") as readable, pytest.raises(kvmcpu.KvmError):
        vm.add_memory(0, PAGE, file=readable.fileno())
    assert vm.memory == ()


def test_the_callers_buffer(kvm) -> None:
    """An mmap of the caller's becomes the guest's, and stays the caller's afterwards."""
    area = mmap.mmap(-1, 4 * PAGE)
    with kvm.create_vm() as vm:
        memory = vm.add_memory(0, area)
        assert memory.backing == "buffer"
        assert memory.size == 4 * PAGE
        area[guests.ORIGIN : guests.ORIGIN + 8] = guests.assemble(
            "mov byte ptr [0x500], 0x5a; hlt; nop; nop"
        )[:8]
        cpu = vm.create_vcpu(cpuid=None)
        guests.x86_start.real(cpu, guests.ORIGIN, stack=guests.ORIGIN)
        cpu.run()
        assert area[0x500] == 0x5A
        with pytest.raises(BufferError):
            area.close()
    del memory, cpu, vm
    gc.collect()
    area[0x500] = 1
    area.close()


def test_buffers_that_cannot_be(vm) -> None:
    numpy = pytest.importorskip("numpy", reason="the buffers of numpy need numpy")
    array = numpy.zeros(2 * PAGE + 1, numpy.uint8)
    shift = -array.ctypes.data % PAGE
    with pytest.raises(ValueError, match="page boundary"):
        vm.add_memory(0, array[shift + 1 : shift + 1 + PAGE])
    with pytest.raises(ValueError):
        vm.add_memory(0, array[shift : shift + PAGE - 1])
    array.flags.writeable = False
    with pytest.raises((TypeError, BufferError, ValueError)):
        vm.add_memory(0, array[shift : shift + PAGE])
    with pytest.raises((TypeError, BufferError)):
        vm.add_memory(0, bytes(PAGE))
    assert vm.memory == ()


def test_an_array_of_the_callers(vm) -> None:
    numpy = pytest.importorskip("numpy", reason="the buffers of numpy need numpy")
    array = numpy.zeros(3 * PAGE, numpy.uint8)
    shift = -array.ctypes.data % PAGE
    part = array[shift : shift + 2 * PAGE]
    memory = vm.add_memory(0, part)
    memory[5] = 9
    assert part[5] == 9
    part[7] = 3
    assert vm.read(5, 3) == b"\x09\0\x03"


def test_shared_with_another_vm(kvm, vm) -> None:
    """V20: two VMs can have the same bytes, at different addresses."""
    mine = vm.add_memory(0, "64KiB")
    with kvm.create_vm() as other:
        theirs = other.add_memory(MIB, mine)
        assert theirs != mine
        assert theirs.size == mine.size
        mine[3] = 77
        assert theirs[3] == 77
        other.write(MIB + 8, b"hello")
        assert vm.read(8, 5) == b"hello"
        # In one VM too: an alias.
        alias = vm.add_memory(2 * MIB, mine)
        vm.write(2 * MIB + 100, b"alias")
        assert mine[100:105] == b"alias"
        assert alias.address == 2 * MIB
        mine.remove()
        assert theirs[100:105] == b"alias"
    assert theirs.closed
    assert theirs[3] == 77


# ---- what the guest may do with them


def test_readonly_leaves_as_mmio(guest) -> None:
    """V15: a guest reads read-only memory at full speed, and its writes leave as MMIO."""
    g = guest("mov al, es:[8]; mov es:[16], al; out 0xe9, al; hlt")
    rom = g.vm.add_memory(MIB * 2, PAGE, readonly=True)
    assert rom.readonly
    assert "readonly" in repr(rom)
    rom[8] = 0x42
    g.cpu.sregs.es.base = 2 * MIB
    writes: list[tuple[int, int, int]] = []
    g.vm.map_mmio(2 * MIB, PAGE, write=lambda *access: writes.append(access))
    g.collect()
    g.run()
    assert g.out == [0x42]
    assert writes == [(16, 1, 0x42)]
    assert rom[16] == 0
    g.vm.write(2 * MIB + 16, b"\x07")  # read-only is what it is for the guest
    assert rom[16] == 7


def test_dirty_log(guest) -> None:
    g = guest(
        "mov byte ptr [0x2000], 1; mov byte ptr [0x5fff], 1; hlt; mov byte ptr [0x7000], 1; hlt"
    )
    assert not g.ram.log_dirty
    with pytest.raises(kvmcpu.StateError):
        g.ram.dirty_pages()
    g.ram.log_dirty = True
    assert g.ram.log_dirty
    assert "log_dirty" in repr(g.ram)
    g.ram.dirty_pages()
    g.run()
    assert {2, 5} <= set(g.ram.dirty_pages())
    assert g.ram.dirty_pages() == []
    g.cpu.activate()
    g.run()
    pages = g.ram.dirty_pages()
    assert 7 in pages
    assert not {2, 5} & set(pages)
    g.ram.log_dirty = False
    with pytest.raises(kvmcpu.StateError):
        g.ram.dirty_pages()


def test_dirty_log_from_the_start(vm) -> None:
    memory = vm.add_memory(0, 200 * PAGE, log_dirty=True)
    assert memory.log_dirty
    assert memory.dirty_pages() == []
    memory.remove()
    with pytest.raises(kvmcpu.ClosedError):
        memory.dirty_pages()
    with pytest.raises(kvmcpu.ClosedError):
        memory.log_dirty = False


# ---- bytes


def test_slices_and_items(vm) -> None:
    ram = vm.add_memory(0, 2 * PAGE)
    ram[0] = 255
    ram[-1] = 7
    assert (ram[0], ram[2 * PAGE - 1], ram[-1]) == (255, 7, 7)
    ram[16:20] = b"abcd"
    ram[20:22] = bytearray(b"ef")
    ram[22:24] = memoryview(b"gh")
    assert bytes(ram[16:24]) == b"abcdefgh"
    assert isinstance(ram[16:24], memoryview)
    ram[32:40:2] = b"ABCD"
    assert bytes(ram[32:40]) == b"A\0B\0C\0D\0"
    ram[17:24] = ram[16:23]  # overlapping
    assert bytes(ram[16:24]) == b"aabcdefg"
    ram[:] = bytes(2 * PAGE)
    assert bytes(ram) == bytes(2 * PAGE)
    for wrong in (2 * PAGE, -2 * PAGE - 1, 1 << 70):
        with pytest.raises(IndexError):
            ram[wrong]
        with pytest.raises(IndexError):
            ram[wrong] = 0
    with pytest.raises(ValueError):
        ram[0:4] = b"12345"
    with pytest.raises(ValueError):
        ram[0] = 256
    with pytest.raises(TypeError):
        ram[0] = "a"
    with pytest.raises(TypeError):
        ram["a"]
    with pytest.raises(TypeError):
        del ram[0]


def test_memoryview_is_the_memory(vm) -> None:
    ram = vm.add_memory(0, 2 * PAGE)
    view = memoryview(ram)
    assert (view.nbytes, view.readonly, view.format, view.contiguous) == (
        2 * PAGE,
        False,
        "B",
        True,
    )
    view[5] = 6
    assert vm.read(5, 1) == b"\x06"
    words = view.cast("Q")
    words[1] = 0x1122334455667788
    assert vm.read(8, 8) == bytes.fromhex("8877665544332211")
    ram[8] = 0
    assert words[1] == 0x1122334455667700


def test_numpy_without_copies(vm) -> None:
    numpy = pytest.importorskip("numpy", reason="the arrays of numpy need numpy")
    ram = vm.add_memory(0, "1MiB")
    array = numpy.frombuffer(ram, numpy.uint32)
    array[10] = 0xDEADBEEF
    assert vm.read(40, 4) == bytes.fromhex("efbeadde")
    vm.write(80, b"\x01\0\0\0")
    assert array[20] == 1
    assert array.ctypes.data == numpy.frombuffer(ram, numpy.uint8).ctypes.data


def test_views_survive(kvm) -> None:
    """A view keeps its bytes, whatever becomes of the slot, the VM and all objects."""
    vm = kvm.create_vm()
    ram = vm.add_memory(0, 4 * PAGE)
    ram[0:4] = b"keep"
    view, part = memoryview(ram), ram[PAGE : PAGE + 8]
    part[:] = b"and this"
    ram.remove()
    ram[100] = 1
    assert ram[100] == view[100] == 1
    vm.close()
    assert bytes(view[:4]) == b"keep"
    assert bytes(ram[:4]) == b"keep"
    del vm, ram
    gc.collect()
    assert bytes(part) == b"and this"
    view[-1] = 9
    assert view[-1] == 9


def test_removed_under_a_running_guest(user_guest) -> None:
    """V10: memory that a guest on another thread uses goes away; it is told, not killed."""
    g = user_guest("again: inc qword ptr [0x40000000]; jmp again", memory="2MiB")
    window = g.vm.add_memory(0x40000000, PAGE)
    view = memoryview(window).cast("Q")
    caught: list[BaseException] = []

    def run() -> None:
        try:
            g.cpu.run()
        except kvmcpu.UnassignedAccessError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not view[0]:
        pass
    window.remove()
    thread.join(10)
    assert not thread.is_alive()
    assert caught[0].address == 0x40000000
    assert view[0] > 0


# ---- physical addresses


def test_across_slots(vm) -> None:
    vm.add_memory(0, PAGE)
    vm.add_memory(PAGE, PAGE)
    vm.add_memory(2 * PAGE, PAGE, readonly=True)
    data = bytes(range(256)) * 32
    vm.write(100, data)
    assert vm.read(100, len(data)) == data
    assert vm.read(0, 0) == b""
    assert vm.read(1 << 40, 0) == b""
    vm.write(1 << 40, b"")


def test_the_first_unmapped_address_is_named(vm) -> None:
    """V16: an error of a physical access names the first address without memory."""
    vm.add_memory(PAGE, PAGE)
    vm.add_memory(4 * PAGE, PAGE)
    before = vm.read(PAGE, PAGE)
    for address, size, first in [
        (0, 1, 0),
        (PAGE, PAGE + 1, 2 * PAGE),
        (2 * PAGE - 4, 8, 2 * PAGE),
        (4 * PAGE + 10, PAGE, 5 * PAGE),
        (3 * PAGE, 1, 3 * PAGE),
        ((1 << 64) - 1, 1, (1 << 64) - 1),
    ]:
        with pytest.raises(kvmcpu.UnmappedError, match=f"{first:x}") as caught:
            vm.read(address, size)
        assert caught.value.address == first
        with pytest.raises(kvmcpu.UnmappedError) as caught:
            vm.write(address, b"\xff" * size)
        assert caught.value.address == first
    assert vm.read(PAGE, PAGE) == before  # nothing was written before it was found out
    for arguments in [(-1, 1), (0, -1), ("0", 1), (1 << 64, 1), (0,), (0, 1, 2)]:
        with pytest.raises((TypeError, ValueError, OverflowError)):
            vm.read(*arguments)
    with pytest.raises(TypeError):
        vm.write(PAGE, "text")


# ---- virtual addresses


def test_translate_real_mode(cpu) -> None:
    assert cpu.translate(0x1234) == 0x1234


def test_virtual_in_long_mode(long_guest) -> None:
    """V13: the guest's page tables are walked, for pages of 2 MiB and of 4 KiB."""
    g = long_guest("hlt")
    assert g.cpu.translate(0x1234) == 0x1234
    assert g.cpu.translate(0x3FFF_FFFF) == 0x3FFF_FFFF  # mapped, whether there is memory or not
    # Pages of 4 KiB at 512 GiB: two in the wrong order, and then none.
    base = 1 << 39
    cr3 = g.cpu.sregs.cr3
    pointers, directory, table = 0x180000, 0x181000, 0x182000
    g.vm.write(cr3 + 8, (pointers | 7).to_bytes(8, "little"))
    g.vm.write(pointers, (directory | 7).to_bytes(8, "little"))
    g.vm.write(directory, (table | 7).to_bytes(8, "little"))
    for i, page in enumerate((0x191000, 0x190000)):
        g.vm.write(table + 8 * i, (page | 7).to_bytes(8, "little"))
    assert g.cpu.translate(base + 5) == 0x191005
    assert g.cpu.translate(base + PAGE) == 0x190000
    data = bytes(range(200))
    g.cpu.write_virtual(base + PAGE - 100, data)
    assert g.cpu.read_virtual(base + PAGE - 100, 200) == data
    assert g.vm.read(0x191000 + PAGE - 100, 100) == data[:100]
    assert g.vm.read(0x190000, 100) == data[100:]
    for call in (
        lambda: g.cpu.translate(base + 2 * PAGE),
        lambda: g.cpu.read_virtual(base + 2 * PAGE - 8, 16),
        lambda: g.cpu.write_virtual(base + 2 * PAGE - 8, bytes(16)),
    ):
        with pytest.raises(kvmcpu.UnmappedError, match=f"{base + 2 * PAGE:#x}") as caught:
            call()
        assert caught.value.address == base + 2 * PAGE
    assert g.cpu.read_virtual(base + PAGE + 92, 8) == data[192:]
    # Mapped by the tables, but no memory there: the virtual address is named.
    with pytest.raises(kvmcpu.UnmappedError) as caught:
        g.cpu.read_virtual(0x30000000, 4)
    assert caught.value.address == 0x30000000
    assert g.cpu.read_virtual(base, 0) == b""


def test_virtual_arguments(cpu) -> None:
    for call in (
        lambda: cpu.translate("a"),
        lambda: cpu.translate(-1),
        lambda: cpu.read_virtual(0),
        lambda: cpu.read_virtual(0, -1),
        lambda: cpu.write_virtual(0, 5),
    ):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            call()


def test_from_any_thread_while_the_guest_runs(user_guest) -> None:
    """V24: a running vCPU holds nothing that reading and writing memory needs."""
    g = user_guest("again: mov rax, [0x100008]; mov [0x100000], rax; jmp again")
    thread = threading.Thread(target=g.cpu.run)
    thread.start()
    try:
        for value in range(1, 200):
            g.vm.write(0x100008, value.to_bytes(8, "little"))
            while int.from_bytes(g.vm.read(0x100000, 8), "little") != value:
                pass
        extra = g.vm.add_memory(0x4000000, PAGE)
        extra.remove()
    finally:
        while not g.cpu.stop() and thread.is_alive():
            pass
        thread.join()
