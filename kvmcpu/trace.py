# SPDX-License-Identifier: MIT
"""Tracing through Python's logging (vcpu.md V25).

Each category has a logger, ``kvmcpu.KvmRun`` and so on, and each of its records, at level DEBUG,
carries the tick and the name of the CPU as ``record.tick`` and ``record.cpu``::

    with kvmcpu.trace.tracing("KvmRun", "KvmIO"):     # lines on stderr while this lasts
        cpu.run()

    kvmcpu.trace.enable("Drain")                      # or to wherever the program logs
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from kvmcpu._kvm import debug_flags, set_debug_flags, set_trace_sink

__all__ = ["Formatter", "disable", "enable", "enabled", "tracing"]

LOGGER = "kvmcpu"

_lock = threading.Lock()
_enabled: set[str] = set()
_found: dict[str, int] = {}  # the levels that the loggers had before, to put back


class Formatter(logging.Formatter):
    """A line for each record: ``TICK: CPU: CATEGORY: MESSAGE``, like gem5's traces.

    The tick is right-aligned, so that the lines of a run are too. Records that are no traces
    look as they do in ``logging.Formatter``.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        tick = getattr(record, "tick", None)
        if tick is None:
            return line
        category = record.name.rpartition(".")[2]
        return f"{tick:>14}: {getattr(record, 'cpu', '?')}: {category}: {line}"


def _sink(category: str, tick: int, cpu: str, message: str) -> None:
    logger = logging.getLogger(f"{LOGGER}.{category}")
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s", message, extra={"tick": tick, "cpu": cpu})


def _switch(names: set[str]) -> None:
    """Have exactly these categories on. ValueError for an unknown one, and nothing changed."""
    set_debug_flags(*sorted(names))
    set_trace_sink(_sink if names else None)
    for name in names - _enabled:
        logger = logging.getLogger(f"{LOGGER}.{name}")
        _found[name] = logger.level
        logger.setLevel(logging.DEBUG)
    for name in _enabled - names:
        logging.getLogger(f"{LOGGER}.{name}").setLevel(_found.pop(name))
    _enabled.clear()
    _enabled.update(names)


def enabled() -> frozenset[str]:
    """The categories that are on."""
    with _lock:
        return frozenset(_enabled)


def enable(*names: str) -> None:
    """Turn categories on, besides those that are; without names, all of them.

    Their loggers get the level DEBUG. Raises ValueError for an unknown name and lists the known
    ones (``kvmcpu.debug_flags()``).
    """
    with _lock:
        _switch(_enabled | set(names or debug_flags()))


def disable(*names: str) -> None:
    """Turn categories off; without names, all of them."""
    with _lock:
        unknown = sorted(set(names) - set(debug_flags()))
        if unknown:
            raise ValueError(
                f"no such tracing category: {', '.join(unknown)}"
                f" (there are {', '.join(debug_flags())})"
            )
        _switch(_enabled - set(names or debug_flags()))


@contextmanager
def tracing(*names: str, stream: TextIO | None = None) -> Iterator[logging.Handler]:
    """Trace these categories, or all, to a stream, stderr by default, and stop at the end.

    What was on before is on afterwards. The program's own log handlers get the records too.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter())
    before = enabled()
    enable(*names)
    root = logging.getLogger(LOGGER)
    root.addHandler(handler)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        with _lock:
            _switch(set(before))
