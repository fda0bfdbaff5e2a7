# SPDX-License-Identifier: MIT
"""Kicks and signals: none lost, none left over, and the host program's own signals as they were."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Maker
from guests import ORIGIN, Guest, sized

import kvmcpu

pytestmark = pytest.mark.kvm(arch="x86_64")

SPIN = "spin: jmp spin"
# At ORIGIN a guest that spins, at LEAVE one that leaves at once.
SPIN_OR_LEAVE = "spin: jmp spin\n.org 0x100\nleave: out 0xe9, al; jmp leave"
LEAVE = ORIGIN + 0x100

KICK_SIGNAL = 16  # SIGSTKFLT, for which Python has a name since 3.11


@contextmanager
def watchdog(guest: Guest, seconds: float = 100) -> Iterator[list[str]]:
    """If the guest is not back by then, kick it out of where it is lost, and fail."""
    lost: list[str] = []

    def bark() -> None:
        lost.append("a kick was lost")
        guest.vm.stop()

    timer = threading.Timer(seconds, bark)
    timer.start()
    try:
        yield lost
    finally:
        timer.cancel()
        timer.join()
    assert not lost


def pause(rng: random.Random) -> None:
    """A random while, mostly so short that it ends about when the entry begins."""
    kind = rng.randrange(10)
    if kind < 6:
        for _ in range(rng.randrange(400)):
            pass
    elif kind < 9:
        time.sleep(rng.random() * 1e-4)
    else:
        time.sleep(0)


def kicked_out(g: Guest, count: int, seed: int) -> None:
    """Kick count entries from another thread at random moments: each ends exactly one."""
    go, entered = threading.Semaphore(0), 0
    rng = random.Random(seed)

    def kick() -> None:
        for _ in range(count):
            go.acquire()
            pause(rng)
            while not g.cpu.kick():
                time.sleep(0)

    thread = threading.Thread(target=kick)
    with watchdog(g, max(100, count / 500)) as lost:
        thread.start()
        for _ in range(count):
            g.cpu.regs.rip = ORIGIN
            go.release()
            g.cpu.enter()  # nothing else ends it
            entered += 1
            if lost or g.cpu.last_exits()[-1].name != "INTR":
                break
            # Nothing is left of the kick: this entry gets to its exit.
            g.cpu.regs.rip = LEAVE
            g.cpu.enter()
            if g.cpu.last_exits()[-1].name != "IO":
                break
        else:
            thread.join()
    names = [record.name for record in g.cpu.last_exits()[-2:]]
    assert (entered, names) == (count, ["INTR", "IO"])
    assert g.cpu.stats["exit_signal"] == count


def test_kicks_at_random_moments(guest: Maker) -> None:
    """V10: 10,000 kicks at random moments: each ends the entry it came in, none the next one."""
    kicked_out(guest(SPIN_OR_LEAVE), 10_000, seed=1)


@pytest.mark.slow
def test_a_million_kicks(guest: Maker) -> None:
    """V10: 10^6 kicks at random moments: none lost, none leaking into the next run."""
    kicked_out(guest(SPIN_OR_LEAVE), 1_000_000, seed=2)


def test_stops_from_three_threads(guest: Maker) -> None:
    """V10: 10,000 stops from three threads at random moments: each ends its run, not the next."""
    g = guest(SPIN_OR_LEAVE)
    g.vm.map_io(0xE9, 1, write=kvmcpu.ByteSink())
    done, stopped = 0, [0, 0, 0]
    over = False

    def stop(n: int) -> None:
        rng = random.Random(n)
        while not over:
            pause(rng)
            before = done
            if g.cpu.stop():
                stopped[n] += 1
                while done == before and not over:  # the run that it came in ends by it
                    time.sleep(0)

    threads = [threading.Thread(target=stop, args=(n,)) for n in range(3)]
    with watchdog(g) as lost:
        for thread in threads:
            thread.start()
        while sum(stopped) < 10_000 and not lost:
            g.cpu.regs.rip = ORIGIN
            g.run()
            assert g.cpu.stop_reason == "stop"
            done += 1
        over = True
        while any(thread.is_alive() for thread in threads):
            g.cpu.stop()
            time.sleep(0.001)
    assert sum(stopped) >= done  # several may have ended one run
    exits = g.cpu.stats["exit_signal"]
    assert exits is not None
    assert exits <= done
    g.cpu.regs.rip = LEAVE
    g.cpu.enter()
    assert g.cpu.last_exits()[-1].name == "IO"


def test_kicks_over_device_accesses(guest: Maker) -> None:
    """V10: kicks that come in the middle of exits and handlers lose no access and end no run."""
    g = guest("mov cx, 20000\nmore: mov ax, cx; out 0xe0, ax; loop more\nhlt")
    values: list[int] = []
    sink = kvmcpu.ByteSink()
    g.vm.map_io(0xE0, 2, write=lambda _offset, _size, value: values.append(value))
    g.vm.map_io(0xE9, 1, write=sink)
    over = threading.Event()

    def kick() -> None:
        rng = random.Random(3)
        while not over.is_set():
            pause(rng)
            g.cpu.kick()

    threads = [threading.Thread(target=kick) for _ in range(2)]
    for thread in threads:
        thread.start()
    with watchdog(g):
        g.run()
    over.set()
    for thread in threads:
        thread.join()
    assert g.cpu.stop_reason == "idle"
    assert values == list(range(20000, 0, -1))


def test_kick_of_nobody(guest: Maker) -> None:
    """V10: a kick while nobody runs the vCPU says so, and nothing is kept of it."""
    g = guest(SPIN_OR_LEAVE)
    g.cpu.regs.rip = LEAVE
    for _ in range(100):
        assert g.cpu.kick() is False
        assert g.cpu.stop() is False
        g.cpu.enter()
        assert g.cpu.last_exits()[-1].name == "IO"
    assert g.cpu.stats["exit_signal"] == 0


def test_kick_from_a_handler(guest: Maker) -> None:
    """V10: a kick from the thread that runs the vCPU ends its next entry; the run goes on."""
    g = guest("out 0x10, al; mov al, 5; out 0xe9, al; hlt")
    out = g.collect()
    kicked: list[bool] = []
    g.vm.map_io(0x10, 1, write=lambda _offset, _size, _value: kicked.append(g.cpu.kick()))
    g.run()
    assert (kicked, out, g.cpu.stop_reason) == ([True], [5], "idle")
    assert [record.name for record in g.cpu.last_exits()] == ["IO", "INTR", "IO", "HLT"]


def test_stop_from_a_handler(guest: Maker) -> None:
    """V10: a stop from a handler ends the run after the access; the next run goes on behind it."""
    g = guest("out 0x10, al; mov al, 5; out 0xe9, al; hlt")
    out = g.collect()
    g.vm.map_io(0x10, 1, write=lambda _offset, _size, _value: stopped.append(g.cpu.stop()))
    stopped: list[bool] = []
    g.run()
    assert (stopped, out, g.cpu.stop_reason) == ([True], [], "stop")
    g.run()
    assert (stopped, out, g.cpu.stop_reason) == ([True], [5], "idle")


def test_stop_of_the_whole_vm(guest: Maker) -> None:
    """V10: VM.stop() ends the runs of all its vCPUs."""
    g = guest(SPIN)
    cpus = [g.cpu]
    for _ in range(3):
        cpus.append(g.vm.create_vcpu())
        cpus[-1].sregs = g.cpu.sregs
        cpus[-1].regs = g.cpu.regs
    threads = [threading.Thread(target=cpu.run) for cpu in cpus]
    for thread in threads:
        thread.start()
    while any(cpu.thread is None for cpu in cpus):
        time.sleep(0.001)
    g.vm.stop()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert {cpu.stop_reason for cpu in cpus} == {"stop"}


def test_timer_and_kicks_at_once(guest: Maker) -> None:
    """V3, V10: a timer that ends a run as kicks come leaves no signal behind (it would end us)."""
    g = guest(SPIN_OR_LEAVE)
    over = threading.Event()

    def kick() -> None:
        while not over.is_set():
            g.cpu.kick()
            time.sleep(0)

    thread = threading.Thread(target=kick)
    thread.start()
    try:
        for _ in range(3000):
            g.run("30us")
            assert g.cpu.stop_reason == "ticks"
            assert KICK_SIGNAL not in signal.sigpending()
    finally:
        over.set()
        thread.join()


# ---- the thread's mask and the process's handlers (V18)


def caught() -> str:
    """Which signals the process handles, and which it ignores, as the kernel has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return " ".join(line for line in lines if line.startswith(("SigCgt", "SigIgn")))


