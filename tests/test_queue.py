# SPDX-License-Identifier: MIT
"""The event queue: order, priorities, time that jumps, entries that an event cuts short."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
from conftest import Maker

import kvmcpu

SPIN = "spin: jmp spin"


@pytest.fixture
def queue() -> kvmcpu.EventQueue:
    return kvmcpu.EventQueue()


# ---- a queue by itself


def test_events_come_in_the_order_of_ticks(queue: kvmcpu.EventQueue) -> None:
    """V7: events are called in the order of their ticks, whatever order they were scheduled in."""
    seen: list[tuple[int, int]] = []
    ticks = [(n * 7919) % 101 for n in range(100)]
    for tick in ticks:
        queue.schedule(lambda tick=tick: seen.append((tick, queue.now)), tick)  # type: ignore[misc]
    assert len(queue) == 100
    assert queue.next_tick == min(ticks)
    assert queue.service(200) == 100
    assert seen == [(tick, tick) for tick in sorted(ticks)]
    assert queue.now == 200
    assert len(queue) == 0
    assert queue.next_tick is None


def test_priorities_and_ties(queue: kvmcpu.EventQueue) -> None:
    """V7: at one tick the lower priority goes first, then what was scheduled first."""
    seen: list[str] = []
    for name, priority in (("c", 0), ("e", 5), ("d", 0), ("a", -3), ("b", -3), ("f", 5)):
        event = queue.schedule(partial(seen.append, name), 10, priority=priority)
        assert event.priority == priority
    queue.service(10)
    assert "".join(seen) == "abcdef"


def test_rescheduled_goes_behind_its_equals(queue: kvmcpu.EventQueue) -> None:
    """V7: an event that is put to the tick it has counts as scheduled anew."""
    seen: list[str] = []
    first = queue.schedule(partial(seen.append, "first"), 10)
    queue.schedule(partial(seen.append, "second"), 10)
    first.reschedule(10)
    queue.service(10)
    assert seen == ["second", "first"]


def test_cancel(queue: kvmcpu.EventQueue) -> None:
    """V7: a cancelled event is not called, and cancel() says whether there was one."""
    seen: list[int] = []
    events = [queue.schedule(partial(seen.append, n), 10 + n) for n in range(20)]
    for event in events[::2]:
        assert event.scheduled
        assert event.cancel()
        assert not event.scheduled
        assert not event.cancel()
    assert queue.service(100) == 10
    assert seen == list(range(1, 20, 2))
    assert not events[1].cancel()


def test_reschedule(queue: kvmcpu.EventQueue) -> None:
    """V7: an event can be moved both ways while it waits, and put back when it is over."""
    seen: list[int] = []
    event = queue.schedule(lambda: seen.append(queue.now), 50)
    event.reschedule(70)
    assert (event.when, queue.next_tick) == (70, 70)
    event.reschedule(20)
    assert (event.when, queue.next_tick, len(queue)) == (20, 20, 1)
    queue.service(60)
    assert not event.scheduled
    event.reschedule(delay=5)
    assert event.scheduled
    assert event.when == 65
    queue.service(100)
    assert seen == [20, 65]


def test_periodic_event(queue: kvmcpu.EventQueue) -> None:
    """V7: an event may put itself back; its delay counts from the tick it was due at."""
    seen: list[int] = []

    def call() -> None:
        seen.append(queue.now)
        event.reschedule(delay=10)

    event = queue.schedule(call, 3)
    queue.service(50)
    assert seen == [3, 13, 23, 33, 43]
    assert event.when == 53


def test_scheduled_by_a_callback(queue: kvmcpu.EventQueue) -> None:
    """V7: what a callback schedules for the same tick is called after what is due there already."""
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        queue.schedule(partial(seen.append, "nested"), delay=0)
        queue.schedule(partial(seen.append, "urgent"), delay=0, priority=-1)

    queue.schedule(first, 10)
    queue.schedule(partial(seen.append, "second"), 10)
    assert queue.service(10) == 4
    assert seen == ["first", "urgent", "second", "nested"]


@pytest.mark.parametrize(
    ("text", "ticks"),
    [("10ms", 10**10), ("1.5us", 1500000), ("3s", 3 * 10**12), ("250ps", 250), ("2 ns", 2000)],
)
def test_times_as_text(queue: kvmcpu.EventQueue, text: str, ticks: int) -> None:
    """V1: times are ticks, or text that is scaled by the tick frequency."""
    assert queue.schedule(str, text).when == ticks
    assert queue.schedule(str, delay=text).when == ticks
    event = queue.schedule(str, 1)
    event.reschedule(delay=text)
    assert event.when == ticks
    queue.service(text)
    assert queue.now == ticks


def test_another_tick_frequency() -> None:
    """V1: the tick is one part of tick_frequency of a second."""
    queue = kvmcpu.EventQueue(tick_frequency=1000)
    assert queue.tick_frequency == 1000
    assert queue.schedule(str, "3s").when == 3000
    assert queue.schedule(str, delay="2ms").when == 2


def test_what_is_refused(queue: kvmcpu.EventQueue) -> None:
    """V7: a time that has passed, none, two, and no time at all are clear errors."""
    queue.service(100)
    event = queue.schedule(str, 200)
    with pytest.raises(ValueError, match="tick 99 has passed"):
        queue.schedule(str, 99)
    with pytest.raises(ValueError, match="tick 50 has passed"):
        event.reschedule(50)
    with pytest.raises(TypeError):
        queue.schedule(str)
    with pytest.raises(TypeError):
        queue.schedule(str, 200, delay=5)
    for bad in (-1, "soon", "-1ms", 1 << 64):
        with pytest.raises((ValueError, OverflowError)):
            queue.schedule(str, delay=bad)
    with pytest.raises((ValueError, OverflowError)):
        queue.schedule(str, delay=(1 << 64) - 50)
    with pytest.raises(ValueError):
        kvmcpu.EventQueue(tick_frequency=0)
    assert (event.when, len(queue)) == (200, 1)


def test_exception_leaves_the_rest_in_order(queue: kvmcpu.EventQueue) -> None:
    """V7: what a callback raises comes out; time stands at its tick and the rest still waits."""
    seen: list[int] = []
    queue.schedule(partial(seen.append, 1), 10)
    queue.schedule(lambda: 1 // 0, 20)
    queue.schedule(partial(seen.append, 2), 20)
    queue.schedule(partial(seen.append, 3), 30)
    with pytest.raises(ZeroDivisionError):
        queue.service(40)
    assert (seen, queue.now, len(queue)) == ([1], 20, 2)
    assert queue.service(40) == 2
    assert (seen, queue.now) == ([1, 2, 3], 40)


def test_scheduling_from_many_threads(queue: kvmcpu.EventQueue) -> None:
    """V7: any thread may schedule and cancel; nothing is lost and the order holds."""
    seen: list[int] = []

    def schedule(thread: int) -> None:
        for n in range(500):
            tick = (n * 31 + thread) % 1000
            event = queue.schedule(lambda: seen.append(queue.now), tick)
            if n % 5 == 0:
                event.cancel()

    threads = [threading.Thread(target=schedule, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.service(1000) == len(seen) == 4 * 400
    assert seen == sorted(seen)


# ---- under a vCPU


@pytest.mark.kvm(arch="x86_64")
def test_events_of_a_running_guest(guest: Maker) -> None:
    """V7: events come on time over a guest that never leaves by itself, and in order."""
    g = guest(SPIN)
    queue = g.vm.queue
    seen: list[tuple[int, int]] = []
    for n in (3, 1, 2):
        tick = n * 10**9
        queue.schedule(lambda tick=tick: seen.append((tick, queue.now)), tick)  # type: ignore[misc]
    passed = g.run("4ms")
    assert g.cpu.stop_reason == "ticks"
    assert [tick for tick, _ in seen] == [10**9, 2 * 10**9, 3 * 10**9]
    assert all(now >= tick for tick, now in seen)
    assert passed >= 4 * 10**9
    assert queue.now == passed


@pytest.mark.kvm(arch="x86_64")
def test_event_beyond_the_run(guest: Maker) -> None:
    """V7: an event due after the run's end waits for the run that reaches it."""
    g = guest(SPIN)
    seen: list[int] = []
    event = g.vm.queue.schedule(partial(seen.append, 1), "1s")
    g.run("1ms")
    assert seen == []
    event.reschedule(delay="1us")
    g.run("1ms")
    assert seen == [1]


