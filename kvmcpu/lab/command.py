# SPDX-License-Identifier: MIT
"""``kvmcpu lab``: its options, and what they lead to."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from kvmcpu.lab import images, machine, session
from kvmcpu.lab.errors import LabError, LabTimeout
from kvmcpu.lab.targets import TARGETS, target
from kvmcpu.terminal import raw

TIMED_OUT = 124
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Interrupted(BaseException):
    """A signal ends the lab."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def say(message: str) -> None:
    """A message for the person at the terminal."""
    print(f"kvmcpu: {message}", file=sys.stderr, flush=True)


def made_from_options() -> argparse.ArgumentParser:
    """The options that say what a lab is made from."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--arch", choices=tuple(TARGETS), help="the architecture (this machine's)")
    for name, what in (
        ("qemu", "a QEMU of your own"),
        ("kernel", "a kernel of your own; needs --busybox, and --modules if it has drivers there"),
        ("modules", "that kernel's directory of modules"),
        ("busybox", "a statically linked busybox of that architecture"),
    ):
        options.add_argument(f"--{name}", metavar="PATH", help=what)
    return options


def runs_with_options(size: Callable[[str], int]) -> argparse.ArgumentParser:
    """The options that say what a command in a lab gets. size: reads a number of bytes."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--root", metavar="DIR", help="a root file system of your own")
    options.add_argument("--cpus", type=int, default=1, metavar="N", help="how many CPUs (1)")
    options.add_argument(
        "--memory", type=size, default=session.MEMORY, metavar="SIZE", help="memory (1GiB)"
    )
    return options


def add(commands: Any, *, size: Callable[[str], int], seconds: Callable[[str], float]) -> None:
    """Add ``lab`` to the command's parsers."""
    lab = commands.add_parser(
        "lab",
        help="run a command where there is a complete KVM, even without /dev/kvm",
        description="An emulated machine with a complete KVM, of any architecture, for a command:"
        " needs QEMU, but no /dev/kvm and no privileges.",
    )
    actions = lab.add_subparsers(dest="action", metavar="ACTION", required=True)
    made_from, runs_with = made_from_options(), runs_with_options(size)
    run = actions.add_parser(
        "run",
        parents=[made_from, runs_with],
        help="run a command",
        usage="kvmcpu lab run [OPTION…] -- COMMAND [ARGUMENT…]",
        description="Run a command in a lab: with this working directory, standard input, output"
        " and errors as here, and signals handed on. The status is the command's; 124: timed out;"
        " 125: the lab failed.",
    )
    run.add_argument(
        "--timeout", type=seconds, metavar="TIME", help="end after seconds, or such as 200ms"
    )
    actions.add_parser(
        "shell", parents=[made_from, runs_with], help="a shell in a lab, at this terminal"
    )
    actions.add_parser("prepare", parents=[made_from], help="fetch and build what it needs")
    actions.add_parser("list", help="what has been fetched and built, with sizes")
    actions.add_parser("clean", help="remove what has been fetched and built")


class _Bar:
    """Progress for a person: one line on a terminal, a line for each thing elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = ""

    def __call__(self, what: str, percent: float) -> None:
        if self._terminal:
            done = "#" * int(percent / 4)
            sys.stderr.write(f"\r\033[K[{done:<25}] {percent:3.0f}% {what[:48]}")
            if percent >= 100:
                sys.stderr.write("\n")
            sys.stderr.flush()
        elif what != self._last:
            say(f"lab: {what}")
        self._last = what


def main(options: argparse.Namespace, command: Sequence[str]) -> int:
    """Run the action; returns the exit status. Raises LabError, Interrupted."""
    if options.action == "list":
        found = images.images()
        for image in found:
            print(f"{image.size / 2**20:8.1f} MiB  {image.name}  {image.contents}")
        print(f"{sum(image.size for image in found) / 2**20:8.1f} MiB  {images.cache()}")
        return 0
    if options.action == "clean":
        print(f"{images.clean() / 2**20:.1f} MiB freed")
        return 0
    if options.action == "run" and not command:
        raise LabError("give a command: kvmcpu lab run -- COMMAND")
    if getattr(options, "cpus", 1) not in range(1, 65):
        raise LabError(f"--cpus {options.cpus} is not between 1 and 64")
    if getattr(options, "memory", session.MEMORY) < 256 << 20:
        raise LabError("a lab needs at least 256 MiB of --memory")
    job = session.Job(
        command or ["/bin/sh", "-i"],
        target(options.arch),
        directory=os.path.realpath(os.getcwd()),
        qemu=options.qemu,
        kernel=options.kernel,
        modules=options.modules,
        busybox=options.busybox,
        root=getattr(options, "root", None),
        memory=getattr(options, "memory", session.MEMORY),
        cpus=getattr(options, "cpus", 1),
        timeout=getattr(options, "timeout", None),
    )
    if options.action == "prepare":
        machine.find_qemu(job.target, job.qemu)
        session.prepare(job, _Bar())
        return 0
    if options.action == "shell":
        return _shell(job)
    return _run(job)


@contextmanager
def _forwarding(get: Callable[[], session.Session | None]) -> Iterator[None]:
    """The first signal of a kind goes to the command; a second one within, or before it runs,
    ends the lab."""
    came: set[int] = set()

    def handle(number: int, _frame: FrameType | None) -> None:
        running = get()
        if running is None or not running.started or number in came:
            raise Interrupted(number)
        came.add(number)
        running.signal(signal.Signals(number).name.removeprefix("SIG"))

    before = {
        number: signal.signal(number, handle)
        for number in FORWARDED
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _writer(fd: int) -> session.Sink:
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write


def _run(job: session.Job) -> int:
    running: session.Session | None = None
    sinks = {machine.STDOUT: _writer(1), machine.STDERR: _writer(2)}
    with _forwarding(lambda: running):
        try:
            with session.Session(job, sinks, stdin=0, progress=_Bar()) as running:
                return running.run()
        except LabTimeout as error:
            say(str(error))
            return TIMED_OUT


def _shell(job: session.Job) -> int:
    if not sys.stdin.isatty():
        raise LabError("a shell wants a terminal; use kvmcpu lab run for a command")
    sinks = {machine.TERMINAL: _writer(1)}
    with session.Session(job, sinks, stdin=0, terminal=True, progress=_Bar()) as running:

        def resize(*_: object) -> None:
            with suppress(OSError):
                columns, rows = os.get_terminal_size(0)
                running.size(rows, columns)

        before = signal.signal(signal.SIGWINCH, resize)
        try:
            with raw(0):
                resize()
                return running.run()
        finally:
            signal.signal(signal.SIGWINCH, before)
