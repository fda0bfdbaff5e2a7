# SPDX-License-Identifier: MIT
"""Boards: a memory map and devices, one file each."""

from kvmcpu.boards.base import Board, Irq

__all__ = ["Board", "Irq"]
