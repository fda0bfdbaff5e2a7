# SPDX-License-Identifier: MIT
"""What a board is: a memory map, interrupt lines, and the devices on its bus."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from kvmcpu.devices.base import Device

if TYPE_CHECKING:
    from kvmcpu._kvm import VM, ByteSink, Event

D = TypeVar("D", bound=Device)

End = Literal["exit", "power-off", "reset"]


class Irq:
    """An interrupt line of the kernel's controllers."""

    def __init__(self, vm: VM, gsi: int) -> None:
        self._vm = vm
        self.gsi = gsi
        self.level = False

    def set(self, level: bool) -> None:
        """Raise or lower the line, from any thread; nothing, where it is so already."""
        if level != self.level:
            self.level = level
            self._vm.irq_line(self.gsi, int(level))

    def pulse(self) -> None:
        """Lower, if need be, and raise it: an edge."""
        self.set(False)
        self.set(True)


class Board(ABC):
    """A machine's board, made for one VM. Subclasses say what is on it.

    vm: a VM without memory and vCPUs. memory: bytes of RAM. cpus: how many there will be. output:
    what consoles write to. on_end: called as ``on_end(reason, code)`` when the guest ends its
    machine.
    """

    name: ClassVar[str]
    arch: ClassVar[str]  # as Kvm.arch has it

    def __init__(
        self,
        vm: VM,
        *,
        memory: int,
        cpus: int,
        output: ByteSink,
        on_end: Callable[[End, int | None], None],
    ) -> None:
        self.vm = vm
        self.memory = memory
        self.cpus = cpus
        self.output = output
        self._on_end = on_end
        self._lines: dict[int, Irq] = {}
        self.devices: list[Device] = []
        self.build()

    @classmethod
    @abstractmethod
    def standard_devices(cls) -> list[Device]:
        """The devices that a board has which was not told its devices."""

    @abstractmethod
    def build(self) -> None:
        """Give the VM its memory and what the kernel provides: interrupt controllers, timers."""

    def add(self, device: Device) -> None:
        """Attach a device. Raises DeviceError if something is there already."""
        device.attach(self)
        self.devices.append(device)

    def complete(self) -> None:  # noqa: B027
        """Called when all devices are there, before anything is loaded."""

    def irq(self, gsi: int) -> Irq:
        """An interrupt line; the same object for all who share it."""
        return self._lines.setdefault(gsi, Irq(self.vm, gsi))

    def find(self, kind: type[D]) -> D | None:
        """The first device of a kind."""
        return next((d for d in self.devices if isinstance(d, kind)), None)

    def schedule(self, callback: Callable[[], object], delay: int | str) -> Event:
        """Call back after a time, in ticks or such as "10ms", on a vCPU's thread."""
        return self.vm.queue.schedule(callback, delay=delay)

    def end(self, reason: End, code: int | None = None) -> None:
        """The guest ends its machine: its status, power-off, or a reset."""
        self._on_end(reason, code)
