# SPDX-License-Identifier: MIT
"""Our own time per exit: run with LD_PRELOAD=libstub.so, so that no entry enters the kernel.

    stubbed.py {python|sink} ROUNDS

Prints it in ns, less what the stub itself takes: the lower decile of the rounds, as what disturbs
a round can only lengthen it.
"""

from __future__ import annotations

import gc
import os
import sys
from ctypes import CDLL, c_bool, c_double, c_uint64
from statistics import quantiles
from time import perf_counter_ns

from exits import _ignore
from real_mode import PORT, SPIN, guest

import kvmcpu

EXITS = 5000


def main(handler: str, rounds: int) -> None:
    stub = CDLL(os.environ["LD_PRELOAD"])
    stub.stub_arm.argtypes = (c_uint64, c_bool)
    stub.stub_cost.argtypes = (c_uint64,)
    stub.stub_cost.restype = c_double
    sink = kvmcpu.ByteSink()
    with kvmcpu.Kvm() as kvm:
        mine = guest(kvm, SPIN)
        cpu = mine.cpu
        mine.vm.map_io(PORT, 8, write=sink if handler == "sink" else _ignore)
        if stub.stub_arm(EXITS, False):
            raise SystemExit("the vCPU's run structure is not in /proc/self/maps")
        gc.disable()
        times, stubs = [], []
        for _ in range(rounds):
            sink.clear()
            cpu.activate()
            begin = perf_counter_ns()
            cpu.run()
            times.append((perf_counter_ns() - begin) / EXITS)
            stubs.append(stub.stub_cost(EXITS))
        stub.stub_arm(0, False)
        if cpu.stats["io"] != rounds * EXITS:
            raise SystemExit("the stub was not asked: is LD_PRELOAD set?")
        mine.close()
    print(quantiles(times, n=10)[0] - quantiles(stubs, n=10)[0])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