@pytest.mark.kvm(arch="x86_64")
def test_idle_cpu_jumps_to_the_next_event(guest: Maker) -> None:
    """V7: while the CPU is Idle time jumps from event to event, no host time passes."""
    g = guest("hlt")
    queue = g.vm.queue
    seen: list[int] = []
    for hours in (1, 2, 3):
        queue.schedule(lambda: seen.append(queue.now), f"{3600 * hours}s")
    before = time.monotonic()
    passed = g.run()
    assert time.monotonic() - before < 60
    assert seen == [3600 * hours * 10**12 for hours in (1, 2, 3)]
    assert g.cpu.stop_reason == "idle"
    assert g.cpu.status == "Idle"
    assert passed == queue.now == seen[-1]


@pytest.mark.kvm(arch="x86_64")
def test_idle_cpu_to_the_end_of_the_run(guest: Maker) -> None:
    """V7: an Idle CPU's run takes exactly its ticks; an event at the end belongs to it."""
    g = guest("hlt")
    g.run()
    seen: list[int] = []
    start = g.vm.queue.now
    g.vm.queue.schedule(partial(seen.append, 1), start + 1000)
    g.vm.queue.schedule(partial(seen.append, 2), start + 1001)
    assert g.run(1000) == 1000
    assert (seen, g.vm.queue.now, g.cpu.stop_reason) == ([1], start + 1000, "ticks")


