# SPDX-License-Identifier: MIT
"""``kvmcpu run``: one guest, from its image to its exit status."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal, TextIO

from kvmcpu import trace
from kvmcpu._kvm import (
    VM,
    GuestError,
    Kvm,
    SystemEventExit,
    UnassignedAccessError,
    Vcpu,
)
from kvmcpu.console import Console
from kvmcpu.loaders import LoadError, open_firmware, open_image
from kvmcpu.ram import add_ram

TIMED_OUT = 124
CRASHED = 126

STDOUT = 1
_STOP_AGAIN = 0.02  # a stop that comes before the run has begun does nothing
_STUCK = 1.0  # after which a run that did not stop is taken to wait for stdout's reader

# KVM_SYSTEM_EVENT_* (Linux, include/uapi/linux/kvm.h)
_SYSTEM_EVENTS = {1: "shutdown", 2: "reset", 3: "crash"}


class RunError(Exception):
    """The run could not be set up; the message says why."""


class Interrupted(BaseException):
    """A signal asks for the end. A BaseException, like KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class Job:
    """What is to be run, and how: the command's options."""

    image: str | None
    firmware: str | None
    arguments: tuple[str, ...]
    memory: int
    timeout: float | None
    mode: Literal["real", "protected", "long"] | None
    address: int | None
    unassigned: Literal["error", "ones"]
    stats: str | None
    debug_flags: tuple[str, ...]
    device: str


def say(message: str) -> None:
    """A message for the person at the terminal."""
    print(f"kvmcpu: {message}", file=sys.stderr, flush=True)


@contextmanager
def _signals() -> Iterator[None]:
    """Signals that end a program raise Interrupted, unless they are to be ignored."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        # Python itself ignores SIGPIPE; another one that is ignored was so before (nohup).
        if number == signal.SIGPIPE or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Deadline:
    """Stops a VM's runs when a time is over, counted from now."""

    def __init__(self, vm: VM, seconds: float) -> None:
        self.passed = False
        self._vm = vm
        self._seconds = seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="deadline", daemon=True)

    def _watch(self) -> None:
        if self._done.wait(self._seconds):
            return
        self.passed = True
        for _ in range(int(_STUCK / _STOP_AGAIN)):
            self._vm.stop()
            if self._done.wait(_STOP_AGAIN):
                return
        # The vCPU's thread is in a write to stdout, which nobody reads, and nothing gets it out.
        say("timed out, and nobody reads the guest's output")
        os._exit(TIMED_OUT)

    def __enter__(self) -> Deadline:
        # Signals are for the main thread, where they end the run.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._done.set()
        self._thread.join()


def _report(error: GuestError) -> None:
    """A guest's crash: the message has the registers and the last exits."""
    say(f"the guest crashed: {type(error).__name__}: {error}")
    if isinstance(error, UnassignedAccessError):
        print("(--unassigned ones lets the guest go on after such an access)", file=sys.stderr)
    sys.stderr.flush()


def _outcome(cpu: Vcpu, console: Console, timed_out: Callable[[], bool]) -> int:
    """Run the guest to its end: the exit status."""
    while True:
        try:
            cpu.run()
        except GuestError as error:
            _report(error)
            return CRASHED
        if console.status is not None:
            return _status(console.status)
        if timed_out():
            say("timed out")
            return TIMED_OUT
        if cpu.stop_reason == "idle":
            return 0
        if cpu.stop_reason == "exit":
            return _unhandled(cpu)


def _status(value: int) -> int:
    if value > 0xFF:
        say(f"the guest's status is {value:#x}, of which a process can return the lowest 8 bits")
    return value & 0xFF


def _unhandled(cpu: Vcpu) -> int:
    """An exit that came back from the run, as nobody handles it."""
    last = cpu.exit
    if isinstance(last, SystemEventExit):
        event = _SYSTEM_EVENTS.get(last.type, f"system event {last.type}")
        if event in ("shutdown", "reset"):
            return 0
        say(f"the guest reports a {event}")
    else:
        say(f"the guest left with an exit that nobody handles: {last!r}")
    print(cpu.dump(), file=sys.stderr, flush=True)
    return CRASHED


def _open_stats(path: str | None) -> TextIO | None:
    if path is None or path == "-":
        return None
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write the statistics to {path}: {error.strerror}") from error


def _write_stats(job: Job, file: TextIO | None, cpu: Vcpu) -> None:
    if job.stats is None:
        return
    text = cpu.stats.dump().rstrip("\n") + "\n"
    try:
        if file is None:
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            with file:
                file.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"cannot write the statistics: {error.strerror}") from error


def run(job: Job) -> int:
    """Run a guest; returns the exit status. Raises LoadError, RunError, OSError, ValueError."""
    if job.firmware is not None:
        image = open_firmware(job.firmware)
    else:
        assert job.image is not None
        image = open_image(job.image, mode=job.mode, address=job.address)
    stats = _open_stats(job.stats)
    with ExitStack() as stack:
        kvm = stack.enter_context(Kvm(job.device))
        vm = stack.enter_context(kvm.create_vm())
        vm.unassigned = job.unassigned
        try:
            add_ram(vm, job.memory)
        except ValueError as error:
            raise RunError(f"--memory {job.memory}: {error}") from error
        start = image.load(vm)
        sys.stdout.flush()
        console = Console(vm, fd=STDOUT)
        cpu = vm.create_vcpu()
        try:
            start.begin(vm, cpu, job.arguments)
        except ValueError as error:
            raise LoadError(str(error)) from error
        if job.debug_flags:
            stack.enter_context(trace.tracing(*job.debug_flags))
        return _run_to_end(job, vm, cpu, console, stats)


def _run_to_end(job: Job, vm: VM, cpu: Vcpu, console: Console, stats: TextIO | None) -> int:
    status = 0
    try:
        with ExitStack() as stack:
            stack.enter_context(_signals())
            deadline: Deadline | None = None
            if job.timeout is not None:
                deadline = stack.enter_context(Deadline(vm, job.timeout))
            status = _outcome(cpu, console, lambda: deadline is not None and deadline.passed)
    except KeyboardInterrupt:
        say("interrupted")
        status = 128 + signal.SIGINT
    except Interrupted as interrupted:
        if interrupted.number == signal.SIGPIPE:
            raise BrokenPipeError from None
        say(f"ended by {signal.Signals(interrupted.number).name}")
        status = 128 + interrupted.number
    # Of what the sink counts as dropped, the bytes that it no longer keeps were written before.
    lost = console.sink.dropped - (console.sink.total - len(console.sink))
    if lost:
        say(f"of the guest's output, {lost} bytes could not be written")
    _write_stats(job, stats, cpu)
    return status
