# SPDX-License-Identifier: MIT
"""Flat binaries: the file is copied to an address and entered at its first byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kvmcpu.loaders.base import LoadError, Start, check_ram

if TYPE_CHECKING:
    from kvmcpu._kvm import VM

LOAD_ADDRESS = 0x1000


class FlatImage:
    """A flat binary. mode is the one in which it is entered."""

    kind = "flat binary"

    def __init__(
        self,
        data: bytes,
        *,
        address: int = LOAD_ADDRESS,
        mode: Literal["real", "protected", "long"] = "real",
    ) -> None:
        if not data:
            raise LoadError("the image is empty")
        limit = {"real": 1 << 20, "protected": 1 << 32, "long": 1 << 48}[mode]
        if not 0 <= address < limit:
            raise LoadError(f"a guest cannot be entered in {mode} mode at {address:#x}")
        self.data = data
        self.address = address
        self.mode: Literal["real", "protected", "long"] = mode

    def load(self, vm: VM) -> Start:
        part = (self.address, self.address + len(self.data))
        check_ram(vm, part, "the image")
        vm.write(self.address, self.data)
        return Start(self.mode, self.address, (part,))
