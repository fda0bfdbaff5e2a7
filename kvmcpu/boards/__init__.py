# SPDX-License-Identifier: MIT
"""Boards: a memory map and devices, one file each."""

from kvmcpu.boards.base import Board, Irq
from kvmcpu.boards.pc import Pc

BOARDS: dict[str, type[Board]] = {Pc.name: Pc}
"""The boards by name."""

__all__ = ["BOARDS", "Board", "Irq", "Pc"]
