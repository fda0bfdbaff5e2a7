# SPDX-License-Identifier: MIT
"""Ticks and cycles, the two knobs that scale them, run timers, and whence the numbers come."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from conftest import Maker
from guests import Guest

import kvmcpu

pytestmark = pytest.mark.kvm(arch="x86_64")

SPIN = "spin: jmp spin"
SECOND = 10**12
# PERF_TYPE_SOFTWARE with PERF_COUNT_SW_TASK_CLOCK: the thread's own time, in ns, on every host.
TASK_CLOCK = (1, 1)
TIMERS: list[dict[str, Any]] = [{}, {"use_perf_overflow": True, "perf_event": TASK_CLOCK}]
SOURCES: list[dict[str, Any]] = [
    {"time_source": "tsc"},
    {"time_source": "thread"},
    {"time_source": "perf", "perf_event": TASK_CLOCK},
]


def named(options: dict[str, Any]) -> str:
    return str(options.get("time_source") or ("perf timer" if options else "posix timer"))


@pytest.fixture(autouse=True)
def _software_events(vm: kvmcpu.VM) -> None:
    """Where not even the software clock may be opened, what needs it is skipped."""
    try:
        vm.create_vcpu(perf_event=TASK_CLOCK, time_source="perf")
    except kvmcpu.UnsupportedError as error:
        pytest.skip(f"no software clock event here: {error}")


# ---- ticks and cycles (V1)


def test_tick_is_a_picosecond(kvm: kvmcpu.Kvm) -> None:
    """V1: a tick is 1 ps unless the system says otherwise; a cycle is a period of the clock."""
    with kvm.create_vm() as vm:
        assert vm.tick_frequency == vm.queue.tick_frequency == SECOND
        assert vm.create_vcpu(clock="2GHz").clock_period == 500
        assert vm.create_vcpu(clock=3e9).clock_period == 333
        assert vm.create_vcpu(clock=10**12).clock_period == 1
        assert vm.create_vcpu(clock="5THz").clock_period == 1  # never less than a tick
    with kvm.create_vm(tick_frequency=10**9) as vm:
        assert vm.create_vcpu(clock="1MHz").clock_period == 1000


def test_clock_by_default(vm: kvmcpu.VM) -> None:
    """V1, V2: by default the clock is the host's, times host_factor."""
    cpu = vm.create_vcpu(host_freq="2GHz", host_factor=2.0)
    assert (cpu.host_freq, cpu.host_factor, cpu.clock_period) == (2e9, 2.0, 250)
    assert vm.create_vcpu(host_freq="2GHz").clock_period == 500
    own = vm.create_vcpu()
    assert 1e8 < own.host_freq < 1e11
    assert own.clock_period == max(1, round(SECOND / own.host_freq))


@pytest.mark.parametrize(
    "options",
    [
        {"host_factor": 0.0},
        {"host_factor": -1.0},
        {"host_factor": float("nan")},
        {"host_factor": float("inf")},
        {"host_freq": 0},
        {"host_freq": "-1GHz"},
        {"clock": 0},
        {"clock": "fast"},
        {"clock": float("inf")},
        {"host_freq": 1e-30},
        {"host_factor": 1e30},
        {"time_source": "sundial"},
    ],
    ids=str,
)
def test_knobs_that_are_refused(vm: kvmcpu.VM, options: dict[str, Any]) -> None:
    """V2: what is no frequency or factor is a clear error, and makes no vCPU."""
    count = len(vm.vcpus)
    with pytest.raises(ValueError):
        vm.create_vcpu(**options)
    assert len(vm.vcpus) == count


# ---- the scale (V2)


