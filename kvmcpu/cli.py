# SPDX-License-Identifier: MIT
"""The command ``kvmcpu``. The guest's console goes to stdout, every message to stderr."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import kvmcpu
from kvmcpu import info, runner
from kvmcpu._kvm import debug_flags, parse_size, parse_ticks
from kvmcpu.devices import DeviceError
from kvmcpu.loaders import LoadError
from kvmcpu.system import ConfigError

FAILED = 125

EPILOG = """\
The exit status is the guest's own: what it wrote to the debug exit, port 0xf4, or 0 if it turned
its machine off, reset it, or halted with nothing left that could wake it. 124: it was still
running when the time was over. 125: kvmcpu failed, or was called wrongly. 126: the guest crashed.
128 and a signal's number: that signal ended kvmcpu.
"""


class Misuse(Exception):
    """The command was called in a way that makes no sense."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and with our exit status."""

    def error(self, message: str) -> NoReturn:
        raise Misuse(f"{message} (see {self.prog} --help)")


def _size(text: str) -> int:
    with suppress(ValueError):
        return int(text, 0)
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _address(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as 0x7c00") from error


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parse_ticks(text) / 1e12
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a time such as 5 (seconds), 1.5 or 200ms"
            ) from error
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0")
    return seconds


class _Version(argparse.Action):
    """It is asked for when it is wanted: to find it takes a tenth of the time to start up."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"kvmcpu {kvmcpu.__version__}")
        parser.exit()


def _parser(wanted: str | None) -> Parser:
    """wanted: the command that is called; what only the lab needs is imported for the lab."""
    parser = Parser(prog="kvmcpu", description="Control real KVM virtual CPUs.")
    parser.add_argument("--version", action=_Version, nargs=0, help="say which version this is")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    about = commands.add_parser(
        "info",
        help="what this host offers",
        description="Say what this host offers: exit status 0 if guests can run, else 1.",
    )
    about.add_argument("--device", default="/dev/kvm", help="the KVM device (%(default)s)")

    run = commands.add_parser(
        "run",
        help="run a guest",
        usage="kvmcpu run [OPTION…] IMAGE [-- ARGUMENT…]\n"
        "       kvmcpu run [OPTION…] --firmware FILE [--disk FILE]\n"
        "       kvmcpu run [OPTION…] --config FILE",
        description="Run a multiboot kernel, an ELF executable, a flat binary or a PC's firmware,"
        " on a PC. Standard input goes to its serial port; from a terminal each key as it is"
        " typed, and Ctrl-] ends the run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("image", nargs="?", metavar="IMAGE", help="ELF executable or flat binary")
    run.add_argument("--firmware", metavar="FILE", help="start a PC's firmware instead")
    run.add_argument("--memory", type=_size, metavar="SIZE", help="guest memory (256MiB)")
    run.add_argument("--cpus", type=int, metavar="N", help="how many CPUs (1)")
    run.add_argument(
        "--disk", action="append", metavar="FILE[,ro|,overlay]", help="a disk; up to two"
    )
    run.add_argument(
        "--module",
        action="append",
        metavar="FILE[ ARGUMENTS]",
        help="a module for a multiboot kernel, with its command line",
    )
    run.add_argument("--config", metavar="FILE", help="a system as a TOML file")
    run.add_argument(
        "--timeout", type=_seconds, metavar="TIME", help="end after seconds, or such as 200ms"
    )
    run.add_argument(
        "--mode",
        choices=("real", "protected", "long"),
        help="in which a flat binary is entered (real)",
    )
    run.add_argument(
        "--load-address",
        type=_address,
        metavar="ADDRESS",
        help="where a flat binary is loaded and entered (0x1000)",
    )
    run.add_argument(
        "--unassigned",
        choices=("error", "ones"),
        help="what an access to nobody does: crash the guest, or read all ones (the latter for"
        " firmware, disks, multiboot kernels and --config)",
    )
    run.add_argument("--stats", metavar="FILE", help="write the run's statistics; - for stdout")
    run.add_argument(
        "--debug-flags",
        metavar="FLAG,…",
        help=f"trace to stderr; flags: {', '.join(debug_flags())}",
    )
    run.add_argument("--device", help="the KVM device (/dev/kvm)")
    if wanted == "lab":
        from kvmcpu.lab import command

        command.add(commands, size=_size, seconds=_seconds)
    else:
        commands.add_parser("lab", help="run a command where there is a complete KVM")
    return parser


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    sources = [options.image, options.firmware, options.config]
    if not any(source is not None for source in sources) and not options.disk:
        raise Misuse("give an IMAGE, --firmware FILE or --config FILE (see kvmcpu run --help)")
    if options.image is not None and options.firmware is not None:
        raise Misuse("give an IMAGE or --firmware FILE, one of the two (see kvmcpu run --help)")
    if options.disk and all(source is None for source in sources):
        raise Misuse("a --disk is booted by a firmware: give --firmware FILE as well")
    flat = options.mode is not None or options.load_address is not None
    if options.image is None and (flat or arguments or options.module):
        raise Misuse("--mode, --load-address, --module and arguments are for an IMAGE")
    flags = [flag for flag in (options.debug_flags or "").split(",") if flag]
    unknown = sorted(set(flags) - set(debug_flags()))
    if unknown:
        raise Misuse(
            f"unknown debug flag {', '.join(unknown)}; there are {', '.join(debug_flags())}"
        )
    given = {
        "memory": options.memory,
        "cpus": options.cpus,
        "firmware": options.firmware,
        "disks": options.disk,
        "unassigned": options.unassigned,
        "device": options.device,
    }
    return runner.run(
        runner.Job(
            image=options.image,
            arguments=tuple(arguments),
            modules=tuple(_module(text) for text in options.module or ()),
            mode=options.mode,
            address=options.load_address,
            config=options.config,
            options={name: value for name, value in given.items() if value is not None},
            timeout=options.timeout,
            stats=options.stats,
            debug_flags=tuple(flags),
        )
    )


def _lab(options: argparse.Namespace, command: Sequence[str]) -> int:
    from kvmcpu.lab import command as lab
    from kvmcpu.lab.errors import LabError

    try:
        return lab.main(options, command)
    except LabError as error:
        _complain(str(error))
        return FAILED
    except lab.Interrupted as interrupted:
        _complain(str(interrupted))
        return 128 + interrupted.number


def _module(text: str) -> tuple[str, str]:
    """A module's file, and its command line, which begins with the file."""
    return text.split(" ", 1)[0], text