def mask() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_mask_and_handlers_are_as_before(guest: Maker) -> None:
    """V18: after a run, however it ends, the mask and the process's handlers are as before."""
    handlers = caught()
    before = mask()
    g = guest("out 0x10, al\n" + SPIN)
    inside: list[set[int]] = []

    def write(_offset: int, _size: int, _value: int) -> None:
        inside.append(mask())
        if len(inside) == 2:
            _ = 1 // 0

    g.vm.map_io(0x10, 1, write=write)
    while not inside:
        g.run("1ms")
    assert mask() == before
    g.cpu.regs.rip = ORIGIN
    with pytest.raises(ZeroDivisionError):
        g.run("10s")
    assert mask() == before
    g.cpu.enter(0)
    g.cpu.enter("10us")
    g.vm.queue.schedule(str, delay="10us")
    g.cpu.tick()
    g.cpu.step(2)
    assert mask() == before
    assert caught() == handlers
    assert not signal.sigpending()
    # In a handler everything is as outside, but for the kick.
    assert inside == [before | {KICK_SIGNAL}] * 2


def test_mask_of_its_own(guest: Maker) -> None:
    """V18: what the thread blocks stays blocked inside the guest, and pending until opened."""
    g = guest(SPIN)
    seen: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        before = mask()
        g.vm.queue.schedule(
            lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1), "500us"
        )
        g.run("3ms")
        assert (seen, mask(), g.cpu.stop_reason) == ([], before, "ticks")
        assert signal.sigpending() == {signal.SIGUSR1}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, old)
    assert seen == [signal.SIGUSR1]


