# SPDX-License-Identifier: MIT
"""raw.c by ctypes, which lets go of the interpreter lock for each call."""

from __future__ import annotations

import os
from ctypes import CDLL, POINTER, c_char, c_double, c_int, c_long, c_size_t, c_void_p
from pathlib import Path


def checked(value: float) -> float:
    """What a function of raw.c returned: a time, or an OSError if it is a negative number."""
    if value < 0:
        raise OSError(-int(value), os.strerror(-int(value)), "raw.c")
    return value


class Raw:
    """The library, with the device open."""

    def __init__(self, libraries: Path, device: str = "/dev/kvm") -> None:
        self._lib = lib = CDLL(str(libraries / "libraw.so"))
        lib.raw_guest.restype = lib.raw_ram.restype = c_void_p
        for name in ("run_to_halt", "half_entries", "lives", "copy", "steps", "run_periodically"):
            getattr(lib, f"raw_{name}").restype = c_double
        lib.raw_guest.argtypes = (c_void_p, c_size_t)
        lib.raw_copy.argtypes = (c_void_p, c_void_p, c_size_t)
        lib.raw_read_registers.argtypes = (c_void_p, c_int, POINTER(c_double))
        lib.raw_lateness.argtypes = (c_void_p, c_int, c_long, POINTER(c_double))
        lib.raw_run_periodically.argtypes = (c_void_p, c_long)
        for name in ("half_entries", "steps"):
            getattr(lib, f"raw_{name}").argtypes = (c_void_p, c_int)
        for name in ("run_to_halt", "free", "ram"):
            getattr(lib, f"raw_{name}").argtypes = (c_void_p,)
        checked(lib.raw_open(device.encode()))

    def guest(self, code: bytes) -> RawGuest:
        return RawGuest(self._lib, code)

    def lives(self, n: int) -> float:
        return checked(self._lib.raw_lives(n)) / n

    def copy(self, to: int, source: int, size: int) -> float:
        return checked(self._lib.raw_copy(to, source, size))


class RawGuest:
    """A guest in real mode with 1 MiB of memory. Times are in ns, of one piece of the work."""

    def __init__(self, lib: CDLL, code: bytes) -> None:
        self._lib = lib
        self._guest = lib.raw_guest(code, len(code))
        if not self._guest:
            raise OSError("raw.c could not make a guest")
        self.ram = (c_char * (1 << 20)).from_address(lib.raw_ram(self._guest))

    def run_to_halt(self) -> float:
        return checked(self._lib.raw_run_to_halt(self._guest))

    def half_entries(self, n: int) -> float:
        return checked(self._lib.raw_half_entries(self._guest, n)) / n

    def read_registers(self, n: int) -> list[float]:
        times = (c_double * n)()
        checked(self._lib.raw_read_registers(self._guest, n, times))
        return list(times)

    def steps(self, n: int) -> float:
        return checked(self._lib.raw_steps(self._guest, n)) / n

    def lateness(self, n: int, ns: int) -> list[float]:
        late = (c_double * n)()
        checked(self._lib.raw_lateness(self._guest, n, ns, late))
        return list(late)

    def run_periodically(self, interval: int) -> float:
        return checked(self._lib.raw_run_periodically(self._guest, interval))

    def close(self) -> None:
        self._lib.raw_free(self._guest)
