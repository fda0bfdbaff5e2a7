# SPDX-License-Identifier: MIT
"""A debug console: a port to which a guest writes text, without any protocol."""

from __future__ import annotations

from dataclasses import dataclass

from kvmcpu.devices.base import Device, Ports, Register


@dataclass(eq=False, kw_only=True)
class DebugConsole(Device):
    """A byte written to ``port`` is output; reading gives 0xe9, by which guests find it (Bochs)."""

    port: int = 0xE9

    ports = Ports("port", 1, output=True)
    presence = Register(ports, 0, access="r", reset=0xE9)
