# SPDX-License-Identifier: MIT
"""A whole system: a VM, its CPUs, a board with devices, and what is loaded into it.

::

    with System(memory="64MiB") as system:
        system.load("guest.elf")
        result = system.run(timeout=10)
        assert result.exit_code == 0, system.console.text

Each CPU runs on a thread of its own, so that all of this can also be done in the background:
``start()``, ``pause()``, ``resume()``, ``stop()``, ``wait()``, and ``await system``.
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from kvmcpu._kvm import (
    VM,
    GuestError,
    Kvm,
    ShutdownError,
    StateError,
    SystemEventExit,
    Vcpu,
    parse_size,
)
from kvmcpu.boards import BOARDS
from kvmcpu.boards.base import Board, End
from kvmcpu.console import Console, ConsoleClosed, ConsoleTimeout
from kvmcpu.devices import AtaController, Device, Serial16550
from kvmcpu.loaders import LoadError, Start, open_firmware, open_image
from kvmcpu.loaders.base import Loader

if TYPE_CHECKING:
    import asyncio

    from kvmcpu.loaders import Module

Reason = Literal[
    "exit",
    "power-off",
    "reset",
    "triple-fault",
    "crash",
    "idle",
    "timeout",
    "ticks",
    "until",
    "paused",
    "stopped",
]
# KVM_SYSTEM_EVENT_* (Linux, include/uapi/linux/kvm.h)
_SYSTEM_EVENTS: dict[int, Reason] = {1: "power-off", 2: "reset", 3: "crash"}

_MP_HALTED = 3  # KVM_MP_STATE_HALTED; 1 and 2 wait to be started by another CPU
_MP_WAITING = (1, 2)
_RFLAGS_IF = 1 << 9

# s; a stop that comes before a run has begun does nothing, and is tried again
_STOP_FIRST, _STOP_AGAIN = 0.0002, 0.005
_QUIET = 0.1  # s without work, after which a system is asked whether it is idle for ever
_QUIET_MOST = 3.2
_WORK = 0.002  # s of a host CPU in that time that are no work
_FIRST_CPU = 0

D = TypeVar("D", bound=Device)


class ConfigError(ValueError):
    """A system makes no sense as it is described; the message says what to change."""


@dataclass(frozen=True)
class Result:
    """Why a run ended.

    reason: "exit", the guest wrote its status to the debug exit; "power-off"; "reset";
    "triple-fault"; "crash", any other error of the guest's; "idle", every CPU halted with
    interrupts off; "stopped", by ``stop()``. After "timeout", "ticks", "until" and "paused" the
    system can go on.
    """

    reason: Reason
    exit_code: int | None = None
    """The guest's status; 0 after a power-off."""
    error: GuestError | None = None
    """The guest's error, with its registers."""
    ticks: int = 0
    """The time that the system has reached, in ticks."""
    match: re.Match[str] | None = None
    """What ``until`` matched."""

    def __str__(self) -> str:
        text = self.reason if self.exit_code is None else f"{self.reason} {self.exit_code}"
        return f"{text}: {self.error}" if self.error else text


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


