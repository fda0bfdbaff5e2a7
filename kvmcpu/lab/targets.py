# SPDX-License-Identifier: MIT
"""The machines that a lab can be: for each architecture, QEMU's options and Debian's names."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from kvmcpu.lab.errors import LabError


@dataclass(frozen=True)
class Target:
    """An architecture: QEMU's machine with virtualization extensions, and the Linux on it."""

    name: str
    debian: str
    """Debian's name of the architecture."""
    triplet: str
    """The compilers' and the multiarch directories' name."""
    qemu: str
    qemu_package: str
    machine: tuple[str, ...]
    """QEMU's options: the machine and a CPU with virtualization extensions."""
    append: str
    """The kernel's command line."""
    kernel: str
    """The Debian package that depends on the newest kernel."""
    modules: tuple[str, ...]
    """The kernel's modules for KVM; those that the architecture builds in are left out silently."""
    suite: str | None = None
    """Debian's release that has the architecture; None: the machine's own."""
    firmware: tuple[str, str] | None = None
    """A file that QEMU needs beside itself, and its package."""


_QUIET = "quiet panic=-1 mitigations=off rodata=off cryptomgr.notests"

TARGETS = {
    target.name: target
    for target in (
        Target(
            name="x86_64",
            debian="amd64",
            triplet="x86_64-linux-gnu",
            qemu="qemu-system-x86_64",
            qemu_package="qemu-system-x86",
            machine=("-M", "q35", "-cpu", "max"),
            append=f"console=ttyS0 {_QUIET} tsc=reliable no_timer_check",
            kernel="linux-image-amd64",
            modules=("kvm-amd",),
        ),
        Target(
            name="arm64",
            debian="arm64",
            triplet="aarch64-linux-gnu",
            qemu="qemu-system-aarch64",
            qemu_package="qemu-system-arm",
            machine=(
                *("-M", "virt,virtualization=on,gic-version=3"),
                *("-cpu", "max,pauth-impdef=on"),
            ),
            append=f"console=ttyAMA0 {_QUIET}",
            kernel="linux-image-arm64",
            modules=(),
            suite="trixie",
        ),
        Target(
            name="riscv64",
            debian="riscv64",
            triplet="riscv64-linux-gnu",
            qemu="qemu-system-riscv64",
            qemu_package="qemu-system-misc",
            machine=("-M", "virt", "-cpu", "rv64,h=true"),
            append=f"console=ttyS0 {_QUIET}",
            kernel="linux-image-riscv64",
            modules=("kvm",),
            suite="trixie",
            firmware=("opensbi-riscv64-generic-fw_dynamic.bin", "opensbi"),
        ),
    )
}

# What every lab's kernel needs: the host's directories, and the ports to the host.
SHARED_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")

_OTHER_NAMES = {"amd64": "x86_64", "aarch64": "arm64"}


def host() -> str:
    """This machine's architecture, by our name."""
    machine = platform.machine().lower()
    return _OTHER_NAMES.get(machine, machine)


def target(name: str | None = None) -> Target:
    """The target of that name; None: this machine's architecture. Raises LabError."""
    name = name or host()
    name = _OTHER_NAMES.get(name, name)
    if name not in TARGETS:
        raise LabError(f"there is no lab for {name!r}, only for {', '.join(TARGETS)}")
    return TARGETS[name]
