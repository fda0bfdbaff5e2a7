# SPDX-License-Identifier: MIT
"""What making and destroying a VM costs, and filling its memory."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import addressof, c_char
from itertools import repeat
from time import perf_counter_ns

from measure import Comparison
from native import Raw

import kvmcpu

LIVES = 5
COPY = 64 << 20


def _life(kvm: kvmcpu.Kvm, raw: Raw) -> Iterator[Comparison]:
    def ours() -> float:
        begin = perf_counter_ns()
        for _ in repeat(None, LIVES):
            with kvm.create_vm() as vm:
                vm.add_memory(0, "16MiB")
                vm.create_vcpu()
        return (perf_counter_ns() - begin) / LIVES

    yield Comparison("VM, vCPU and 16 MiB made and destroyed", 1.2, ours, lambda: raw.lives(LIVES))


def _copy(kvm: kvmcpu.Kvm, raw: Raw) -> Iterator[Comparison]:
    data = bytearray(b"kvmcpu64" * (COPY // 8))
    source = (c_char * COPY).from_buffer(data)
    with kvm.create_vm() as vm:
        ram = vm.add_memory(0, COPY)
        place = (c_char * COPY).from_buffer(ram)

        def ours() -> float:
            begin = perf_counter_ns()
            ram[:] = data
            return float(perf_counter_ns() - begin)

        yield Comparison(
            "64 MiB written through the buffer, to memcpy",
            1.05,
            ours,
            lambda: raw.copy(addressof(place), addressof(source), COPY),
        )


def comparisons(kvm: kvmcpu.Kvm, raw: Raw) -> Iterator[Comparison]:
    yield from _life(kvm, raw)
    yield from _copy(kvm, raw)
