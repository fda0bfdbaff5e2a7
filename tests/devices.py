# SPDX-License-Identifier: MIT
"""A device under test: on a board of its own, its registers accessed as a guest accesses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import kvmcpu
from kvmcpu.boards import Board
from kvmcpu.devices import Device


class Bench(Board):
    """A board without standard devices: interrupt controllers, timer, memory from 0."""

    name = "bench"
    arch = "x86_64"

    @classmethod
    def standard_devices(cls) -> list[Device]:
        return []

    def build(self) -> None:
        self.vm.create_irqchip()
        self.vm.create_pit()
        self.vm.add_memory(0, self.memory)


@contextmanager
def bench(
    kvm: kvmcpu.Kvm, *devices: Device, memory: int = 2 << 20, cpus: int = 1
) -> Iterator[Bench]:
    """A board with devices. ``board.ended`` lists what ended its machine."""
    ended: list[tuple[str, int | None]] = []
    with kvm.create_vm() as vm:
        vm.unassigned = "ones"
        board = Bench(
            vm,
            memory=memory,
            cpus=cpus,
            output=kvmcpu.ByteSink(),
            on_end=lambda reason, code: (ended.append((reason, code)), vm.stop()),
        )
        board.ended = ended
        for device in devices:
            board.add(device)
        yield board
        for device in board.devices:
            device.detach()


class Ports:
    """Port accesses of a board's devices, from Python, without a guest: by port number."""

    def __init__(self, board: Board) -> None:
        self._windows = [w for d in board.devices for w in d._windows.values()]

    def find(self, port: int):
        for window in self._windows:
            first = window.range.address(window._device)
            if first <= port < first + window.range.size:
                return window, port - first
        raise LookupError(hex(port))

    def read(self, port: int, size: int = 1) -> int:
        window, offset = self.find(port)
        value = window.read(offset, size)
        assert 0 <= value < 1 << 8 * size, (hex(port), value)
        return value

    def write(self, port: int, value: int, size: int = 1) -> None:
        window, offset = self.find(port)
        window.write(offset, size, value)

    def read_string(self, port: int, size: int, count: int) -> bytes:
        window, offset = self.find(port)
        data = window.read_string(offset, size, count)
        assert len(data) == size * count
        return data

    def write_string(self, port: int, size: int, data: bytes) -> None:
        window, offset = self.find(port)
        window.write_string(offset, size, data)

    def all(self) -> list[int]:
        """Every port that a device has."""
        return [
            port
            for window in self._windows
            for port in range(
                window.range.address(window._device),
                window.range.address(window._device) + window.range.size,
            )
        ]


def settle(board: Board) -> None:
    """Call what devices have scheduled for now, as a CPU's thread would."""
    board.vm.queue.service()