@pytest.mark.kvm(arch="x86_64")
def test_event_wakes_an_idle_cpu(guest: Maker) -> None:
    """V7, V11: an event that wakes the CPU up ends its sleep; the guest goes on behind its hlt."""
    g = guest("hlt; mov al, 7; out 0xe9, al; hlt")
    out = g.collect()
    g.vm.queue.schedule(g.cpu.wakeup, "500ms")
    passed = g.run()
    assert out == [7]
    assert passed >= 500 * 10**9
    assert g.cpu.stop_reason == "idle"


@pytest.mark.kvm(arch="x86_64")
def test_exception_in_a_callback_comes_out_of_run(guest: Maker) -> None:
    """V7: a callback's exception comes out of run() as it is; the guest and the queue go on."""
    g = guest(SPIN)
    seen: list[int] = []

    class OwnError(Exception):
        pass

    def fail() -> None:
        raise OwnError("here")

    g.vm.queue.schedule(fail, "1ms")
    g.vm.queue.schedule(partial(seen.append, 1), "1500us")
    with pytest.raises(OwnError, match="here"):
        g.run("2ms")
    assert g.cpu.stop_reason == "error"
    assert (seen, g.cpu.status) == ([], "Running")
    assert g.vm.queue.now >= 10**9
    g.run("1ms")
    assert (seen, g.cpu.stop_reason) == ([1], "ticks")


@pytest.mark.kvm(arch="x86_64")
def test_periodic_event_over_a_guest(guest: Maker) -> None:
    """V7: a periodic event keeps its period over a spinning guest, without drift."""
    g = guest(SPIN)
    queue, ticks = g.vm.queue, []

    def call() -> None:
        ticks.append(event.when)
        event.reschedule(event.when + 10**9)

    event = queue.schedule(call, 10**9)
    g.run("20500us")
    assert len(ticks) >= 20
    assert ticks == [n * 10**9 for n in range(1, len(ticks) + 1)]


