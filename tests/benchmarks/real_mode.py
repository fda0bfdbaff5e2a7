# SPDX-License-Identifier: MIT
"""The benchmarks' guests: machine code for real mode at ORIGIN, and one of ours that runs it."""

from __future__ import annotations

from dataclasses import dataclass

import kvmcpu

ORIGIN = 0x1000
PORT = 0x3F8
END_PORT = 0x10
GAPS = 0x2000  # where gaps() leaves them


def writes(count: int) -> bytes:
    """Writes to PORT so often, then halts; when it goes on it starts again."""
    return (
        b"\x66\xb9" + count.to_bytes(4, "little")  # start: mov ecx, count
        + b"\xba\xf8\x03"  # mov dx, PORT
        + b"\xb0\x78"  # mov al, 'x'
        + b"\xee"  # next: out dx, al
        + b"\x67\xe2\xfc"  # loop next (by ecx)
        + b"\xf4"  # hlt
        + b"\xeb\xee"  # jmp start
    )  # fmt: skip


def counts(count: int) -> bytes:
    """Counts down from a number, then halts; when it goes on it starts again."""
    return (
        b"\x66\xb9" + count.to_bytes(4, "little")  # start: mov ecx, count
        + b"\x67\xe2\xfd"  # next: loop next (by ecx)
        + b"\xf4"  # hlt
        + b"\xeb\xf4"  # jmp start
    )  # fmt: skip


SPIN = b"\xeb\xfe"  # jmp .
STEPS = b"\x90" * 14 + b"\xeb\xf0"  # fourteen nops and a jump back


def gaps(count: int, threshold: int) -> bytes:
    """Reads the time stamp counter over and over, and stores what is between two readings, 32
    bits, if it is the threshold or more; after so many it writes to END_PORT. When it goes on it
    starts again. It so tells how long it did not run each time."""
    return (
        b"\x66\xb9" + count.to_bytes(4, "little")  # start: mov ecx, count
        + b"\xbf" + GAPS.to_bytes(2, "little")  # mov di, GAPS
        + b"\x0f\x31"  # rdtsc
        + b"\x66\x89\xc5"  # mov ebp, eax
        + b"\x0f\x31"  # next: rdtsc
        + b"\x66\x89\xc3"  # mov ebx, eax
        + b"\x66\x29\xeb"  # sub ebx, ebp
        + b"\x66\x89\xc5"  # mov ebp, eax
        + b"\x66\x81\xfb" + threshold.to_bytes(4, "little")  # cmp ebx, threshold
        + b"\x72\xec"  # jb next
        + b"\x66\x89\x1d"  # mov [di], ebx
        + b"\x83\xc7\x04"  # add di, 4
        + b"\x66\x49"  # dec ecx
        + b"\x75\xe2"  # jnz next
        + b"\xe6" + bytes([END_PORT])  # out END_PORT, al
        + b"\xeb\xd0"  # jmp start
    )  # fmt: skip


@dataclass
class Guest:
    """A VM of ours with 1 MiB of memory and a vCPU that is about to run the code."""

    vm: kvmcpu.VM
    ram: kvmcpu.Memory
    cpu: kvmcpu.Vcpu

    def close(self) -> None:
        self.vm.close()


def guest(kvm: kvmcpu.Kvm, code: bytes) -> Guest:
    vm = kvm.create_vm()
    ram = vm.add_memory(0, "1MiB")
    ram[ORIGIN : ORIGIN + len(code)] = code
    cpu = vm.create_vcpu()
    cpu.sregs.cs.base = cpu.sregs.cs.selector = 0
    cpu.regs.update({"rip": ORIGIN, "rsp": ORIGIN, "rflags": 2})
    return Guest(vm, ram, cpu)
