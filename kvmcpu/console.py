# SPDX-License-Identifier: MIT
"""A system's console: what its guest writes, and what is sent to it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from kvmcpu._kvm import ByteSink

_POLL = 0.002  # s; the output is collected in C, which tells nobody
_SHARE = 10  # a search through much output waits so many times as long as it takes
_SHOWN = 500  # characters of output in an error


class ConsoleTimeout(TimeoutError):
    """What was expected did not come in time; the message shows the last of the output."""


class ConsoleClosed(EOFError):
    """The system ended, and what was expected had not come."""


class Console:
    """The output of a system's serial port and debug consoles, and the way to its serial port.

    fd: a file descriptor that the output is written to at once. limit: how many of its last
    bytes are kept.
    """

    def __init__(self, *, fd: int | None = None, limit: int = 16 << 20) -> None:
        self.sink = ByteSink(limit=limit, fd=fd)
        """Where devices write; what is here goes on to ``data`` when somebody looks."""
        self.ended: Callable[[], bool] = lambda: False
        """Whether nothing more comes."""
        self._limit = limit
        self._input: Callable[[bytes], None] | None = None
        self._lock = threading.Lock()  # guards what follows
        self._kept = bytearray()
        self._forgotten = 0  # bytes that came before those
        self._seen = 0  # of all output, what an expect() has consumed

    def _take(self) -> None:
        """Take what has come; the lock is held."""
        self._kept += self.sink.clear()
        excess = len(self._kept) - self._limit
        if excess > 0:
            del self._kept[:excess]
            self._forgotten += excess

    @property
    def data(self) -> bytes:
        """The output that is kept."""
        with self._lock:
            self._take()
            return bytes(self._kept)

    @property
    def text(self) -> str:
        """The same as text: UTF-8, with replacement characters for what is not."""
        return self.data.decode("utf-8", "replace")

    def connect(self, receive: Callable[[bytes], None]) -> None:
        """Have ``send()`` hand its bytes to a function, such as a serial port's ``input``."""
        self._input = receive

    def send(self, data: bytes | str) -> None:
        """Send bytes, or text as UTF-8, to the guest's serial port. From any thread.

        Raises RuntimeError where there is none, or the system was not built yet.
        """
        if self._input is None:
            raise RuntimeError(
                "nothing takes input: the system has no serial port, or was not started yet"
            )
        self._input(data.encode() if isinstance(data, str) else bytes(data))

    def expect(self, pattern: str | re.Pattern[str], timeout: float | None = 30.0) -> re.Match[str]:
        """Wait until a regular expression occurs in the output behind the last match.

        Newlines are as the guest writes them; ``.`` matches them. Raises ConsoleTimeout after
        so many seconds (None: never), and ConsoleClosed when the system has ended without it.
        """
        search = _Search(self, pattern, timeout)
        while (match := search.look()) is None:
            time.sleep(search.pause)
        return match

    async def expect_async(
        self, pattern: str | re.Pattern[str], timeout: float | None = 30.0
    ) -> re.Match[str]:
        """The same for asyncio."""
        import asyncio

        search = _Search(self, pattern, timeout)
        while (match := search.look()) is None:
            await asyncio.sleep(search.pause)
        return match

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """What matches behind the last match, if anything does by now; it is then behind us."""
        with self._lock:
            self._take()
            start = max(self._seen, self._forgotten)
            # So that each character can be turned back into the bytes that it came from.
            text = self._kept[start - self._forgotten :].decode("utf-8", "surrogateescape")
            found = pattern.search(text)
            if found is not None:
                consumed = text[: found.end()].encode("utf-8", "surrogateescape")
                self._seen = start + len(consumed)
            return found


class _Search:
    """One expect()."""

    def __init__(
        self, console: Console, pattern: str | re.Pattern[str], timeout: float | None
    ) -> None:
        self._console = console
        self._pattern = re.compile(pattern, re.DOTALL) if isinstance(pattern, str) else pattern
        self._end = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self._total = -1
        self.pause = _POLL
        """Seconds until it is worth to look again."""

    def look(self) -> re.Match[str] | None:
        """The match, None for not yet."""
        console = self._console
        ended = console.ended()  # before the output is looked at, so that none is missed
        late = self._end is not None and time.monotonic() > self._end
        if console.sink.total != self._total:
            self._total = console.sink.total
            begin = time.perf_counter()
            match = console.match(self._pattern)
            if match is not None:
                return match
            self.pause = max(_POLL, _SHARE * (time.perf_counter() - begin))
        if not (ended or late):
            return None
        shown = console.text[-_SHOWN:]
        what = f"{self._pattern.pattern!r}; the output ends with:\n{shown}"
        if late:
            raise ConsoleTimeout(f"within {self._timeout} s nothing matched {what}")
        raise ConsoleClosed(f"the system ended, and nothing matched {what}")