def _info(options: argparse.Namespace) -> int:
    works, text = info.describe(options.device)
    print(text, flush=True)
    return 0 if works else 1


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and the guest's, which follow the first ``--``."""
    words = list(argv)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _open_standard_files() -> None:
    """A standard file that was closed would be the next that is opened: the KVM device, say."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # What Python has found closed is None.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _let_go_of_standard_files() -> bool:
    """What Python still holds for a reader that is gone, or a full disk, must not be tried again at
    exit, which would make the status 120. Returns whether all was written."""
    whole = True
    for fd, file in ((1, sys.stdout), (2, sys.stderr)):
        try:
            file.flush()
        except OSError:
            whole = False
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
    return whole


def _complain(message: str) -> None:
    line = " ".join(message.split("\n"))
    with suppress(OSError):  # nobody to tell
        print(f"kvmcpu: {line}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    _open_standard_files()
    status = _main(argv)
    return status if _let_go_of_standard_files() else status or FAILED


def _main(argv: Sequence[str] | None) -> int:
    try:
        own, guests = _split(sys.argv[1:] if argv is None else argv)
        options = _parser(own[0] if own else None).parse_args(own)
        if options.command == "lab":
            return _lab(options, guests)
        if options.command == "info":
            if guests:
                raise Misuse("info takes no arguments")
            return _info(options)
        return _run(options, guests)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except runner.Interrupted as interrupted:
        if interrupted.number != signal.SIGPIPE:
            _complain(str(interrupted))
        return 128 + interrupted.number
    except KeyboardInterrupt:
        _complain("interrupted")
        return 128 + signal.SIGINT
    except (Misuse, LoadError, ConfigError, DeviceError, runner.RunError) as error:
        _complain(str(error))
    except MemoryError as error:
        _complain(f"out of memory: {error}" if str(error) else "out of memory")
    except OSError as error:  # KvmError among them
        _complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except Exception as error:
        if os.environ.get("KVMCPU_TRACEBACK"):
            raise
        _complain(
            f"a bug in kvmcpu: {type(error).__name__}: {error} (KVMCPU_TRACEBACK=1 shows where)"
        )
    return FAILED
