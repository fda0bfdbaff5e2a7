# SPDX-License-Identifier: MIT
"""Loaders: each turns a file into guest memory and a start state.

::

    image = loaders.open_image("hello.elf")
    start = image.load(vm)              # memory
    start.begin(vm, cpu, ["-v"])        # registers, descriptor and page tables
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from kvmcpu.lazy import later
from kvmcpu.loaders.base import Loader, LoadError, Start, contents

if TYPE_CHECKING:
    from kvmcpu.loaders.elf import ElfImage
    from kvmcpu.loaders.firmware import Firmware
    from kvmcpu.loaders.flat import FlatImage
    from kvmcpu.loaders.multiboot import Module, MultibootImage
    from kvmcpu.loaders.multiboot2 import Multiboot2Image
else:
    __getattr__, __dir__ = later(
        globals(),
        {
            "ElfImage": "elf",
            "Firmware": "firmware",
            "FlatImage": "flat",
            "Module": "multiboot",
            "MultibootImage": "multiboot",
            "Multiboot2Image": "multiboot2",
        },
    )

__all__ = [
    "Loader",
    "LoadError",
    "Start",
    "ElfImage",
    "Firmware",
    "FlatImage",
    "Module",
    "Multiboot2Image",
    "MultibootImage",
    "open_firmware",
    "open_image",
]

# Files that are often tried and cannot work: where their magic bytes are, and what they are.
_OTHERS = (
    (0x202, b"HdrS", "a Linux kernel, which needs a boot loader that this version has not"),
    (0, b"\x1f\x8b", "compressed (gzip): unpack it first"),
    (0, b"\xfd7zXZ\0", "compressed (xz): unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed (zstd): unpack it first"),
    (0, b"PK\3\4", "a zip archive"),
    (0, b"!<arch>\n", "a library and not a program"),
    (0, b"QFI\xfb", "a disk image (qcow2)"),
)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        if not os.path.exists(path) or os.path.isfile(path):
            return contents(path)
    except OSError as error:
        raise LoadError(f"cannot read {os.fspath(path)}: {error.strerror}") from error
    raise LoadError(f"{os.fspath(path)} is not a regular file")


def _is_text(data: bytes) -> bool:
    try:
        text = data[:4096].decode("ascii")
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c in "\t\n\r\f" for c in text)


def open_image(
    path: str | os.PathLike[str],
    *,
    mode: Literal["real", "protected", "long"] | None = None,
    address: int | None = None,
    modules: Sequence[Any] = (),
) -> Loader:
    """A loader for a file, by what is in it: a multiboot kernel, an ELF executable, a flat binary.

    modules are for a multiboot kernel: paths, or pairs of a path and a command line. mode and
    address say where and how a flat binary is entered, by default in real mode at 0x1000; with
    one of them any file is taken for a flat binary, otherwise not one that looks like something
    else, such as text. Raises LoadError.
    """
    from kvmcpu.loaders import elf, multiboot, multiboot2
    from kvmcpu.loaders.flat import LOAD_ADDRESS, FlatImage

    data = _read(path)
    name = os.fspath(path)
    try:
        if mode is None and address is None:
            for version, kernel in (
                (multiboot2, multiboot2.Multiboot2Image),
                (multiboot, multiboot.MultibootImage),
            ):
                if version.find_header(data) is not None:
                    return kernel(data, os.path.basename(name), modules)
        if modules:
            raise LoadError("it is no multiboot kernel, and modules are for those")
        if data.startswith(elf.MAGIC):
            if mode is not None or address is not None:
                raise LoadError("an ELF file says itself in which mode and where it is loaded")
            return elf.ElfImage(data)
        if mode is None and address is None and data:
            for offset, magic, what in _OTHERS:
                if data.startswith(magic, offset):
                    raise LoadError(f"it is {what}")
            if _is_text(data):
                raise LoadError("it is text and not a guest (--mode real runs it all the same)")
        return FlatImage(
            data, address=LOAD_ADDRESS if address is None else address, mode=mode or "real"
        )
    except LoadError as error:
        raise LoadError(f"{name}: {error}") from error


def open_firmware(path: str | os.PathLike[str]) -> Loader:
    """A loader for a PC's firmware. Raises LoadError."""
    from kvmcpu.loaders.firmware import Firmware

    data = _read(path)
    try:
        return Firmware(data)
    except LoadError as error:
        raise LoadError(f"{os.fspath(path)}: {error}") from error