def spin(g: Guest, ticks: str) -> tuple[int, int, float]:
    """Ticks, cycles and host seconds of a run of a spinning guest."""
    g.cpu.stats.reset()
    before = time.monotonic()
    passed = g.run(ticks)
    seconds = time.monotonic() - before
    cycles = g.cpu.stats["cycles"]
    assert cycles is not None
    return passed, cycles, seconds


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 3.7])
def test_cycles_and_ticks_agree(guest: Maker, factor: float) -> None:
    """V2, V9: ticks are cycles at host_freq: the factor changes both, never how they relate."""
    g = guest(SPIN, host_factor=factor, clock="1GHz")
    _, cycles, _ = spin(g, "5ms")
    in_guest = g.cpu.stats["ticks"]
    assert in_guest is not None
    assert cycles == pytest.approx(in_guest * g.cpu.host_freq / SECOND, rel=1e-5)
    # Exactly 5 ms at least, and no more than the entries took, each rounded up to the clock.
    assert in_guest >= 4.9e9


@pytest.mark.parametrize("options", SOURCES[:2], ids=named)
@pytest.mark.parametrize("factor", [0.25, 1.0, 2.0, 8.0])
def test_host_factor(guest: Maker, options: dict[str, Any], factor: float) -> None:
    """V2: a CPU that is twice as fast as the host's counts twice the cycles in the host's time."""
    g = guest(SPIN, host_factor=factor, **options)
    for _ in range(100):  # a busy machine may be slow by itself
        passed, cycles, seconds = spin(g, "16ms")
        # Never more than the host's clock allows.
        assert cycles <= seconds * g.cpu.host_freq * factor * 1.01
        assert passed / SECOND <= seconds * factor * 1.01
        if seconds <= 4 * 0.016 / factor + 0.01:
            break
    else:
        raise AssertionError(f"16 ms of the guest's take {seconds} s at a factor of {factor}")


def test_host_freq(guest: Maker) -> None:
    """V2: told that the host's clock is slower, its cycles are worth more ticks."""
    freq = guest(SPIN).cpu.host_freq
    for divisor in (10, 0.1):
        g = guest(SPIN, host_freq=freq / divisor, time_source="tsc")
        for _ in range(100):  # a busy machine may be slow by itself
            passed, cycles, seconds = spin(g, f"{10 * divisor}ms")
            assert cycles <= seconds * freq * 1.01
            assert passed / SECOND <= seconds * divisor * 1.01
            if seconds < 0.05:
                break
        else:
            raise AssertionError(f"10 ms of the host take {seconds} s")


def test_another_tick(kvm: kvmcpu.Kvm) -> None:
    """V1, V2: the same time in other ticks."""
    with kvm.create_vm(tick_frequency=10**9) as vm:
        ram = vm.add_memory(0, "64KiB")
        ram[0x1000:0x1002] = b"\xeb\xfe"
        cpu = vm.create_vcpu(clock="1GHz")
        cpu.sregs.cs.base = cpu.sregs.cs.selector = 0
        cpu.regs.rip = 0x1000
        before = time.monotonic_ns()
        passed = cpu.run("3ms")
        assert 3_000_000 <= passed <= (time.monotonic_ns() - before) * 1.01
        assert vm.queue.now == passed


# ---- the run timers (V3)


@pytest.mark.parametrize("options", TIMERS, ids=named)
def test_timer_bounds_each_entry(guest: Maker, options: dict[str, Any]) -> None:
    """V3: the timer ends an entry, not before its time and not much after it, by a kick."""
    g = guest(SPIN, **options)
    took = []
    for _ in range(20):
        took.append(g.cpu.enter("1ms"))
        assert g.cpu.exit is not None
        assert g.cpu.exit.name == "INTR"
    # One that was preempted before it began, or in the guest, is shorter or longer than the rest.
    assert 0.9e9 <= sorted(took)[10] <= 5e9
    assert g.cpu.stats["exit_signal"] == 20


