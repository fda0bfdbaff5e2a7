# SPDX-License-Identifier: MIT
"""Poking at a virtual CPU, cell by cell, as in a notebook: ``python examples/poke.py``."""

# %% A program in machine code, as a CPU starts with it: 16 bits wide, nothing set up.
import kvmcpu

PROGRAM = """
    ba f8 03    # mov dx, 0x3f8
    b9 05 00    # mov cx, 5
    31 c0       # xor ax, ax
    ee          # again: out dx, al
    a2 00 f0    # mov [0xf000], al
    40          # inc ax
    e2 f9       # loop again
    f4          # hlt
"""
code = bytes.fromhex(" ".join(line.split("#")[0] for line in PROGRAM.splitlines()))

# %% A virtual machine: memory from 0 to 0xefff, and one CPU. Nothing is at 0xf000 yet.
kvm = kvmcpu.Kvm()
vm = kvm.create_vm()
ram = vm.add_memory(0x0, 0xF000)
ram[0x1000 : 0x1000 + len(code)] = code  # no copy of the memory: this is the guest's own
cpu = vm.create_vcpu()
print(f"KVM on {kvm.backend}, {len(ram) // 1024} KiB of memory, {cpu.name} is {cpu.status}")

# %% Devices are functions.
sent: list[int] = []
stored: list[int] = []
vm.map_io(0x3F8, 1, write=lambda _offset, _size, value: sent.append(value))
vm.map_mmio(0xF000, 0x1000, write=lambda _offset, _size, value: stored.append(value))

# %% Registers are set one at a time; the kernel hears of it at the next entry.
cpu.sregs.cs.base = cpu.sregs.cs.selector = 0
cpu.regs.rip, cpu.regs.rflags = 0x1000, 2
print(cpu.regs)

# %% Three instructions, one by one, then all the rest: until the CPU halts for good.
executed = cpu.step(3)
print(f"{executed} instructions later: rip {cpu.regs.rip:#x}, cx {cpu.regs.rcx}")
ticks = cpu.run()
print(f"stopped ({cpu.stop_reason}) after {ticks} ticks of 1 ps, the last exit is {cpu.exit!r}")
print(f"port 0x3f8 got {sent}, address 0xf000 got {stored}, ax is {cpu.regs.rax}")

# %% What happened, from the ring of last exits, and the statistics.
for record in cpu.last_exits()[-4:]:
    print(f"  {record.name:6} address {record.address:#06x} size {record.size} data {record.data}")
print(f"{cpu.stats['exits']} exits: {cpu.stats['io']} port I/O, {cpu.stats['mmio']} MMIO")
print(f"instructions: {cpu.stats['insts']} (counted with: {cpu.insts_source})")

# %% The CPU is still there: back to the start, for another round.
cpu.regs.rip = 0x1000
cpu.activate()
cpu.run()
assert sent == stored == [0, 1, 2, 3, 4] * 2

# %% An error says what is wrong, and the CPU can be looked at.
cpu.regs.rip = 0x8000
ram[0x8000:0x8002] = b"\xe4\x60"  # in al, 0x60: nobody is at that port
cpu.activate()
try:
    cpu.run()
except kvmcpu.UnassignedAccessError as error:
    print(f"{type(error).__name__}: {str(error).splitlines()[0]}")
vm.close()
kvm.close()
