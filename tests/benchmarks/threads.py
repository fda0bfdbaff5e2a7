# SPDX-License-Identifier: MIT
"""Two vCPUs on threads of their own: whether one waits for the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import perf_counter_ns

from measure import Comparison
from native import Raw
from real_mode import Guest, counts, guest

import kvmcpu

COUNT = 20_000


def _together(first: Callable[[], object], second: Callable[[], object]) -> float:
    """How long two calls take, each on its thread, in ns."""
    other = threading.Thread(target=second)
    begin = perf_counter_ns()
    other.start()
    first()
    other.join()
    return perf_counter_ns() - begin


def comparisons(kvm: kvmcpu.Kvm, raw: Raw) -> Iterator[Comparison]:
    theirs = [raw.guest(counts(COUNT)) for _ in range(2)]
    mine = [guest(kvm, counts(COUNT)) for _ in range(2)]

    def run(g: Guest) -> Callable[[], object]:
        g.cpu.activate()  # from the halt
        return g.cpu.run

    yield Comparison(
        "two vCPUs at once",
        1.1,
        lambda: _together(run(mine[0]), run(mine[1])),
        lambda: _together(theirs[0].run_to_halt, theirs[1].run_to_halt),
    )
    for each in (*mine, *theirs):
        each.close()
