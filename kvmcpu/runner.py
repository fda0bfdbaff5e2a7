# SPDX-License-Identifier: MIT
"""``kvmcpu run``: one system, from the command's options to its exit status."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal, TextIO

from kvmcpu import config, trace
from kvmcpu._kvm import GuestError, UnassignedAccessError
from kvmcpu.devices import Serial16550
from kvmcpu.system import Result, System
from kvmcpu.terminal import Input

TIMED_OUT = 124
CRASHED = 126

STDIN, STDOUT = 0, 1
_SLICE = 0.1  # s; a signal that another thread took is seen after that
_STUCK = 1.0  # s after which a system that does not end is taken to wait for stdout's reader


class RunError(Exception):
    """The run could not be set up; the message says why."""


class Interrupted(BaseException):
    """A signal asks for the end. A BaseException, like KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@dataclass(frozen=True)
class Job:
    """What is to be run, and how: the command's options."""

    image: str | None = None
    arguments: tuple[str, ...] = ()
    modules: tuple[Any, ...] = ()
    mode: Literal["real", "protected", "long"] | None = None
    address: int | None = None
    config: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """System's, as far as the command line says any."""
    timeout: float | None = None
    stats: str | None = None
    debug_flags: tuple[str, ...] = ()


def say(message: str) -> None:
    """A message for the person at the terminal."""
    print(f"kvmcpu: {message}", file=sys.stderr, flush=True)


@contextmanager
def _signals() -> Iterator[None]:
    """Signals that end a program raise Interrupted, unless they are to be ignored.

    The first one does: a guest that writes on to a closed pipe brings one SIGPIPE after another,
    and the end that the first one began is not to be broken off.
    """
    came = False

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if not came:
            came = True
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


@contextmanager
def _patience(status: int, keys: Input | None) -> Iterator[None]:
    """For the end of a system, whose CPU may be in a write to stdout that nobody reads."""

    done = threading.Event()

    def watch() -> None:
        while not done.wait(_STUCK):
            if select.select([], [STDOUT], [], 0)[1]:
                continue  # it takes bytes: the machine is busy, that is all
            say("nobody reads the guest's output")
            if keys is not None:
                keys.restore()
            os._exit(status)

    threading.Thread(target=watch, name="patience", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _describe(job: Job) -> System:
    options = {"output": STDOUT, **job.options}
    if job.config is not None:
        system = config.load(job.config, **options)
    else:
        if "unassigned" not in options:
            pc = options.get("firmware") or options.get("disks") or job.modules
            options["unassigned"] = "ones" if pc else "error"
        system = System(**options)
    if job.image is not None:
        system.load(
            job.image, job.arguments, modules=job.modules, mode=job.mode, address=job.address
        )
        # A kernel that a boot loader would start looks for what a PC may have.
        if system.image_kind == "multiboot kernel" and "unassigned" not in job.options:
            system.unassigned = "ones"
    return system


def _report(error: GuestError, system: System) -> None:
    """A guest's crash: the message has the registers and the last exits."""
    say(f"the guest crashed: {type(error).__name__}: {error}")
    if isinstance(error, UnassignedAccessError):
        print("(--unassigned ones lets the guest go on after such an access)", file=sys.stderr)
    if not error.args or "rip=" not in str(error):
        for cpu in system.cpus:
            print(cpu.dump(), file=sys.stderr)
    sys.stderr.flush()


def _status(result: Result, system: System) -> int:
    if result.error is not None:
        _report(result.error, system)
        return CRASHED
    if result.reason == "crash":
        say("the guest reports a crash")
        for cpu in system.cpus:
            print(cpu.dump(), file=sys.stderr)
        return CRASHED
    if result.reason == "reset":
        say("the guest reset its machine")
    code = result.exit_code or 0
    if code > 0xFF:
        say(f"the guest's status is {code:#x}, of which a process can return the lowest 8 bits")
    return code & 0xFF


def _open_stats(path: str | None) -> TextIO | None:
    if path is None or path == "-":
        return None
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write the statistics to {path}: {error.strerror}") from error


def _write_stats(job: Job, file: TextIO | None, system: System) -> None:
    if job.stats is None:
        return
    text = system.vm.stats.dump().rstrip("\n") + "\n"
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
    """Run a system; returns the exit status.

    Raises LoadError, RunError, ConfigError, OSError, and Interrupted where a signal ended it.
    """
    system = _describe(job)
    stats = _open_stats(job.stats)
    sys.stdout.flush()
    keys: Input | None = None
    status = 0
    with _signals():  # until no CPU is left whose writes to a closed pipe bring more of them
        try:
            with ExitStack() as stack:
                if job.debug_flags:
                    stack.enter_context(trace.tracing(*job.debug_flags))
                system.build()
                escaped = threading.Event()
                keys = _attach(system, escaped)
                if keys is not None:
                    stack.enter_context(keys)
                status = _run_to_end(job, system, escaped)
                if keys is not None:
                    keys.restore()
                with _patience(status, keys):
                    system.pause()
                _tell_of_losses(system)
                _write_stats(job, stats, system)
        finally:
            with _patience(status, keys):
                system.close()
    return status


def _attach(system: System, escaped: threading.Event) -> Input | None:
    """Standard input, for the serial port if there is one."""
    serial = next((d for d in system.devices if isinstance(d, Serial16550)), None)
    if serial is None:
        return None
    return Input(STDIN, system.console.send, lambda: serial.waiting, escaped.set)


def _run_to_end(job: Job, system: System, escaped: threading.Event) -> int:
    left = job.timeout
    try:
        system.start()
        while left is None or left > 0:
            part = _SLICE if left is None else min(left, _SLICE)
            with suppress(TimeoutError):
                return _status(system.wait(part), system)
            left = None if left is None else left - part
            if escaped.is_set():
                say("ended by Ctrl-]")
                return 0
        say("timed out")
        return TIMED_OUT
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    except Interrupted as interrupted:
        if interrupted.number == signal.SIGPIPE:
            raise
        say(str(interrupted))
        return 128 + interrupted.number


def _tell_of_losses(system: System) -> None:
    # Of what the sink counts as dropped, the bytes that it no longer keeps were written before.
    sink = system.console.sink
    lost = sink.dropped - (sink.total - len(sink))
    if lost > 0:
        say(f"of the guest's output, {lost} bytes could not be written")