@pytest.mark.kvm(arch="x86_64")
def test_device_schedules_sooner(guest: Maker) -> None:
    """V7: an event that a device schedules bounds the next entry, though one was far away."""
    g = guest("out 0x10, al\nspin: jmp spin")
    queue = g.vm.queue
    seen: list[str] = []

    def write(_offset: int, _size: int, _value: int) -> None:
        queue.schedule(soon, delay="1ms")

    def soon() -> None:
        seen.append("soon")
        g.cpu.stop()

    queue.schedule(partial(seen.append, "late"), "1000s")
    g.vm.map_io(0x10, 1, write=write)
    g.run()
    assert (seen, g.cpu.stop_reason) == (["soon"], "stop")
    assert queue.now < 10**12


def when_in_the_guest(cpu: kvmcpu.Vcpu, call: Callable[[], object]) -> threading.Thread:
    """Have another thread make a call once the vCPU has been in a run for a moment."""

    def wait() -> None:
        while cpu.thread is None:
            time.sleep(0.0005)
        time.sleep(0.02)
        call()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize("far", [None, "1000s"])
def test_another_thread_schedules_sooner(guest: Maker, far: str | None) -> None:
    """V7: an event that another thread schedules shortens the entry in progress."""
    g = guest(SPIN)
    if far:
        g.vm.queue.schedule(str, far)
    seen: list[int] = []
    ident: list[int] = []

    def call() -> None:
        seen.append(g.vm.queue.now)
        ident.append(threading.get_ident())
        g.cpu.stop()

    events: list[kvmcpu.Event] = []
    thread = when_in_the_guest(
        g.cpu, lambda: events.append(g.vm.queue.schedule(call, delay="100us"))
    )
    g.run()
    thread.join()
    assert ident == [threading.get_ident()]
    assert seen[0] >= events[0].when
    # *Now* was the time that the entry in progress had reached, not that of its start.
    assert events[0].when > 10**9


@pytest.mark.kvm(arch="x86_64")
def test_another_thread_moves_an_event_closer(guest: Maker) -> None:
    """V7: rescheduling from another thread shortens the entry in progress as well."""
    g = guest(SPIN)
    event = g.vm.queue.schedule(g.cpu.stop, "1000s")
    thread = when_in_the_guest(g.cpu, lambda: event.reschedule(delay=0))
    g.run()
    thread.join()
    assert g.cpu.stop_reason == "stop"
    assert g.vm.queue.now < 10**14


@pytest.mark.kvm(arch="x86_64")
def test_cancelled_from_another_thread(guest: Maker) -> None:
    """V7: an event that is cancelled while the guest runs towards it is not called."""
    g = guest(SPIN)
    seen: list[int] = []
    event = g.vm.queue.schedule(partial(seen.append, 1), "10s")
    thread = when_in_the_guest(g.cpu, event.cancel)
    g.vm.queue.schedule(lambda: event.scheduled or g.cpu.stop(), "200ms")
    g.run("15s")
    thread.join()
    assert (seen, g.cpu.stop_reason) == ([], "stop")


@pytest.mark.kvm(arch="x86_64")
def test_queue_of_its_own(kvm: kvmcpu.Kvm) -> None:
    """V7: a vCPU with a queue of its own has its own time."""
    with kvm.create_vm() as vm:
        vm.add_memory(0, "64KiB")[0x1000] = 0xF4
        own = kvmcpu.EventQueue()
        cpu = vm.create_vcpu(queue=own)
        assert cpu.queue == own
        assert vm.create_vcpu().queue == vm.queue != own
        cpu.sregs.cs.base = cpu.sregs.cs.selector = 0
        cpu.regs.rip = 0x1000
        own.schedule(str, "1s")
        cpu.run()
        assert own.now == 10**12
        assert vm.queue.now == 0


@pytest.mark.kvm(arch="x86_64")
def test_clock_of_the_events_is_the_guests(guest: Maker) -> None:
    """V7: the time that the queue tells moves with the guest, and never back."""
    g = guest(SPIN)
    times = [g.vm.queue.now]
    for _ in range(20):
        passed = g.run("100us")
        times.append(g.vm.queue.now)
        assert times[-1] - times[-2] == passed >= 10**8
    assert times == sorted(times)
