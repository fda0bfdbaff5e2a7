# SPDX-License-Identifier: MIT
"""What the PC's devices cost: each register access by itself, and a byte to the serial port.

    python tests/benchmarks/devices.py [--check]

The first table has, for each device, the slowest of its registers: the median of many accesses,
without a guest (limit: 5 us). The second compares an exit for a byte written to the 16550 with one
to a byte sink (limit: 1.5).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from time import perf_counter_ns

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from devices import Bench, Ports, bench
from guests import ORIGIN, assemble

import kvmcpu
from kvmcpu import devices
from kvmcpu.loaders import x86_start

ACCESSES = 400
EXITS = 2000
WRITES = f"mov dx, 0x3f8; 2: mov cx, {EXITS}; 1: out dx, al; loop 1b; out 0x10, al; jmp 2b"


def cost(board: Bench, port: int) -> tuple[float, str]:
    """The slower of reading a port and writing back what was read, in us."""
    window, offset = Ports(board).find(port)
    size = 2 if port in (0x1F0, 0x510) else 1
    value = window.read(offset, size)
    found = []
    for name, access in (
        ("read", lambda: window.read(offset, size)),
        ("write", lambda: window.write(offset, size, value)),
    ):
        times = []
        for _ in range(ACCESSES):
            begin = perf_counter_ns()
            access()
            times.append(perf_counter_ns() - begin)
        found.append((median(times) / 1e3, f"{name} of {port:#x}"))
    return max(found)


def exit_us(cpu: kvmcpu.Vcpu) -> float:
    begin = perf_counter_ns()
    cpu.run()
    return (perf_counter_ns() - begin) / EXITS / 1e3


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="status 1 if a limit is missed")
    options = parser.parse_args()
    missed = 0
    kinds = (
        devices.Serial16550, devices.Cmos, devices.FwCfg, devices.I8042, devices.DmaPage,
        devices.PowerOff, devices.VgaText, devices.AtaController, devices.DebugExit,
    )  # fmt: skip
    with kvmcpu.Kvm() as kvm:
        print("| device | slowest register | us | limit |\n| --- | --- | ---: | ---: |")
        for kind in kinds:
            options_ = {"disks": [bytes(1 << 20)]} if kind is devices.AtaController else {}
            with bench(kvm, kind(**options_)) as board:
                slowest, what = max(cost(board, port) for port in Ports(board).all())
                missed += slowest > 5
                print(f"| {kind.__name__} | {what} | {slowest:.2f} | 5 |")
        cpus = []
        boards = [bench(kvm, devices.Serial16550()), bench(kvm)]
        for number, context in enumerate(boards):
            board = context.__enter__()
            if number:
                board.vm.map_io(0x3F8, 1, write=kvmcpu.ByteSink())
            board.vm.write(ORIGIN, assemble(WRITES))
            cpu = board.vm.create_vcpu()
            x86_start.real(cpu, ORIGIN, stack=0x8000)
            board.vm.map_io(0x10, 1, write=lambda *_, cpu=cpu: cpu.stop() and None)
            cpus.append(cpu)
        pairs = [(exit_us(cpus[0]), exit_us(cpus[1])) for _ in range(50)]
        ratio = median(a / b for a, b in pairs)
        missed += ratio > 1.5
        print(f"\na byte to the 16550, to one to a byte sink: {ratio:.3f} (limit 1.5)")
        for context in boards:
            context.__exit__(None, None, None)
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
