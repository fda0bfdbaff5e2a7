# SPDX-License-Identifier: MIT
"""Fixtures that the tests share.

``guest``, ``long_guest`` and ``user_guest`` make running guests out of assembler (guests.py tells
where their parts lie); every VM is closed at the end of its test::

    def test_port(guest):
        g = guest("mov al, 'A'; out 0xe9, al; hlt")
        g.collect(0xE9)
        g.run()
        assert g.out == [ord("A")]
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import guests
import pytest

import kvmcpu
from kvmcpu.lab.targets import target

VCPUS = {"cpu", "guest", "long_guest", "user_guest"}  # fixtures whose code is x86's

Maker = Callable[..., guests.Guest]
Held = Callable[[Callable[[], int], int], None]


def pytest_configure() -> None:
    # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the long sweeps")


@pytest.hookimpl(tryfirst=True)  # the plugin then looks at the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = config.getoption("--slow")
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if not VCPUS.isdisjoint(fixtures):
            item.add_marker(pytest.mark.kvm(arch="x86_64"))
        elif "kvm" in fixtures:
            item.add_marker(pytest.mark.kvm)
        if item.get_closest_marker("lab"):
            item.add_marker(pytest.mark.outside("it starts labs itself"))
            if shutil.which(target().qemu) is None:
                missing = f"{target().qemu_package} is not installed: tools/install-packages lab"
                item.add_marker(pytest.mark.skip(reason=missing))
        for mark in item.iter_markers("outside"):
            if os.uname().nodename.startswith("lab-"):
                item.add_marker(pytest.mark.skip(reason=f"not in a lab: {mark.args[0]}"))
        if item.get_closest_marker("slow") and not slow:
            item.add_marker(pytest.mark.skip(reason="a long sweep: run with --slow"))


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the processor is emulated, compiling the package takes as long as all else that a
    process of a test does: they keep what the first one compiled, whatever the environment says."""
    with pytest.MonkeyPatch.context() as patch:
        if guests.EMULATED:
            patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("compiled")))
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(scope="session")
def kvm() -> Iterator[kvmcpu.Kvm]:
    """The host's KVM, one for the session: the kernel takes long to list the supported CPUID."""
    with kvmcpu.Kvm() as kvm:
        yield kvm


@pytest.fixture
def vm(kvm: kvmcpu.Kvm) -> Iterator[kvmcpu.VM]:
    """An empty VM."""
    with kvm.create_vm() as vm:
        yield vm


@pytest.fixture
def cpu(vm: kvmcpu.VM) -> kvmcpu.Vcpu:
    """A vCPU of ``vm``, which gets 1 MiB of memory: real mode, about to run ORIGIN's ``hlt``."""
    ram = vm.add_memory(0, "1MiB")
    ram[guests.ORIGIN] = 0xF4
    cpu = vm.create_vcpu()
    guests.x86_start.real(cpu, guests.ORIGIN, stack=guests.ORIGIN)
    return cpu


def _maker(kvm: kvmcpu.Kvm, make: Callable[..., guests.Guest]) -> Iterator[Maker]:
    made: list[guests.Guest] = []

    def maker(code: str | bytes, **options: Any) -> guests.Guest:
        made.append(make(kvm, code, **options))
        return made[-1]

    yield maker
    for guest in made:
        guest.vm.close()


@pytest.fixture
def guest(kvm: kvmcpu.Kvm) -> Iterator[Maker]:
    """``guest(code, *, memory="1MiB", irqchip=False, **vcpu)``: in real mode."""
    yield from _maker(kvm, guests.real_guest)


@pytest.fixture
def long_guest(kvm: kvmcpu.Kvm) -> Iterator[Maker]:
    """``long_guest(code, *, handlers={}, memory="2MiB", **vcpu)``: 64-bit mode, ring 0."""
    yield from _maker(kvm, guests.long_guest)


@pytest.fixture
def user_guest(kvm: kvmcpu.Kvm) -> Iterator[Maker]:
    """``user_guest(code, *, handlers={}, memory="2MiB", **vcpu)``: 64-bit mode, ring 3."""
    yield from _maker(kvm, partial(guests.long_guest, user=True))


@pytest.fixture
def interpreter_held() -> Held:
    """``interpreter_held(number, by)`` waits until a number grows, and then by so much more, for
    which it lets no other thread have the interpreter lock: what needs the lock stands still."""

    def held(number: Callable[[], int], by: int) -> None:
        begin, end = number(), time.monotonic() + 60
        while number() == begin:
            assert time.monotonic() < end, "it does not begin"
            time.sleep(0.001)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000)  # seconds: for how long nobody may ask for the lock
        try:
            wanted, end = number() + by, time.monotonic() + 60
            while number() < wanted:
                assert time.monotonic() < end, "it waits for the interpreter"
        finally:
            sys.setswitchinterval(interval)

    return held
