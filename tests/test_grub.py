# SPDX-License-Identifier: MIT
"""Real software: SeaBIOS finds a disk, GRUB 2 boots from it, and loads a kernel."""

from __future__ import annotations

from pathlib import Path

import grub_disk
import pytest
from test_system import kernel  # noqa: F401

from kvmcpu import System

FIRMWARE = Path("/usr/share/seabios/bios.bin")
pytestmark = [
    pytest.mark.kvm(arch="x86_64"),
    pytest.mark.skipif(not FIRMWARE.exists(), reason=f"no {FIRMWARE} (Debian: seabios)"),
    pytest.mark.skipif(
        not grub_disk.GRUB.exists(), reason="no GRUB (Debian: grub-pc-bin, grub-common, mtools)"
    ),
]
PROMPT = r"grub> "


def test_grub(kernel, tmp_path) -> None:  # noqa: F811
    disk = tmp_path / "disk.img"
    grub_disk.make(disk, {"hello.txt": b"Hello from the disk\n", "kernel.elf": kernel.read_bytes()})
    before = disk.read_bytes()

    def start() -> System:
        system = System(memory="32MiB", firmware=FIRMWARE, disks=[f"{disk},overlay"])
        system.start()
        system.console.expect(PROMPT, 120)
        return system

    def ask(system: System, line: str) -> str:
        system.console.send(line + "\r")
        return system.console.expect(f"(.*){PROMPT}", 60).group(1)

    with start() as system:
        assert "(hd0) (hd0,msdos1)" in ask(system, "ls")
        assert "Device hd0: No known filesystem detected" in ask(system, "ls (hd0)")
        assert "Filesystem type fat" in ask(system, "ls (hd0,msdos1)")
        assert "forty two" in ask(system, "echo forty two")
        assert "Hello from the disk" in ask(system, "cat (hd0,msdos1)/hello.txt")
        system.console.send("halt\r")
        assert system.wait(60).reason == "power-off"  # by the ACPI tables
    with start() as system:
        ask(system, "multiboot (hd0,msdos1)/kernel.elf from grub")
        system.console.send("boot\r")
        system.console.expect("try help\r\n> ", 60)
        system.console.send("args\n")
        system.console.expect("command line: .*from grub", 30)
        system.console.send("exit 0\n")
        assert system.wait(10).exit_code == 0
    assert disk.read_bytes() == before