def test_blocked_kick_signal(guest: Maker) -> None:
    """V18: a thread that blocks the signal that kicks use is kicked all the same."""
    g = guest(SPIN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {KICK_SIGNAL})
    try:
        before = mask()
        g.run("1ms")
        assert (mask(), g.cpu.stop_reason) == (before, "ticks")
        assert not signal.sigpending()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {KICK_SIGNAL})


def test_processes_started_in_a_handler(guest: Maker) -> None:
    """V18: a program that a handler starts has the signals open that are open outside."""
    g = guest("out 0x10, al; hlt")
    words: list[int] = []

    def write(_offset: int, _size: int, _value: int) -> None:
        status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True)
        line = next(line for line in status.stdout.splitlines() if line.startswith("SigBlk"))
        words.append(int(line.split()[1], 16))

    g.vm.map_io(0x10, 1, write=write)
    write(0, 0, 0)
    g.run()
    # But for the kick's, which has to stay shut in this thread as long as it may be on its way.
    assert words[1] & ~(1 << (KICK_SIGNAL - 1)) == words[0]


# ---- signals of the host program while a guest spins (V18)


@contextmanager
def handled(number: int, handler: Callable[[], object]) -> Iterator[None]:
    old = signal.signal(number, lambda _number, _frame: handler())
    try:
        yield
    finally:
        signal.signal(number, old)


def test_alarm_runs_promptly(guest: Maker) -> None:
    """V18: a handler of the host program runs while a guest loops for ever, as often as asked."""
    g = guest(SPIN)
    times: list[float] = []

    def alarm() -> None:
        times.append(time.monotonic())
        if len(times) == 10:
            g.cpu.stop()

    with handled(signal.SIGALRM, alarm), watchdog(g, 30):
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        try:
            g.run()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(times) == 10
    assert g.cpu.stop_reason == "stop"


def test_alarm_that_raises(guest: Maker) -> None:
    """V18: what a handler raises comes out of the run, and the vCPU runs on."""
    g = guest(SPIN)

    def alarm() -> None:
        raise TimeoutError("enough")

    before = mask()
    for _ in range(3):
        with handled(signal.SIGALRM, alarm), watchdog(g, 30):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(TimeoutError, match="enough"):
                g.run()
        assert (g.cpu.stop_reason, g.cpu.status) == ("error", "Running")
        assert mask() == before
        g.run("1ms")
        assert g.cpu.stop_reason == "ticks"


