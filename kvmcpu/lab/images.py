# SPDX-License-Identifier: MIT
"""What a lab is started from, made once and kept in the user's cache directory.

Each image is a directory whose name has a hash of what it was made from; it is made under another
name and renamed when it is whole, so that whoever finds it may use it. Nobody writes to it then.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import lzma
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob

from kvmcpu.lab import debian, initramfs
from kvmcpu.lab.errors import LabError
from kvmcpu.lab.targets import SHARED_MODULES, Target

Progress = debian.Progress
_RECIPE = 1  # to be counted up when the same input makes another image


@dataclass(frozen=True)
class Kernel:
    """What QEMU boots: a kernel and its first file system."""

    kernel: str
    initramfs: str


def cache() -> str:
    """The directory of the images."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "kvmcpu", "lab")


def key(*parts: object) -> str:
    """A name for what is made from these parts."""
    return hashlib.sha256(repr((_RECIPE, *parts)).encode()).hexdigest()[:12]


@contextmanager
def _locked(name: str) -> Iterator[None]:
    with open(os.path.join(cache(), f".{name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made(name: str, make: Callable[[str], None], *, keep: int | None = None) -> str:
    """The image of that name, made if it is not there yet.

    keep: of those with another key at most so many are left, the newest.
    """
    path = os.path.join(cache(), name)
    if os.path.isdir(path):
        return path
    try:
        os.makedirs(cache(), exist_ok=True)
        with _locked(name):
            if not os.path.isdir(path):
                new = tempfile.mkdtemp(prefix=f".{name}-", dir=cache())
                try:
                    make(new)
                    os.chmod(new, 0o755)
                    os.rename(new, path)
                    if keep is not None:
                        _prune(name.rpartition("-")[0], keep)
                except BaseException:
                    shutil.rmtree(new, ignore_errors=True)
                    raise
    except OSError as error:
        raise LabError(f"the lab's image {path} cannot be made: {error.strerror}") from error
    return path


def _prune(prefix: str, keep: int) -> None:
    found = sorted(glob(os.path.join(cache(), f"{prefix}-*")), key=os.path.getmtime)
    for path in found[: -keep - 1]:
        shutil.rmtree(path, ignore_errors=True)


def kernel(target: Target, progress: Progress) -> Kernel:
    """Debian's newest kernel for that architecture, as it was when the image was made."""
    suite = target.suite
    hashed = key(target.kernel, target.modules, suite or debian.codename(), initramfs.INIT)

    def make(new: str) -> None:
        apt = debian.Apt(os.path.join(new, "apt"), target.debian, suite, progress)
        apt.update()
        package = apt.newest(target.kernel)
        files = apt.download(package, "busybox-static")
        unpacked = os.path.join(new, "unpacked")
        for file in files:
            debian.unpack(file, unpacked)
        (found,) = glob(os.path.join(unpacked, "boot", "vmlinu*"))
        (modules,) = glob(os.path.join(unpacked, "lib/modules/*")) or glob(
            os.path.join(unpacked, "usr/lib/modules/*")
        )
        busybox = next(
            path
            for path in (os.path.join(unpacked, at, "busybox") for at in ("bin", "usr/bin"))
            if os.path.exists(path)
        )
        _bootable(new, target, found, modules, busybox)
        with open(os.path.join(new, "contents"), "w", encoding="utf-8") as list_:
            list_.writelines(f"{debian.name(deb)}\n" for deb in files)
        shutil.rmtree(os.path.join(new, "apt"))
        shutil.rmtree(unpacked)

    path = made(f"kernel-{target.name}-{hashed}", make)
    return Kernel(os.path.join(path, "kernel"), os.path.join(path, "initramfs"))


def own_kernel(target: Target, path: str, modules: str | None, busybox: str) -> Kernel:
    """A kernel of the user's own. modules: its directory in lib/modules, None: none needed."""
    inputs = [path, busybox, *([modules] if modules else [])]
    try:
        stamps = [(os.path.realpath(name), os.stat(name).st_mtime_ns) for name in inputs]
    except OSError as error:
        raise LabError(f"{error.filename}: {error.strerror}") from error

    def make(new: str) -> None:
        _bootable(new, target, path, modules, busybox)
        with open(os.path.join(new, "contents"), "w", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name, _ in stamps)

    hashed = key(stamps, target.modules, initramfs.INIT)
    image = made(f"kernel-{target.name}-{hashed}", make)
    return Kernel(os.path.join(image, "kernel"), os.path.join(image, "initramfs"))


def _bootable(new: str, target: Target, kernel: str, modules: str | None, busybox: str) -> None:
    with open(kernel, "rb") as file:
        image = file.read()
    with open(os.path.join(new, "kernel"), "wb") as file:
        file.write(_unpacked(image) or image)
    wanted = (*SHARED_MODULES, *target.modules)
    found = initramfs.find_modules(modules, wanted) if modules else ()
    with open(busybox, "rb") as file:
        tool = file.read()
    with open(os.path.join(new, "initramfs"), "wb") as file:
        file.write(initramfs.archive(tool, found))


def _unpacked(image: bytes) -> bytes | None:
    """The ELF file in a bzImage; None where there is none, or nothing here can unpack it.

    An emulated CPU would take seconds to unpack it at each start. QEMU starts the ELF file itself
    by its PVH entry (Documentation/arch/x86/boot.rst: setup_sects, payload_offset and _length).
    """
    if image[0x202:0x206] != b"HdrS":
        return None
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    at = (sectors + 1) * 512 + offset
    payload = image[at : at + length]
    try:
        if payload.startswith(b"\xfd7zXZ\0"):
            elf = lzma.LZMADecompressor().decompress(payload)
        elif payload.startswith(b"\x1f\x8b"):
            elf = gzip.decompress(payload[:-4])
        elif payload.startswith(b"\x28\xb5\x2f\xfd"):
            elf = initramfs.zstd(payload)
        else:
            return None
    except (LabError, OSError, lzma.LZMAError):
        return None
    return elf if elf.startswith(b"\x7fELF") else None


@dataclass(frozen=True)
class Image:
    """An image in the cache."""

    name: str
    size: int
    """Bytes on disk."""
    contents: str


def images() -> list[Image]:
    """What the cache has."""
    result = []
    for path in sorted(glob(os.path.join(cache(), "*"))):
        if not os.path.isdir(path):
            continue
        size = 0
        for folder, _, files in os.walk(path):
            for name in files:
                info = os.lstat(os.path.join(folder, name))
                size += info.st_blocks * 512 if stat.S_ISREG(info.st_mode) else 0
        try:
            with open(os.path.join(path, "contents"), encoding="utf-8") as file:
                contents = ", ".join(file.read().split("\n")[:2])
        except OSError:
            contents = ""
        result.append(Image(os.path.basename(path), size, contents.strip(", ")))
    return result


def clean() -> int:
    """Remove all images; returns the bytes that this freed."""
    freed = sum(image.size for image in images())
    shutil.rmtree(cache(), ignore_errors=True)
    return freed
