# SPDX-License-Identifier: MIT
"""Runs the benchmarks and prints their table; tests/benchmarks/run builds what it needs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import exits
import life
import threads
import timing
from measure import Comparison, Line, compare
from native import Raw

import kvmcpu

Group = Callable[[kvmcpu.Kvm, Raw], Iterator[Comparison]]
GROUPS: dict[str, Group] = {
    "exits": exits.comparisons,
    "life": life.comparisons,
    "time": timing.comparisons,
    "threads": threads.comparisons,
}
STUBBED = {
    "python": ("own time of an exit, a Python handler", 300.0),
    "sink": ("own time of an exit, the byte sink in C", 40.0),
}


def stubbed(libraries: Path, handler: str, rounds: int) -> Line:
    script = Path(__file__).with_name("stubbed.py")
    done = subprocess.run(
        [sys.executable, script, handler, str(rounds)],
        env={**os.environ, "LD_PRELOAD": str(libraries / "libstub.so")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    name, limit = STUBBED[handler]
    ns = float(done.stdout)
    return Line(name, limit, ns, None, ns)


def lines(groups: list[str], libraries: Path, rounds: int) -> Iterator[Line]:
    raw = Raw(libraries)
    with kvmcpu.Kvm() as kvm:
        for name in groups:
            if name == "stub":
                for handler in STUBBED:
                    yield stubbed(libraries, handler, rounds)
                continue
            for comparison in GROUPS[name](kvm, raw):
                yield compare(comparison, rounds)


def time_text(ns: float | None) -> str:
    if ns is None:
        return ""
    for unit, scale in (("ms", 1e6), ("us", 1e3)):
        if ns >= scale:
            return f"{ns / scale:.3g} {unit}"
    return f"{ns:.3g} ns"


def row(line: Line) -> str:
    value, limit = f"{line.value:.3f}", f"{line.limit:g}"
    if line.raw is None:
        value, limit = f"{line.value:.0f} ns", f"{line.limit:g} ns"
    ours, raw = time_text(line.ours), time_text(line.raw)
    verdict = "" if line.met else "over"
    return f"| {line.name:<50} | {ours:>8} | {raw:>8} | {value:>7} | {limit:>7} | {verdict:<4} |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/benchmarks/run")
    parser.add_argument("groups", nargs="*", help=f"{', '.join(GROUPS)}, stub; default: all")
    parser.add_argument("--libraries", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--rounds", type=int, help="how many rounds of each")
    parser.add_argument("--check", action="store_true", help="status 1 if a limit is missed")
    options = parser.parse_args()
    groups = options.groups or [*GROUPS, "stub"]
    unknown = set(groups) - {*GROUPS, "stub"}
    if unknown:
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    rounds = options.rounds or (10 if options.quick else 200)
    try:
        kvmcpu.Kvm().close()
    except kvmcpu.KvmError as error:
        print(f"nothing to measure: {error}", file=sys.stderr)
        return 1 if options.check else 0
    print(f"| {'work':<50} | {'kvmcpu':>8} | {'plain C':>8} | {'ratio':>7} | {'limit':>7} |      |")
    print(f"| {'-' * 50} | {'-' * 7}: | {'-' * 7}: | {'-' * 6}: | {'-' * 6}: | ---- |")
    missed = 0
    for line in lines(groups, options.libraries, rounds):
        print(row(line), flush=True)
        missed += not line.met
    if missed:
        print(f"\n{missed} over the limit")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
