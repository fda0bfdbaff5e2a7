# SPDX-License-Identifier: MIT
"""Disk images: raw files, memory, and overlays that keep what is written to themselves."""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from typing import Any

SECTOR = 512
_CHUNK = 128  # sectors of an overlay that are copied together


class DiskError(Exception):
    """A disk cannot be opened, or an access to it failed; the message says why."""


class Disk(ABC):
    """A disk of ``sectors`` sectors of 512 bytes. Accesses outside of it raise DiskError."""

    sectors: int
    readonly: bool

    def read(self, sector: int, count: int) -> bytes:
        """The contents of so many sectors."""
        self._check(sector, count)
        return self._read(sector, count)

    def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors. Raises DiskError where the disk is read-only or the host refuses."""
        count, rest = divmod(len(data), SECTOR)
        if rest:
            raise DiskError(f"{len(data)} bytes are not whole sectors")
        if self.readonly:
            raise DiskError("the disk is read-only")
        self._check(sector, count)
        self._write(sector, data)

    def _check(self, sector: int, count: int) -> None:
        if sector < 0 or count < 0 or sector + count > self.sectors:
            raise DiskError(
                f"sectors {sector} to {sector + count - 1}: the disk has {self.sectors}"
            )

    @abstractmethod
    def _read(self, sector: int, count: int) -> bytes: ...

    @abstractmethod
    def _write(self, sector: int, data: bytes) -> None: ...

    def flush(self) -> None:  # noqa: B027
        """Have what was written reach the host's storage."""

    def close(self) -> None:  # noqa: B027
        """Let go of what it holds. Twice does nothing."""

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _whole(size: int, what: str) -> int:
    if not size or size % SECTOR:
        raise DiskError(
            f"{what} has {size} bytes, which are not whole sectors of {SECTOR}:"
            f" make it {-(-size // SECTOR) * SECTOR or SECTOR} bytes long (truncate -s)"
        )
    return size // SECTOR


class FileDisk(Disk):
    """A raw file or block device."""

    def __init__(self, path: str | os.PathLike[str], *, readonly: bool = False) -> None:
        name = os.fspath(path)
        self.readonly = readonly
        flags = os.O_CLOEXEC | (os.O_RDONLY if readonly else os.O_RDWR)
        try:
            self._fd = os.open(name, flags)
        except OSError as error:
            hint = ""
            if not readonly and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
                hint = (
                    f" ({name},ro would open it for reading, {name},overlay keeps what is written)"
                )
            raise DiskError(f"cannot open the disk {name}: {error.strerror}{hint}") from error
        try:
            mode = os.fstat(self._fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise DiskError(f"the disk {name} is neither a file nor a block device")
            self.sectors = _whole(os.lseek(self._fd, 0, os.SEEK_END), f"the disk {name}")
        except BaseException:
            self.close()
            raise
        self.name = name

    def _read(self, sector: int, count: int) -> bytes:
        size, at = count * SECTOR, sector * SECTOR
        try:
            data = os.pread(self._fd, size, at)
            while len(data) < size:
                more = os.pread(self._fd, size - len(data), at + len(data))
                if not more:
                    raise DiskError(f"the disk {self.name} has become shorter")
                data += more
        except OSError as error:
            raise DiskError(f"reading the disk {self.name}: {error.strerror}") from error
        return data

    def _write(self, sector: int, data: bytes) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], sector * SECTOR + done)
        except OSError as error:
            raise DiskError(f"writing the disk {self.name}: {error.strerror}") from error

    def flush(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise DiskError(f"flushing the disk {self.name}: {error.strerror}") from error

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        return f"FileDisk({self.name!r}, readonly={self.readonly})"


class MemoryDisk(Disk):
    """A disk in memory: of a size in bytes, or with the contents of some bytes."""

    def __init__(self, contents: int | bytes | bytearray, *, readonly: bool = False) -> None:
        self.readonly = readonly
        self.data = bytearray(contents)
        self.sectors = _whole(len(self.data), "the disk")

    def _read(self, sector: int, count: int) -> bytes:
        return bytes(self.data[sector * SECTOR : (sector + count) * SECTOR])

    def _write(self, sector: int, data: bytes) -> None:
        self.data[sector * SECTOR : sector * SECTOR + len(data)] = data

    def __repr__(self) -> str:
        return f"MemoryDisk({len(self.data)})"


class OverlayDisk(Disk):
    """A disk over another one, which is only read: what is written stays in ``chunks``.

    chunks: contents by number of chunk, of 64 KiB each (the last one may be shorter).
    """

    readonly = False

    def __init__(self, base: Disk) -> None:
        self.base = base
        self.sectors = base.sectors
        self.chunks: dict[int, bytearray] = {}

    def _parts(self, sector: int, count: int) -> list[tuple[int, int, int]]:
        """The chunks that a range touches: number, first sector in it, how many."""
        parts = []
        while count:
            chunk, first = divmod(sector, _CHUNK)
            size = min(count, _CHUNK - first)
            parts.append((chunk, first, size))
            sector += size
            count -= size
        return parts

    def _read(self, sector: int, count: int) -> bytes:
        if not self.chunks:
            return self.base.read(sector, count)
        pieces = []
        for chunk, first, size in self._parts(sector, count):
            kept = self.chunks.get(chunk)
            if kept is None:
                pieces.append(self.base.read(chunk * _CHUNK + first, size))
            else:
                pieces.append(bytes(kept[first * SECTOR : (first + size) * SECTOR]))
        return b"".join(pieces)

    def _write(self, sector: int, data: bytes) -> None:
        at = 0
        for chunk, first, size in self._parts(sector, len(data) // SECTOR):
            kept = self.chunks.get(chunk)
            if kept is None:
                start = chunk * _CHUNK
                kept = bytearray(self.base.read(start, min(_CHUNK, self.sectors - start)))
                self.chunks[chunk] = kept
            end = at + size * SECTOR
            kept[first * SECTOR : (first + size) * SECTOR] = data[at:end]
            at = end

    def close(self) -> None:
        self.base.close()

    def __repr__(self) -> str:
        return f"OverlayDisk({self.base!r})"


def open_disk(spec: Any) -> Disk:
    """A disk by what names it: a Disk, bytes (a disk in memory), or a file's path.

    A path may end with ``,ro``, for reading only, or ``,overlay``, which keeps what is written in
    memory and the file as it is. Raises DiskError.
    """
    if isinstance(spec, Disk):
        return spec
    if isinstance(spec, bytes | bytearray):
        return MemoryDisk(spec)
    try:
        name = os.fspath(spec)
    except TypeError:
        raise DiskError(f"a disk is a file's path, bytes or a Disk, not {spec!r}") from None
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    path, comma, how = name.rpartition(",")
    if comma and how == "ro":
        return FileDisk(path, readonly=True)
    if comma and how == "overlay":
        return OverlayDisk(FileDisk(path, readonly=True))
    return FileDisk(name)