@pytest.mark.parametrize("options", TIMERS, ids=named)
@pytest.mark.parametrize("ticks", [1, 1000, "1us", "100us", "2ms"])
def test_run_takes_its_ticks(guest: Maker, options: dict[str, Any], ticks: int | str) -> None:
    """V3, V7: a run lasts for its ticks at least, however short."""
    g = guest(SPIN, **options)
    for _ in range(5):
        before = g.vm.queue.now
        passed = g.run(ticks)
        assert passed >= kvmcpu.parse_ticks(ticks)
        assert g.vm.queue.now - before == passed
        assert g.cpu.stop_reason == "ticks"


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_resolution(guest: Maker, factor: float) -> None:
    """V3: the timers tell their resolution in ticks, and a shorter request is lengthened to it."""
    posix = guest(SPIN, host_factor=factor).cpu
    assert posix.timer_resolution == pytest.approx(1000 * factor, rel=0.01)
    overflow = guest(SPIN, host_factor=factor, use_perf_overflow=True, perf_event=TASK_CLOCK).cpu
    assert overflow.timer_resolution == pytest.approx(10_000_000 * factor, rel=0.01)
    took = sorted(overflow.enter(1) for _ in range(21))
    assert took[10] >= overflow.timer_resolution / 2


@pytest.mark.parametrize("options", TIMERS, ids=named)
def test_timer_follows_the_thread(guest: Maker, options: dict[str, Any]) -> None:
    """V3: the timer kicks the thread that runs the vCPU now, wherever it ran before."""
    g = guest(SPIN, **options)
    reasons: list[str | None] = []

    def run() -> None:
        g.run("1ms")
        reasons.append(g.cpu.stop_reason)

    for _ in range(3):
        run()
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(20)
        if thread.is_alive():
            g.cpu.stop()
    assert reasons == ["ticks"] * 6


@pytest.mark.parametrize("options", TIMERS, ids=named)
def test_no_timer_is_left_armed(guest: Maker, options: dict[str, Any]) -> None:
    """V3, V10: a run that ends before its timer leaves none behind: its signal would end us."""
    g = guest("out 0xe9, al; jmp 0x1000", **options)
    count: list[int] = []

    def write(_offset: int, _size: int, _value: int) -> None:
        count.append(1)
        g.cpu.stop()

    g.vm.map_io(0xE9, 1, write=write)
    reasons: list[str | None] = []
    while reasons.count("stop") < 50 and len(reasons) < 1000:  # a busy host may take 1 ms away
        g.run("1ms")
        reasons.append(g.cpu.stop_reason)
    time.sleep(0.005)
    assert reasons.count("stop") == 50
    assert len(count) >= 50
    g.cpu.enter("100ms")
    g.cpu.enter(0)
    assert g.cpu.stats["exit_signal"] <= reasons.count("ticks")


@pytest.mark.parametrize("options", TIMERS, ids=named)
def test_many_exits_within_a_timers_time(guest: Maker, options: dict[str, Any]) -> None:
    """V3: exits in between do not push the end of the run away."""
    g = guest("out 0xe9, al; jmp 0x1000", **options)
    g.vm.map_io(0xE9, 1, write=kvmcpu.ByteSink())
    for _ in range(5):
        passed = g.run("3ms")
        assert passed >= 3e9
    exits = g.cpu.stats["io"]
    assert exits is not None
    assert exits > 5


@pytest.mark.parametrize("options", TIMERS, ids=named)
def test_long_run(guest: Maker, options: dict[str, Any]) -> None:
    """V3: a timer that fires a trifle early, by another clock than the run's, is armed again."""
    g = guest(SPIN, **options)
    ends = []
    for _ in range(3):
        thread = threading.Thread(target=g.run, args=("400ms",))
        thread.start()
        thread.join(30)
        ends.append(thread.is_alive())
        g.cpu.stop()
        thread.join()
    assert ends == [False] * 3
    assert g.cpu.stop_reason == "ticks"


def test_overflow_timer_that_cannot_be(vm: kvmcpu.VM) -> None:
    """V3: an event that this host lacks is refused with the reason, and the VM is intact."""
    with pytest.raises(kvmcpu.UnsupportedError) as caught:
        vm.create_vcpu(use_perf_overflow=True, perf_event=(99, 0))
    assert caught.value.errno
    assert vm.create_vcpu().status == "Running"


