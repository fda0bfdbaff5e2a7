# SPDX-License-Identifier: MIT
"""Our own time per exit: run with LD_PRELOAD=libstub.so, so that no entry enters the kernel.

    stubbed.py {python|sink} ROUNDS

Prints it in ns, less what the stub itself takes: the lower decile of the rounds, as what disturbs
a round can only lengthen it. The rounds are spread over some seconds, since whoever else uses the
processor's core comes and goes; those around which the stub was slower than at its best by more
than a tenth were disturbed, and do not count.
"""

from __future__ import annotations

import gc
import os
import sys
from ctypes import CDLL, c_bool, c_double, c_uint64
from statistics import quantiles
from time import perf_counter_ns, sleep

from exits import _ignore
from real_mode import PORT, SPIN, guest

import kvmcpu

EXITS = 20000
PAUSE = 0.02  # s


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
        stub.stub_cost(EXITS)
        times: list[tuple[float, float]] = []  # of the stub around a round, of an exit in it
        for _ in range(rounds):
            sleep(PAUSE)
            sink.clear()
            cpu.activate()
            before = stub.stub_cost(EXITS)
            begin = perf_counter_ns()
            cpu.run()
            ours = (perf_counter_ns() - begin) / EXITS
            times.append((max(before, stub.stub_cost(EXITS)), ours))
        stub.stub_arm(0, False)
        if cpu.stats["io"] != rounds * EXITS:
            raise SystemExit("the stub was not asked: is LD_PRELOAD set?")
        mine.close()
    best = min(times)[0]
    calm = [ours for cost, ours in times if cost <= 1.1 * best]
    print((quantiles(calm, n=10)[0] if len(calm) > 1 else min(calm)) - best)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
