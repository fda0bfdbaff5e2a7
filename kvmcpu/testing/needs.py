# SPDX-License-Identifier: MIT
"""What a test needs of a KVM, and what this machine's KVM and those of the labs offer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

import pytest

from kvmcpu import Kvm, KvmError, UnsupportedError

HOST = "host"
MARKER = (
    "kvm(arch=None, interrupts=False, counters=False): needs a KVM: of that architecture (a name or"
    " several: x86_64, arm64, riscv64); one that delivers interrupts and exceptions in every mode"
    " as hardware does; hardware performance counters"
)
_INTERRUPTS = "interrupts and exceptions in every mode as hardware delivers them"
_COUNTERS = "hardware performance counters"


@dataclass(frozen=True)
class Offer:
    """What a machine's KVM offers; arch is None where there is no KVM."""

    arch: str | None
    interrupts: bool = False
    counters: bool = False
    name: str = ""
    """Who offers it: "no KVM here: …" where arch is None."""


@dataclass(frozen=True)
class Need:
    """What a test needs. arch: any of these, empty: whichever."""

    arch: tuple[str, ...] = ()
    interrupts: bool = False
    counters: bool = False

    def lack(self, offer: Offer) -> str | None:
        """Why such a test cannot run there; None if it can."""
        if offer.arch is None:
            return offer.name
        if self.arch and offer.arch not in self.arch:
            return f"needs a KVM of {' or '.join(self.arch)}; this is {offer.name}"
        lacking = [
            what
            for what, wanted, there in (
                (_INTERRUPTS, self.interrupts, offer.interrupts),
                (_COUNTERS, self.counters, offer.counters),
            )
            if wanted and not there
        ]
        return f"needs {' and '.join(lacking)}; this is {offer.name}" if lacking else None


LABS = {
    "x86_64": Offer("x86_64", interrupts=True, name="the x86_64 lab"),
    "arm64": Offer("arm64", interrupts=True, counters=True, name="the arm64 lab"),
    "riscv64": Offer("riscv64", interrupts=True, name="the riscv64 lab"),
}


def need(item: pytest.Item) -> Need | None:
    """What a test's markers say; None: it needs no KVM. Raises pytest.UsageError."""
    arch: tuple[str, ...] | None = None
    found = interrupts = counters = False
    for mark in item.iter_markers("kvm"):
        found = True
        options = dict(mark.kwargs)
        names = options.pop("arch", None) or ()
        names = (names,) if isinstance(names, str) else tuple(names)
        interrupts |= bool(options.pop("interrupts", False))
        counters |= bool(options.pop("counters", False))
        if mark.args or options:
            unknown = ", ".join([*map(repr, mark.args), *options])
            raise pytest.UsageError(f"{item.nodeid}: {unknown}? The marker is {MARKER}")
        for name in names:
            if name not in LABS:
                raise pytest.UsageError(
                    f"{item.nodeid}: kvm(arch={name!r}): there are {', '.join(LABS)}"
                )
        if names:
            arch = names if arch is None else tuple(name for name in arch if name in names)
            if not arch:
                raise pytest.UsageError(f"{item.nodeid}: no architecture fits all its kvm markers")
    return Need(arch or (), interrupts, counters) if found else None


@cache
def here() -> Offer:
    """What this machine offers."""
    try:
        with Kvm() as kvm:
            arch, backend = kvm.arch, kvm.backend
            counters = _counters(kvm)
    except KvmError as error:
        return Offer(None, name=f"no KVM here: {error}")
    interrupts = backend not in ("pvm", "unknown")
    kind = backend if backend == arch else f"{arch}, {backend}"
    return Offer(arch, interrupts, counters, f"KVM of Linux {os.uname().release} ({kind})")


def _counters(kvm: Kvm) -> bool:
    """Whether a vCPU's instructions are counted by hardware."""
    try:
        with kvm.create_vm() as vm:
            return vm.create_vcpu().counter_error is None
    except UnsupportedError:
        return False