# ---- time sources and counters (V9)


@pytest.mark.parametrize("options", SOURCES, ids=named)
def test_time_sources(guest: Maker, options: dict[str, Any]) -> None:
    """V9: time comes from the source that was chosen, and each tells the host's time."""
    g = guest(SPIN, **options)
    assert g.cpu.time_source == options["time_source"]
    passed, cycles, seconds = spin(g, "10ms")
    assert 10**10 <= passed <= seconds * SECOND * 1.01
    assert cycles <= seconds * g.cpu.host_freq * 1.01
    assert cycles >= 0.0099 * g.cpu.host_freq


def test_thread_clock_counts_the_thread_only(guest: Maker) -> None:
    """V9: with the thread's clock no more time passes than the thread got of a processor."""
    g = guest(SPIN, time_source="thread")
    before = time.thread_time_ns()
    passed = g.run("5ms")
    assert passed <= (time.thread_time_ns() - before) * 1000 * 1.001


def test_auto_takes_what_there_is(vm: kvmcpu.VM) -> None:
    """V9: hardware counters where the host has them; else the time stamp counter, and why."""
    cpu = vm.create_vcpu()
    if cpu.counter_error is None:
        assert (cpu.time_source, cpu.insts_source) == ("perf", "perf")
    else:
        assert (cpu.time_source, cpu.insts_source) == ("tsc", None)
        assert len(cpu.counter_error) > 20
        with pytest.raises(kvmcpu.UnsupportedError) as caught:
            vm.create_vcpu(time_source="perf")
        assert cpu.counter_error in str(caught.value)
        assert caught.value.errno


@pytest.mark.parametrize("options", [{}, *SOURCES, TIMERS[1]], ids=str)
def test_instructions_are_counted_or_unknown(guest: Maker, options: dict[str, Any]) -> None:
    """V9: instructions are a count of instructions or said to be unavailable, nothing else."""
    g = guest(SPIN, **options)
    g.run("2ms")
    insts = g.cpu.stats["insts"]
    if g.cpu.insts_source is None:
        assert insts is None
        assert g.vm.stats["insts"] is None
        assert "committedInsts" in g.cpu.stats.dump()
        assert " nan " in g.cpu.stats.dump().lower() or "unavailable" in g.cpu.stats.dump()
    else:
        assert insts is not None
        assert insts > 100


def test_steps_are_counted_without_counters(guest: Maker) -> None:
    """V9: what was single-stepped only is known exactly, counters or not."""
    g = guest("inc ebx\njmp 0x1000")
    assert g.cpu.step(10) == 10
    assert g.cpu.stats["insts"] == 10
    assert g.vm.stats["insts"] == 10
    g.run("100us")
    assert (g.cpu.stats["insts"] is None) == (g.cpu.insts_source is None)


def test_sums_of_a_vm(guest: Maker) -> None:
    """V9, V14: cycles and exits of each vCPU make up those of the VM."""
    g = guest(SPIN)
    other = g.vm.create_vcpu(host_factor=3.0)
    other.sregs, other.regs = g.cpu.sregs, g.cpu.regs
    g.run("1ms")
    other.run("2ms")
    for name in ("cycles", "ticks", "exits", "exit_signal"):
        mine, others = g.cpu.stats[name], other.stats[name]
        assert mine
        assert others
        assert g.vm.stats[name] == mine + others
    g.vm.stats.reset()
    assert g.cpu.stats["cycles"] == other.stats["exits"] == g.vm.stats["ticks"] == 0


def test_time_adds_up(guest: Maker) -> None:
    """V9: the ticks of all entries are what the statistics tell; a run's are these, rounded up."""
    g = guest(SPIN, clock="1GHz")
    total = sum(g.cpu.enter("50us") for _ in range(20))
    assert g.cpu.stats["ticks"] == total
    assert total <= g.vm.queue.now <= total + 20 * 1000
