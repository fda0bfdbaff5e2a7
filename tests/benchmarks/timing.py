# SPDX-License-Identifier: MIT
"""How late a bounded run returns, and what a periodic event takes from the guest."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from statistics import median
from time import perf_counter_ns

from measure import Comparison
from native import Raw, RawGuest
from real_mode import END_PORT, GAPS, ORIGIN, SPIN, gaps, guest

import kvmcpu

MS = 1_000_000  # ns
RUNS = 10
EVENTS = 20


def _lateness(kvm: kvmcpu.Kvm, raw: Raw) -> Iterator[Comparison]:
    theirs = raw.guest(SPIN)
    mine = guest(kvm, SPIN)

    def ours() -> float:
        late = []
        for _ in repeat(None, RUNS):
            begin = perf_counter_ns()
            mine.cpu.run("1ms")
            late.append(perf_counter_ns() - begin - MS)
        return median(late)

    yield Comparison(
        "lateness of run(1 ms), to a bare timer's",
        1.5,
        ours,
        lambda: median(theirs.lateness(RUNS, MS)),
    )
    mine.close()
    theirs.close()


def _stored(ram: bytes) -> list[int]:
    """The gaps that the guest noted."""
    return [int.from_bytes(ram[at : at + 4], "little") for at in range(0, len(ram), 4)]


def _resolution(theirs: RawGuest) -> tuple[float, float]:
    """A turn of the guest's loop in counts of its clock, and how many of those are in a ns."""
    theirs.ram[ORIGIN : ORIGIN + 48] = gaps(1000, 0)
    ns = theirs.run_periodically(0)
    turns = _stored(theirs.ram[GAPS : GAPS + 4000])
    return median(turns), sum(turns) / ns


def _periodic(kvm: kvmcpu.Kvm, raw: Raw) -> Iterator[Comparison]:
    theirs = raw.guest(gaps(1, 0))
    turn, per_ns = _resolution(theirs)
    # What takes twice a turn and half a microsecond more is time that the guest was not given.
    code = gaps(EVENTS, int(2 * turn + 500 * per_ns))
    theirs.ram[ORIGIN : ORIGIN + len(code)] = code
    mine = guest(kvm, code)
    cpu, queue = mine.cpu, mine.vm.queue
    period = kvmcpu.parse_ticks("1ms")

    def at_event() -> None:
        event.reschedule(event.when + period)

    def at_end(offset: int, size: int, value: int) -> None:
        event.cancel()
        cpu.stop()

    event = queue.schedule(at_event, delay=period)
    event.cancel()
    mine.vm.map_io(END_PORT, 1, write=at_end)

    def gap(ram: bytes) -> float:
        return (median(_stored(ram)) - turn) / per_ns

    def ours() -> float:
        event.reschedule(delay=period)
        cpu.run()
        return gap(bytes(mine.ram[GAPS : GAPS + 4 * EVENTS]))

    def bare() -> float:
        theirs.run_periodically(MS)
        return gap(theirs.ram[GAPS : GAPS + 4 * EVENTS])

    yield Comparison("what an event at 1 kHz takes from a spinning guest", 1.2, ours, bare)
    mine.close()
    theirs.close()


def comparisons(kvm: kvmcpu.Kvm, raw: Raw) -> Iterator[Comparison]:
    yield from _lateness(kvm, raw)
    yield from _periodic(kvm, raw)
