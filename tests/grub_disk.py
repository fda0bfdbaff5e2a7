# SPDX-License-Identifier: MIT
"""Makes a disk image from which GRUB 2 boots on a PC, without root, mounts or loop devices.

    python tests/grub_disk.py DISK.IMG [FILE…]

An MBR with GRUB's boot sector, its core image in the gap behind it (built by grub-mkimage), and one
FAT partition with GRUB's modules and the files, made by mtools. GRUB's terminal is the serial port.
The core image is compressed and unpacked slowly where the guest is emulated: it holds only what it
takes to load the rest. Debian packages: grub-common, grub-pc-bin, mtools.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

GRUB = Path("/usr/lib/grub/i386-pc")
SECTOR = 512
FIRST = 256  # sector at which the partition begins
CONFIG = """\
insmod serial
insmod terminal
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
"""
BUILT_IN = ("biosdisk", "part_msdos", "fat")
MODULES = ("normal", "serial", "terminal", "echo", "ls", "cat", "halt", "multiboot", "boot")
_KERNEL_SECTOR = 0x5C  # in the boot sector: where the core image begins (GRUB's boot.S)
_PARTITIONS = 0x1BE
_FAT = 0x0E  # FAT16, LBA


def core_image() -> bytes:
    """GRUB's core with what the tests type, and its configuration."""
    with tempfile.TemporaryDirectory() as name:
        config, image = Path(name) / "grub.cfg", Path(name) / "core.img"
        config.write_text(CONFIG)
        command = ["grub-mkimage", "-O", "i386-pc", "-d", GRUB, "-c", config, "-o", image]
        subprocess.run([*command, "-p", "(hd0,msdos1)/grub", *BUILT_IN], check=True)
        return image.read_bytes()


def modules() -> dict[str, bytes]:
    """The modules that the tests want, and those that they need (moddep.lst), by path."""
    needs = {}
    for line in (GRUB / "moddep.lst").read_text().splitlines():
        name, _, wanted = line.partition(":")
        needs[name] = wanted.split()
    found: dict[str, bytes] = {}
    todo = list(MODULES)
    while todo:
        name = todo.pop()
        if name not in found and name not in BUILT_IN:
            found[name] = (GRUB / f"{name}.mod").read_bytes()
            todo += needs.get(name, [])
    files = {f"{name}.mod": data for name, data in found.items()}
    files["command.lst"] = (GRUB / "command.lst").read_bytes()  # which module has which command
    return {f"grub/i386-pc/{name}": data for name, data in files.items()}


def make(path: str | os.PathLike[str], files: Mapping[str, bytes], size: int = 2 << 20) -> None:
    """Write a disk image of so many bytes, with files in the root of its partition."""
    core = core_image()
    if len(core) > (FIRST - 1) * SECTOR:
        raise RuntimeError(
            f"GRUB's core has {len(core)} bytes and does not fit before the partition"
        )
    image = bytearray(size)
    image[:SECTOR] = (GRUB / "boot.img").read_bytes()
    struct.pack_into("<Q", image, _KERNEL_SECTOR, 1)
    image[_PARTITIONS:510] = bytes(64)  # GRUB has code for floppies there
    sectors = size // SECTOR - FIRST
    struct.pack_into("<8B2I", image, _PARTITIONS, 0x80, 0, 2, 0, _FAT, 0xFF, 0xFF, 0xFF,
                     FIRST, sectors)  # fmt: skip
    image[510:512] = b"\x55\xaa"
    image[SECTOR : SECTOR + len(core)] = core
    Path(path).write_bytes(image)
    drive = f"{os.fspath(path)}@@{FIRST * SECTOR}"
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    subprocess.run(
        ["mformat", "-i", drive, "-T", str(sectors), "-h", "16", "-s", "63", "::"],
        check=True,
        env=environment,
    )
    for directory in ("grub", "grub/i386-pc"):
        subprocess.run(["mmd", "-i", drive, f"::{directory}"], check=True, env=environment)
    for name, data in {**modules(), **files}.items():
        command = ["mcopy", "-i", drive, "-", f"::{name}"]
        subprocess.run(command, input=data, check=True, env=environment)


if __name__ == "__main__":
    make(sys.argv[1], {Path(name).name: Path(name).read_bytes() for name in sys.argv[2:]})
