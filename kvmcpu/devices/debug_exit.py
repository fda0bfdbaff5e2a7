# SPDX-License-Identifier: MIT
"""The debug exit: a port by which a guest ends its machine with a status."""

from __future__ import annotations

from dataclasses import dataclass

from kvmcpu.devices.base import Device, Ports, Register


@dataclass(eq=False, kw_only=True)
class DebugExit(Device):
    """What is written to ``port``, 1, 2 or 4 bytes, is the guest's status, and its end."""

    port: int = 0xF4

    ports = Ports("port", 4)
    status = Register(ports, 0, 4, access="w")

    @status.write
    def end(self, value: int) -> None:
        self.board.end("exit", value)