class System:
    """A board with memory, CPUs and devices. Nothing is made before it is started or looked at.

    memory: bytes, or such as "64MiB". devices: what is on the board, in place of its standard
    devices. disks: for the board's disk controller: files, or such as "disk.img,overlay" (see
    ``kvmcpu.disk.open_disk``). firmware: a PC's firmware, which is started unless there is an
    image. unassigned: what an access to nobody does, "ones" as on a PC or "error" (V16).
    output: a file descriptor that the console is also written to. device: the KVM device.
    Raises ConfigError for what makes no sense.
    """

    def __init__(
        self,
        board: str = "pc",
        *,
        memory: int | str = "256MiB",
        cpus: int = 1,
        devices: Sequence[Device] | None = None,
        disks: Sequence[Any] = (),
        firmware: str | os.PathLike[str] | None = None,
        unassigned: Literal["ones", "error"] = "ones",
        output: int | None = None,
        device: str = "/dev/kvm",
    ) -> None:
        if board not in BOARDS:
            raise ConfigError(f"there is no board {board!r}; there are {', '.join(BOARDS)}")
        if unassigned not in ("ones", "error"):
            raise ConfigError(f'unassigned is "ones" or "error", not {unassigned!r}')
        if isinstance(cpus, bool) or not isinstance(cpus, int) or not 1 <= cpus <= 255:
            raise ConfigError(f"a system has 1 to 255 CPUs, not {cpus!r}")
        try:
            self.memory = parse_size(memory)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"memory: {error}") from error
        if not self.memory:
            raise ConfigError("memory: a system without memory runs nothing")
        self.board_name = board
        self.cpu_count = cpus
        self.firmware = firmware
        self.disks = list(disks)
        self.unassigned: Literal["ones", "error"] = unassigned
        self.device = device
        self.devices = list(BOARDS[board].standard_devices() if devices is None else devices)
        self.custom_devices = devices is not None
        for each in self.devices:
            if not isinstance(each, Device):
                raise ConfigError(f"{each!r} is not a device")
        self._add_disks()
        self.console = Console(fd=output)
        self.console.ended = lambda: self._result is not None
        self._image: Loader | None = None
        self.image: tuple[Any, tuple[str, ...], tuple[Module, ...]] | None = None
        self._kvm: Kvm | None = None
        self._board: Board | None = None
        self._cpus: list[Vcpu] = []
        self._threads: list[threading.Thread] = []
        self._watcher: threading.Thread | None = None
        # The lock guards what follows. Only threads of our own wait by the condition: a Ctrl-C that
        # comes while the main thread is in one of its methods would leave the lock taken for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._over_fd = -1  # readable while there is something to tell those who wait
        self._pausers: set[Literal["user", "watch"]] = set()  # who want it at rest
        self._at_rest = 0  # CPU threads that are
        self._idle: set[int] = set()  # CPUs that nothing here can wake
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._ticks_over = False
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._closed = False

    def _add_disks(self) -> None:
        if not self.disks:
            return
        controller = next((d for d in self.devices if isinstance(d, AtaController)), None)
        if controller is None:
            raise ConfigError("there are disks and no AtaController among the devices")
        if controller.disks:
            raise ConfigError("the AtaController has disks already: give them in one place")
        controller.disks = list(self.disks)

    # ---- what is loaded ----

    def load(
        self,
        image: str | os.PathLike[str],
        arguments: Sequence[str] = (),
        *,
        modules: Sequence[Any] = (),
        mode: Literal["real", "protected", "long"] | None = None,
        address: int | None = None,
    ) -> None:
        """Have an image started: ELF, multiboot or a flat binary. Raises LoadError.

        arguments become its command line; modules are for multiboot (paths, or pairs of a path
        and its own command line); mode and address are for a flat binary.
        """
        if self._board is not None:
            raise StateError("the system is built already: load before it is started")
        loader = open_image(image, mode=mode, address=address, modules=modules)
        self._image = loader
        self.image = (image, tuple(arguments), tuple(modules))

    @property
    def image_kind(self) -> str | None:
        """What the image is, such as "multiboot kernel"; None without one."""
        return self._image.kind if self._image is not None else None

    # ---- its parts ----

    def build(self) -> None:
        """Make the VM, its devices and its CPUs, unless they are there.

        Raises KvmError, LoadError, DeviceError, ConfigError; then nothing is left of it.
        """
        if self._closed:
            raise StateError("the system was closed")
        if self._board is not None:
            return
        if self._image is None and self.firmware is None:
            raise ConfigError("there is nothing to run: load() an image, or give it a firmware")
        try:
            self._build()
        except BaseException:
            self._take_down()
            raise

    def _build(self) -> None:
        firmware = open_firmware(self.firmware) if self.firmware is not None else None
        self._kvm = Kvm(self.device)
        self._over_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        kind = BOARDS[self.board_name]
        if kind.arch != self._kvm.arch:
            raise ConfigError(
                f"the board {kind.name} is a machine of {kind.arch}, and the KVM of this host runs"
                f" {self._kvm.arch}"
            )
        vm = self._kvm.create_vm()
        vm.unassigned = self.unassigned
        try:
            board = kind(
                vm,
                memory=self.memory,
                cpus=self.cpu_count,
                output=self.console.sink,
                on_end=self._guest_ends,
            )
        except ValueError as error:
            vm.close()
            raise ConfigError(f"memory of {self.memory} bytes: {error}") from error
        self._board = board
        for device in self.devices:
            board.add(device)
        board.complete()
        serial = board.find(Serial16550)
        if serial is not None:
            self.console.connect(serial.input)
        start: Start | None = None
        if firmware is not None:
            start = firmware.load(vm)
        if self._image is not None:
            start = self._image.load(vm)
        self._cpus = [vm.create_vcpu() for _ in range(self.cpu_count)]
        assert start is not None
        arguments = self.image[1] if self.image is not None else ()
        try:
            start.begin(vm, self._cpus[_FIRST_CPU], arguments)
        except ValueError as error:
            raise LoadError(str(error)) from error

    @property
    def board(self) -> Board:
        """The board; it is built if need be."""
        self.build()
        assert self._board is not None
        return self._board

    @property
    def vm(self) -> VM:
        """The virtual machine; it is built if need be."""
        return self.board.vm

    @property
    def cpus(self) -> tuple[Vcpu, ...]:
        """The CPUs. Their registers can be looked at while the system is at rest."""
        self.build()
        return tuple(self._cpus)

    def find(self, kind: type[D]) -> D:
        """The first device of a kind. Raises LookupError if there is none."""
        for device in self.devices:
            if isinstance(device, kind):
                return device
        raise LookupError(f"the system has no {kind.__name__}")

    @property
    def now(self) -> int:
        """The time in ticks."""
        return self._board.vm.queue.now if self._board is not None else 0

    # ---- in the background ----

    def start(self) -> System:
        """Start the CPUs, each on its thread, and return; nothing if they run. Returns itself."""
        self.build()
        with self._lock:
            self._check_open()
            if self._threads:
                self._resume_locked()
                return self
            self._threads = [
                threading.Thread(target=self._run_cpu, args=(cpu,), name=cpu.name, daemon=True)
                for cpu in self._cpus
            ]
            self._watcher = threading.Thread(target=self._watch, name="idle watch", daemon=True)
            for thread in (*self._threads, self._watcher):
                thread.start()
        return self

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the system was closed")
        if self._result is not None:
            raise StateError(f"the system has ended ({self._result}): make a new one")

    @property
    def running(self) -> bool:
        """Whether its CPUs run."""
        return bool(self._threads) and not self._pausers and self._result is None

    def pause(self) -> None:
        """Bring the CPUs to rest between two instructions, and return when they are."""
        with self._lock:
            if self._threads:
                self._pausers.add("user")
                self._tell()
        self._rest()

    def resume(self) -> None:
        """Let the CPUs run on. Raises StateError if the system has ended."""
        with self._lock:
            self._check_open()
            self._resume_locked()

    def _resume_locked(self) -> None:
        self._pausers.discard("user")
        with suppress(BlockingIOError):
            os.eventfd_read(self._over_fd)
        self._ticks_over = False
        self._idle.clear()
        self._changed.notify_all()

    def _rest(self) -> None:
        """Wait until the CPU threads are at rest, or gone."""
        pause = _STOP_FIRST
        while threading.current_thread() not in self._threads:
            with self._lock:
                if sum(t.is_alive() for t in self._threads) <= self._at_rest:
                    return
            if self._board is not None:
                self._board.vm.stop()
            time.sleep(pause)
            pause = min(2 * pause, _STOP_AGAIN)

    def stop(self) -> Result:
        """End the system, whatever it does. Returns why it ended."""
        self._end(Result("stopped", ticks=self.now))
        return self.wait()

    def wait(self, timeout: float | None = None) -> Result:
        """Wait until the system has ended or was paused.

        Raises TimeoutError after so many seconds, and what a device's handler raised.
        """
        end = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        if self._over_fd >= 0:
            poll.register(self._over_fd, select.POLLIN)
        while not self._over():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"the system still runs after {timeout} s")
            poll.poll(None if left is None else 1000 * left)
        self._rest()
        return self._outcome()

    def _over(self) -> bool:
        return self._result is not None or not self._threads or "user" in self._pausers

    def _outcome(self) -> Result:
        if self._error is not None:
            raise self._error
        if self._result is not None:
            return self._result
        return Result("ticks" if self._ticks_over else "paused", ticks=self.now)

    def __await__(self) -> Generator[Any, None, Result]:
        return self._wait_async().__await__()

    async def _wait_async(self) -> Result:
        import asyncio  # several megabytes, for those who have it anyway

        loop = asyncio.get_running_loop()
        done = loop.create_future()
        with self._lock:
            if self._over():
                done.set_result(None)
            else:
                self._waiters.append((loop, done))
        await done
        await loop.run_in_executor(None, self._rest)
        return self._outcome()

    # ---- in the foreground ----

    def run(
        self,
        *,
        timeout: float | None = None,
        ticks: int | str | None = None,
        until: str | re.Pattern[str] | None = None,
    ) -> Result:
        """Run it until it ends, and return why.

        timeout: so many seconds of the host's at most. ticks: so much of the system's time, such
        as "10ms". until: a regular expression that its console is to show. After one of these
        the system is paused, and ``run()`` goes on. Raises what a device's handler raised, and
        KeyboardInterrupt, with the system paused.
        """
        self.build()
        at_ticks = None
        if ticks is not None:
            at_ticks = self.vm.queue.schedule(self._at_ticks, delay=ticks)
        try:
            return self._run(timeout, until)
        finally:
            if at_ticks is not None:
                at_ticks.cancel()

    def _run(self, timeout: float | None, until: str | re.Pattern[str] | None) -> Result:
        self.start()
        reason: Reason = "timeout"
        match = None
        try:
            if until is not None:
                match = self.console.expect(until, timeout)
                reason = "until"
            else:
                return self.wait(timeout)
        except ConsoleTimeout:
            pass
        except ConsoleClosed:
            return self.wait()
        except TimeoutError:
            pass
        except BaseException:
            self.pause()
            raise
        self.pause()
        if self._result is not None and until is None:
            return self._outcome()
        return Result(reason, ticks=self.now, match=match)

    def _at_ticks(self) -> None:
        with self._lock:
            self._ticks_over = True
            self._pausers.add("user")
            self._tell()
        self.board.vm.stop()

    # ---- the CPUs' threads ----

    def _run_cpu(self, cpu: Vcpu) -> None:
        try:
            while self._may_run():
                cpu.run()
                self._look_at(cpu)
        except ShutdownError as error:
            self._end(Result("triple-fault", error=error, ticks=self.now))
        except GuestError as error:
            self._end(Result("crash", error=error, ticks=self.now))
        except BaseException as error:  # of a handler; it comes out of run() or wait()
            self._error = error
            self._end(Result("stopped", ticks=self.now))
        finally:
            with self._lock:
                self._changed.notify_all()

    def _may_run(self) -> bool:
        """Wait while the system is to be at rest; false when it has ended."""
        with self._lock:
            if self._pausers:
                self._at_rest += 1
                self._changed.notify_all()
                while self._pausers and self._result is None:
                    self._changed.wait()
                self._at_rest -= 1
            return self._result is None

    def _look_at(self, cpu: Vcpu) -> None:
        if cpu.stop_reason == "idle":
            with self._lock:
                self._idle.add(cpu.id)
                if len(self._idle) == len(self._cpus):
                    self._end(Result("idle", ticks=self.now))
                while cpu.id in self._idle and self._result is None and not self._pausers:
                    self._changed.wait()
        elif cpu.stop_reason == "exit":
            last = cpu.exit
            if isinstance(last, SystemEventExit):
                reason = _SYSTEM_EVENTS.get(last.type, "crash")
                self._end(Result(reason, 0 if reason == "power-off" else None, ticks=self.now))
            else:
                self._end(
                    Result("crash", error=GuestError(f"an exit that nobody handles: {last!r}"))
                )

    def _guest_ends(self, reason: End, code: int | None) -> None:
        self._end(Result(reason, 0 if reason == "power-off" else code, ticks=self.now))

    def _end(self, result: Result) -> None:
        with self._lock:
            if self._result is None:
                self._result = result
            self._tell()
        if self._board is not None:
            self._board.vm.stop()

    def _tell(self) -> None:
        """Those who wait; the lock is held."""
        self._changed.notify_all()
        if self._over_fd >= 0:
            os.eventfd_write(self._over_fd, 1)
        for loop, done in self._waiters:
            loop.call_soon_threadsafe(_finish, done)
        self._waiters.clear()

    # ---- idle for ever ----

    def _watch(self) -> None:
        """Halted CPUs wait in the kernel, which does not say whether anything can wake them."""
        pause = _QUIET
        before = self._work()
        while self._result is None:
            with self._lock:
                self._changed.wait_for(lambda: self._result is not None, pause)
                if self._result is not None or self._pausers:
                    continue
            work = self._work()
            if work - before < _WORK:
                pause = min(2 * pause, _QUIET_MOST)
                if self._is_dead():
                    self._end(Result("idle", ticks=self.now))
            else:
                pause = _QUIET
            before = self._work()

    def _work(self) -> float:
        total = 0.0
        for thread in self._threads:
            if thread.is_alive() and thread.ident is not None:
                with suppress(OSError):  # it ended just now
                    total += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        return total

    def _is_dead(self) -> bool:
        """Whether every CPU is halted with interrupts off, or was never started."""
        with self._lock:
            if self._pausers or self._result is not None:
                return False
            self._pausers.add("watch")
        self._rest()
        try:
            dead = self._result is None and all(self._halted_for_ever(cpu) for cpu in self._cpus)
        finally:
            with self._lock:
                self._pausers.discard("watch")
                self._changed.notify_all()
        return dead

    @staticmethod
    def _halted_for_ever(cpu: Vcpu) -> bool:
        if cpu.mp_state in _MP_WAITING:
            return True
        return cpu.mp_state == _MP_HALTED and not cpu.regs.rflags & _RFLAGS_IF

    # ---- its end ----

    def close(self) -> None:
        """End it and free everything. Twice does nothing."""
        if self._closed:
            return
        if self._board is not None:
            self._end(Result("stopped", ticks=self.now))
            self._rest()
            for thread in (*self._threads, self._watcher):
                if thread is not None and thread is not threading.current_thread():
                    thread.join()
        self._closed = True
        self._take_down()

    def _take_down(self) -> None:
        board, self._board = self._board, None
        if board is not None:
            for device in board.devices:
                device.detach()
            board.vm.close()
        if self._kvm is not None:
            self._kvm.close()
            self._kvm = None
        with self._lock:
            fd, self._over_fd = self._over_fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> System:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # ---- for people ----

    def __str__(self) -> str:
        lines = [f"{self.board_name}: {self.memory >> 20} MiB, {self.cpu_count} CPU(s)"]
        if self.firmware is not None:
            lines.append(f"|- firmware {os.fspath(self.firmware)}")
        if self.image is not None:
            lines.append(f"|- image {os.fspath(self.image[0])} {' '.join(self.image[1])}".rstrip())
        for device in self.devices:
            lines.append(f"|- {device!r}")
        return "\n".join(lines)
