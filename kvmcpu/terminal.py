# SPDX-License-Identifier: MIT
"""Standard input for a guest: keys of a terminal in raw mode, or what comes through a pipe."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

ESCAPE = 0x1D  # Ctrl-], as with telnet and virsh
_PIECE = 4096
_ENOUGH = 1 << 20  # bytes that may wait for the guest before more is read
_SOON = 0.05  # s

# Fields of a terminal's attributes (termios(3)).
_IFLAG, _CFLAG, _LFLAG, _CC = 0, 2, 3, 6


class Input:
    """Reads a file descriptor and hands on what comes, until it ends or is closed.

    send: takes the bytes. waiting: how many of them have not been taken yet. on_escape: called
    when the escape key was typed, which only a terminal has. A terminal that this process is not
    in the foreground of is left alone.
    """

    def __init__(
        self,
        fd: int,
        send: Callable[[bytes], object],
        waiting: Callable[[], int],
        on_escape: Callable[[], object],
    ) -> None:
        self._fd = fd
        self._send = send
        self._waiting = waiting
        self._on_escape = on_escape
        self._before: list[Any] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="input", daemon=True)

    def __enter__(self) -> Input:
        self.is_terminal = os.isatty(self._fd)
        if self.is_terminal and not self._in_foreground():
            return self
        if self.is_terminal:
            self._before = termios.tcgetattr(self._fd)
            termios.tcsetattr(self._fd, termios.TCSADRAIN, _raw(self._before))
            # Where lines are as they were: output processing stays on.
            print("kvmcpu: keys go to the guest; Ctrl-] ends it", file=sys.stderr, flush=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._closed.set()
        self.restore()

    def restore(self) -> None:
        """Put the terminal back as it was. Twice does nothing."""
        before, self._before = self._before, None
        if before is not None:
            with suppress(termios.error, OSError):  # the terminal is gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, before)

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return False

    def _read(self) -> None:
        while not self._closed.is_set():
            if self._waiting() > _ENOUGH:
                time.sleep(_SOON)
                continue
            try:
                if not select.select([self._fd], [], [], _SOON)[0]:
                    continue
                data = os.read(self._fd, _PIECE)
            except (OSError, ValueError):
                return
            if not data or self._closed.is_set():
                return
            if self._before is not None and ESCAPE in data:
                data = data[: data.index(ESCAPE)]
                self._hand_on(data)
                self._on_escape()
                return
            self._hand_on(data)

    def _hand_on(self, data: bytes) -> None:
        if data:
            with suppress(Exception):  # the system is closed just now
                self._send(data)


def _raw(before: list[Any]) -> list[Any]:
    """Every key as it comes, and none of them a signal."""
    after = [*before]
    after[_CC] = [*before[_CC]]
    after[_IFLAG] &= ~(
        termios.BRKINT | termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP
        | termios.IXON
    )  # fmt: skip
    after[_CFLAG] = after[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    after[_LFLAG] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
    after[_CC][termios.VMIN], after[_CC][termios.VTIME] = 1, 0
    return after


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """A terminal that hands on every key as it comes, and what is printed as it is."""
    before = termios.tcgetattr(fd)
    after = _raw(before)
    after[1] &= ~termios.OPOST
    termios.tcsetattr(fd, termios.TCSADRAIN, after)
    try:
        yield
    finally:
        with suppress(termios.error, OSError):  # the terminal is gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