# A program of its own: Ctrl-C is not to end the tests. It tells how late KeyboardInterrupt is.
INTERRUPTED = """
import os, signal, sys, threading, time
import kvmcpu

case, bystanders = sys.argv[1], int(sys.argv[2])
with kvmcpu.Kvm() as kvm, kvm.create_vm() as vm:
    ram = vm.add_memory(0, "64KiB")
    codes = {
        "spin": b"\\xeb\\xfe",
        "handlers": b"\\xe6\\x10\\xeb\\xfc",  # out 0x10, al in a loop
        "sink": b"\\xe6\\x11\\xeb\\xfc",
        "builtin": b"\\xe6\\x12\\xeb\\xfc",
        "after": b"\\xe6\\x13\\xeb\\xfe",  # one out 0x13, al, then spin
    }
    ram[0x1000:0x1004] = codes[case].ljust(4, b"\\x90")
    cpu = vm.create_vcpu()
    cpu.sregs.cs.base = cpu.sregs.cs.selector = 0
    sent = []
    go = threading.Semaphore(0)

    def interrupt():
        while go.acquire():
            time.sleep(0.03)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    def arm(*_):
        # By the kernel, some microseconds later: right after the handler returned.
        sent.append(time.monotonic())
        signal.setitimer(signal.ITIMER_REAL, 20e-6)

    if case == "after":
        signal.signal(signal.SIGALRM, signal.default_int_handler)
    else:
        threading.Thread(target=interrupt, daemon=True).start()
    for _ in range(bystanders):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    vm.map_io(0x10, 1, write=lambda *access: None)
    vm.map_io(0x11, 1, write=kvmcpu.ByteSink(limit=100))
    vm.map_io(0x12, 1, write=pow)
    vm.map_io(0x13, 1, write=arm)
    late = []
    for _ in range(10):
        cpu.regs = {"rip": 0x1000, "rflags": 2, "rax": 5}
        if case != "after":
            go.release()
        try:
            cpu.run()
            sys.exit("the run came back: " + str(cpu.stop_reason))
        except KeyboardInterrupt:
            late.append(time.monotonic() - sent[-1])
        before = vm.queue.now
        cpu.regs.rip = 0x2000
        ram[0x2000:0x2002] = b"\\xeb\\xfe"
        try:
            cpu.run("1ms")  # the vCPU runs on
        except KeyboardInterrupt:
            sys.exit("one Ctrl-C, two KeyboardInterrupts")
        assert vm.queue.now - before >= 10**9
    print(*late)
"""


@pytest.mark.parametrize("bystanders", [0, 3])
@pytest.mark.parametrize("case", ["spin", "handlers", "sink", "builtin", "after"])
def test_ctrl_c(case: str, bystanders: int) -> None:
    """V18: Ctrl-C raises KeyboardInterrupt within 0.1 s, whatever the guest does; then it runs on.

    The guest spins; calls Python handlers, C handlers or C functions of Python's all the time; or
    spins right after a handler returned, when signals are still open in our code.
    """
    middle = 9.0
    for _ in range(20):  # a busy machine may be late by itself
        done = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, case, str(bystanders)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        middle = sorted(float(word) for word in done.stdout.split())[5]
        if middle < 0.1:
            break
    assert middle < 0.1


def test_ctrl_c_by_the_tests_own_process(guest: Maker) -> None:
    """V18: the same here, from a thread: the vCPU is as it was and can be looked at."""
    g = guest("inc ebx\njmp 0x1000")
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(3):
            timer = threading.Timer(0.02, lambda: os.kill(os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt), watchdog(g, 30):
                g.run()
            timer.join()
            counted = g.cpu.regs.rbx
            assert counted > 0
            g.run("1ms")
            assert g.cpu.regs.rbx > counted
    finally:
        signal.signal(signal.SIGINT, old)


def test_signals_of_other_threads(guest: Maker) -> None:
    """V18: a run on another thread is not disturbed by the first thread's signals."""
    g = guest(SPIN)
    thread = threading.Thread(target=g.run)
    count: list[int] = []
    with handled(signal.SIGALRM, lambda: count.append(1)):
        thread.start()
        while g.cpu.thread is None:
            time.sleep(0.001)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        end = time.monotonic() + 10
        while len(count) < 20 and time.monotonic() < end:
            time.sleep(0.001)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(count) >= 20
        assert g.cpu.stop()
        thread.join(10)
    assert g.cpu.stop_reason == "stop"


AT_THE_START = """
import os, random, signal, sys, threading, time
import kvmcpu

with kvmcpu.Kvm() as kvm, kvm.create_vm() as vm:
    vm.add_memory(0, "64KiB")[0x1000:0x1002] = b"\\xeb\\xfe"
    cpu = vm.create_vcpu()
    cpu.sregs.cs.base = cpu.sregs.cs.selector = 0
    for _ in range(3):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    go = threading.Semaphore(0)

    def interrupt():
        while go.acquire():
            end = time.perf_counter() + random.random() * 60e-6
            while time.perf_counter() < end:
                pass
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    for _ in range(int(sys.argv[1])):
        cpu.regs = {"rip": 0x1000, "rflags": 2}
        begin = time.monotonic()
        try:
            go.release()
            cpu.run()
        except KeyboardInterrupt:
            pass
        assert time.monotonic() - begin < 10, "the signal was lost"
"""


def test_ctrl_c_at_the_start_of_a_run() -> None:
    """V18: one before the entry, while our code has it blocked: another thread takes it."""
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_START, str(sized(300))],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
