# SPDX-License-Identifier: MIT
"""What an exit costs: served by Python, served in C, not at all, looked at, single-stepped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from statistics import median
from time import perf_counter_ns

from measure import Comparison
from native import Raw
from real_mode import PORT, STEPS, guest, writes

import kvmcpu

EXITS = 400


def _ignore(offset: int, size: int, value: int) -> None:
    """A handler that costs what calling one costs."""


def _port(
    kvm: kvmcpu.Kvm, raw: Raw, name: str, limit: float, write: object
) -> Iterator[Comparison]:
    theirs = raw.guest(writes(EXITS))
    mine = guest(kvm, writes(EXITS))
    cpu = mine.cpu
    mine.vm.map_io(PORT, 8, write=write)  # type: ignore[arg-type]

    def ours() -> float:
        cpu.activate()  # from the halt
        begin = perf_counter_ns()
        cpu.run()
        return (perf_counter_ns() - begin) / EXITS

    yield Comparison(name, limit, ours, lambda: theirs.run_to_halt() / EXITS)
    mine.close()
    theirs.close()


def _half_entry(kvm: kvmcpu.Kvm, raw: Raw) -> Iterator[Comparison]:
    theirs = raw.guest(writes(EXITS))
    mine = guest(kvm, writes(EXITS))
    enter = mine.cpu.enter

    def ours() -> float:
        begin = perf_counter_ns()
        for _ in repeat(None, EXITS):
            enter(0)
        return (perf_counter_ns() - begin) / EXITS

    yield Comparison("half entry", 1.05, ours, lambda: theirs.half_entries(EXITS))
    mine.close()
    theirs.close()


def _register(kvm: kvmcpu.Kvm, raw: Raw) -> Iterator[Comparison]:
    theirs = raw.guest(writes(1 << 30))
    mine = guest(kvm, writes(1 << 30))
    mine.vm.map_io(PORT, 8, write=_ignore)
    cpu = mine.cpu

    def ours() -> float:
        times = []
        for _ in repeat(None, EXITS):
            cpu.enter()  # to the next write
            begin = perf_counter_ns()
            cpu.regs.rax  # noqa: B018
            times.append(perf_counter_ns() - begin)
        return median(times)

    yield Comparison(
        "reading a register after an exit, to KVM_GET_REGS",
        0.1,
        ours,
        lambda: median(theirs.read_registers(EXITS)),
    )
    mine.close()
    theirs.close()


def _step(kvm: kvmcpu.Kvm, raw: Raw) -> Iterator[Comparison]:
    theirs = raw.guest(STEPS)
    mine = guest(kvm, STEPS)

    def ours() -> float:
        begin = perf_counter_ns()
        mine.cpu.step(EXITS)
        return (perf_counter_ns() - begin) / EXITS

    yield Comparison("single step", 1.15, ours, lambda: theirs.steps(EXITS))
    mine.close()
    theirs.close()


def comparisons(kvm: kvmcpu.Kvm, raw: Raw) -> Iterator[Comparison]:
    yield from _port(kvm, raw, "port write, a Python handler", 1.10, _ignore)
    yield from _port(kvm, raw, "port write, the byte sink in C", 1.03, kvmcpu.ByteSink())
    yield from _half_entry(kvm, raw)
    yield from _register(kvm, raw)
    yield from _step(kvm, raw)
