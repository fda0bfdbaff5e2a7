# SPDX-License-Identifier: MIT
"""Tracing through Python's logging (V25)."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

import kvmcpu
from kvmcpu import trace

CODE = "mov al, 'A'; out 0xe9, al; hlt"


@pytest.fixture(autouse=True)
def _off() -> Iterator[None]:
    yield
    trace.disable()


def test_categories_are_the_ones_that_the_core_has() -> None:
    assert {"Kvm", "KvmRun", "KvmIO", "KvmTimer", "Drain", "Checkpoint"} <= set(
        kvmcpu.debug_flags()
    )


def test_enable_and_disable() -> None:
    trace.enable("KvmRun")
    trace.enable("KvmIO", "Drain")
    assert trace.enabled() == {"KvmRun", "KvmIO", "Drain"}
    assert logging.getLogger("kvmcpu.Drain").level == logging.DEBUG
    trace.disable("Drain")
    assert trace.enabled() == {"KvmRun", "KvmIO"}
    assert logging.getLogger("kvmcpu.Drain").level == logging.NOTSET
    trace.enable()
    assert trace.enabled() == set(kvmcpu.debug_flags())
    trace.disable()
    assert trace.enabled() == set()


@pytest.mark.parametrize("change", [trace.enable, trace.disable])
def test_unknown_names_are_refused(change) -> None:
    trace.enable("KvmRun")
    with pytest.raises(ValueError, match=r"Nonsense.*KvmRun"):
        change("KvmIO", "Nonsense")
    assert trace.enabled() == {"KvmRun"}


def test_records_carry_tick_and_cpu(guest, caplog: pytest.LogCaptureFixture) -> None:
    g = guest(CODE, name="worker")
    g.collect()
    trace.enable("KvmIO")
    g.run()
    trace.disable()
    assert caplog.records
    for record in caplog.records:
        assert record.name == "kvmcpu.KvmIO"
        assert record.levelno == logging.DEBUG
        assert record.cpu == "worker"
        assert isinstance(record.tick, int)
    ticks = [record.tick for record in caplog.records]
    assert ticks == sorted(ticks)
    assert any("e9" in record.getMessage().lower() for record in caplog.records)


def test_nothing_comes_when_off(guest, caplog: pytest.LogCaptureFixture) -> None:
    g = guest(CODE)
    g.collect()
    trace.enable()
    trace.disable()
    g.run()
    assert not caplog.records


def test_other_categories_stay_off(guest, caplog: pytest.LogCaptureFixture) -> None:
    g = guest(CODE)
    g.collect()
    trace.enable("KvmRun")
    g.run()
    assert {record.name for record in caplog.records} == {"kvmcpu.KvmRun"}


def test_tracing_writes_lines_and_restores(guest) -> None:
    g = guest(CODE, name="worker")
    g.collect()
    trace.enable("Drain")
    stream = io.StringIO()
    with trace.tracing("KvmRun", "KvmIO", stream=stream):
        assert trace.enabled() == {"Drain", "KvmRun", "KvmIO"}
        g.run()
    assert trace.enabled() == {"Drain"}
    lines = stream.getvalue().splitlines()
    assert lines
    for line in lines:
        tick, cpu, category, message = line.split(": ", 3)
        assert int(tick) >= 0
        assert cpu == "worker"
        assert category in ("KvmRun", "KvmIO")
        assert message
    assert not logging.getLogger("kvmcpu").handlers


def test_tracing_of_an_unknown_name_leaves_no_handler() -> None:
    with pytest.raises(ValueError), trace.tracing("Nonsense"):
        pass
    assert not logging.getLogger("kvmcpu").handlers


def test_a_handler_that_raises_does_not_stop_the_guest(
    guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("broken")

    unraisable = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)
    handler = Broken()
    logger = logging.getLogger("kvmcpu")
    logger.addHandler(handler)
    g = guest(CODE)
    try:
        trace.enable("KvmIO")
        g.collect()
        g.run()
    finally:
        logger.removeHandler(handler)
    assert g.out == [ord("A")]
    assert unraisable
    assert "broken" in str(unraisable[0].exc_value)


def test_formatter_leaves_other_records_alone() -> None:
    record = logging.LogRecord("other", logging.INFO, "f", 1, "said %d", (3,), None)
    assert trace.Formatter().format(record) == "said 3"
