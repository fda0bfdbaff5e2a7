# SPDX-License-Identifier: MIT
"""A consistent state: drain, switch out and take over, serialise and restore (V19, V20, V21)."""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
import random
import threading
import time
from typing import Any

import guests
import pytest

import kvmcpu

LOG = 0x20000000
# Writes 0, 1, 2, … to LOG, and reads it back now and then, with registers and memory taking part.
LOGGER = f"""
    mov rbx, {LOG:#x}
    xor rax, rax
again:
    mov [rbx], rax
    mov rcx, [rbx + 8]
    add rcx, 1
    mov [0x100000], rcx
    mov rax, [0x100000]
    jmp again
"""


class Log:
    """The device: it keeps what is written, and reads back the last."""

    def __init__(self) -> None:
        self.written: list[int] = []

    def read(self, offset: int, size: int) -> int:
        return self.written[-1]

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append(value)

    def attach(self, vm: kvmcpu.VM, **options: Any) -> None:
        vm.map_mmio(LOG, 16, self.read, self.write, **options)

    def check(self) -> None:
        """No gap, no repetition."""
        assert self.written == list(range(len(self.written)))


@pytest.fixture
def logger(user_guest):
    g = user_guest(LOGGER)
    log = Log()
    log.attach(g.vm)
    return g, log


def drained(cpu: kvmcpu.Vcpu) -> None:
    if not cpu.drain():
        assert cpu.draining
        cpu.run()
        assert cpu.stop_reason == "drained"
    assert cpu.drained
    assert not cpu.draining
    assert cpu.status == "Idle"


# ---- drain


def test_an_idle_cpu_is_drained_at_once(guest) -> None:
    """V19: Idle: done; resuming leaves an inactive one Idle."""
    g = guest("hlt")
    g.run()
    calls: list[int] = []
    assert g.cpu.drain(lambda: calls.append(1)) is True
    assert g.cpu.drained
    assert calls == []  # nobody has to be told later
    assert g.cpu.drain() is True
    g.cpu.resume()
    assert not g.cpu.drained
    assert g.cpu.status == "Idle"
    g.cpu.resume()


def test_a_running_cpu(logger) -> None:
    """V19: Running with nothing in flight: done at once, and resumed it is Running."""
    g, _ = logger
    assert g.cpu.status == "Running"
    assert g.cpu.drain() is True
    assert g.cpu.status == "Idle"
    with pytest.raises(kvmcpu.StateError, match="resume"):
        g.cpu.run()
    with pytest.raises(kvmcpu.StateError):
        g.cpu.tick()
    with pytest.raises(kvmcpu.StateError):
        g.cpu.enter()
    g.cpu.resume()
    assert g.cpu.status == "Running"


@pytest.mark.parametrize("state", ["RunningService", "RunningServiceCompletion"])
def test_an_access_is_finished_first(guest, state) -> None:
    """V19: steps go on, with half entries, until the access is delivered; then it is told once."""
    g = guest("in al, 0x10; mov bl, al; hlt")
    g.vm.map_io(0x10, 1, lambda *_: 0x42)
    g.cpu.tick()
    if state == "RunningServiceCompletion":
        g.cpu.tick()
    assert g.cpu.status == state
    half = g.cpu.stats["half_entries"]
    calls: list[str] = []
    assert g.cpu.drain(lambda: calls.append(g.cpu.status)) is False
    assert (g.cpu.draining, g.cpu.drained) == (True, False)
    g.run()
    assert calls == ["Idle"]
    assert (g.cpu.stop_reason, g.cpu.drained) == ("drained", True)
    assert g.cpu.stats["half_entries"] > half
    assert g.cpu.regs.rax & 0xFF == 0x42
    assert g.cpu.regs.rip == guests.ORIGIN + 2
    assert g.cpu.regs.rbx & 0xFF == 0  # the guest's next instruction was not executed
    g.cpu.resume()
    g.run()
    assert g.cpu.regs.rbx & 0xFF == 0x42


def test_by_steps(guest) -> None:
    """V19: a drain ends also when the steps are taken by hand."""
    g = guest("in al, 0x10; hlt")
    g.vm.map_io(0x10, 1, lambda *_: 7)
    g.cpu.tick()
    calls: list[int] = []
    assert g.cpu.drain(lambda: calls.append(1)) is False
    for _ in range(10):
        if g.cpu.drained:
            break
        g.cpu.tick()
    assert calls == [1]
    assert g.cpu.regs.rax & 0xFF == 7


def test_an_interrupt_in_flight_is_delivered_first(guest) -> None:
    """V19: an event that the kernel holds and has not delivered keeps the drain waiting."""
    g = guest("""
        mov word ptr [0x20 * 4], offset handler
        mov word ptr [0x20 * 4 + 2], 0
        sti
        out 0x10, al
    again:
        jmp again
    handler:
        mov byte ptr [0x8000], 1
    stay:
        jmp stay""")
    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.interrupt(0x20))
    g.cpu.tick()
    g.cpu.tick()
    assert g.cpu.drain() is False
    g.run("1s")
    assert g.cpu.stop_reason == "drained"
    events = g.cpu.events
    assert events.interrupt_injected == 0
    # Asked for but not handed over to the kernel: it stays with us, and comes afterwards.
    g.cpu.resume()
    g.run("20ms")
    assert g.ram[0x8000] == 1


def test_from_another_thread(logger) -> None:
    """V19: another thread asks, the run comes to an end, and the callback is called once."""
    g, log = logger
    for _ in range(200):
        calls: list[int] = []
        thread = threading.Thread(target=g.cpu.run)
        thread.start()
        count = len(log.written)
        while len(log.written) < count + 3:
            time.sleep(0)
        if not g.cpu.drain(lambda calls=calls: calls.append(threading.get_ident())):
            thread_id = thread.ident
            thread.join(10)
            assert not thread.is_alive()
            assert calls == [thread_id]
        thread.join()
        assert g.cpu.stop_reason == "drained"
        assert g.cpu.drained
        g.cpu.resume()
    log.check()


def test_in_a_handler(guest) -> None:
    """V19: a handler of its own run asks: that access is finished, then the run ends."""
    g = guest("out 0x10, al; mov bl, 1; hlt")
    answers: list[bool] = []
    g.vm.map_io(0x10, 1, write=lambda *_: answers.append(g.cpu.drain()))
    g.run()
    assert answers == [False]
    assert (g.cpu.stop_reason, g.cpu.drained) == ("drained", True)
    assert g.cpu.regs.rbx & 0xFF == 0
    g.cpu.resume()
    g.run()
    assert g.cpu.regs.rbx & 0xFF == 1


def test_the_callback_raises(guest) -> None:
    """V19: what the callback raises comes out of the run; the vCPU is drained nevertheless."""
    g = guest("in al, 0x10; hlt")
    g.vm.map_io(0x10, 1, lambda *_: 1)
    g.cpu.tick()

    def fail() -> None:
        raise LookupError("told")

    g.cpu.drain(fail)
    with pytest.raises(LookupError):
        g.run()
    assert g.cpu.drained
    with pytest.raises(TypeError):
        g.cpu.drain(5)


def test_given_up(logger) -> None:
    """V19: resuming before it is done takes the wish back."""
    g, log = logger
    while g.cpu.status != "RunningService":
        g.cpu.tick()
    assert g.cpu.drain() is False
    g.cpu.resume()
    assert not g.cpu.draining
    g.run("5ms")
    assert g.cpu.stop_reason == "ticks"
    log.check()


@pytest.mark.parametrize("coalesced", [False, True], ids=["mmio", "coalesced"])
def test_ten_thousand_cycles(user_guest, coalesced) -> None:
    """V19: 10,000 drain and resume cycles at random moments: no gap, no repetition."""
    chance = random.Random(19)
    g = user_guest(LOGGER)
    log = Log()
    log.attach(g.vm, coalesced=coalesced)
    moments: set[str] = set()
    for _ in range(10_000 if not coalesced else 1_000):
        for _ in range(chance.randrange(6)):
            g.cpu.tick()
        moments.add(g.cpu.status)
        drained(g.cpu)
        g.cpu.resume()
    log.check()
    assert moments == {"Running", "RunningService", "RunningServiceCompletion"}
    assert len(log.written) > 500


# ---- switch out, take over


def twin(kvm: kvmcpu.Kvm, ram: kvmcpu.Memory, log: Log) -> kvmcpu.Vcpu:
    """A vCPU of another VM that has the same memory and the same device."""
    vm = kvm.create_vm()
    vm.add_memory(0, ram)
    log.attach(vm)
    return vm.create_vcpu()


def test_a_thousand_take_overs(kvm, logger) -> None:
    """V20: VMs that share a Memory take over 1,000 times: no gap, no repetition."""
    chance = random.Random(20)
    g, log = logger
    one, two = g.cpu, twin(kvm, g.ram, log)
    try:
        drained(two)
        for _ in range(1_000):
            for _ in range(chance.randrange(8)):
                one.tick()
            drained(one)
            one.switch_out()
            assert one.switched_out
            two.take_over(one)
            assert not two.switched_out
            assert two.regs == one.regs
            two.resume()
            one, two = two, one
    finally:
        two.vm.close()
        one.vm.close()
    log.check()
    assert len(log.written) > 500


def strip(dump: str) -> list[str]:
    """A dump without what moves on by itself or belongs to the vCPU, not to its state."""
    moving = (
        "TSC",
        "cpu0",
        "cpu1",
        "(vCPU",
        "APERF",
        "MPERF",
        "0x10=",
        "STEAL",
        "SYSTEM_TIME",
        "REF_COUNT",
        "VP_RUNTIME",
    )
    words = [word for line in dump.splitlines() for word in line.split("  ") if word.strip()]
    return [word.strip() for word in words if not any(name in word for name in moving)]


def test_take_over_is_at_once(kvm, logger) -> None:
    """V20: a dump before and one after show the same state."""
    g, log = logger
    g.run("5ms")
    g.cpu.fpu.xmm5 = 0x1234 << 64
    g.cpu.debugregs.db2 = 0x5678
    g.cpu.msrs["LSTAR"] = 0x9ABC
    two = twin(kvm, g.ram, log)
    try:
        drained(g.cpu)
        before = strip(g.cpu.dump())
        g.cpu.switch_out()
        two.take_over(g.cpu)
        after = strip(two.dump())
        assert after == before
        assert (two.fpu.xmm5, two.debugregs.db2) == (0x1234 << 64, 0x5678)
        assert two.msrs["LSTAR"] == 0x9ABC
        g.vm.close()
        two.resume()
        two.run("5ms")
    finally:
        two.vm.close()
    log.check()


def test_switched_out(logger) -> None:
    """V19, V20: one that is switched out does not run, and is drained at once."""
    g, _ = logger
    with pytest.raises(kvmcpu.StateError, match="drain"):
        g.cpu.switch_out()
    drained(g.cpu)
    g.cpu.switch_out()
    assert g.cpu.switched_out
    assert g.cpu.drain() is True
    for call in (g.cpu.run, g.cpu.tick, g.cpu.enter, g.cpu.resume):
        with pytest.raises(kvmcpu.StateError, match="switched out"):
            call()


def test_take_over_errors(vm, cpu) -> None:
    """V20: only from one that is switched out, and only from a CPU."""
    other = vm.create_vcpu()
    with pytest.raises(kvmcpu.StateError, match="switch"):
        cpu.take_over(other)
    for wrong in (None, 5, object(), cpu):
        with pytest.raises((TypeError, AttributeError, kvmcpu.StateError)):
            cpu.take_over(wrong)
    drained(other)
    other.switch_out()
    cold = vm.create_vcpu(start=False)
    with pytest.raises(kvmcpu.NotStartedError):
        cold.take_over(other)


def test_take_over_from_another_kind(guest) -> None:
    """V20: CPUs of different kinds take over from each other: all that is asked is two names."""
    g = guest("mov ax, 0x1111; hlt; mov ax, 0x2222; hlt")
    g.run()
    drained(g.cpu)
    state = g.cpu.serialize()
    g.cpu.switch_out()

    class Simulator:
        switched_out = False

        def serialize(self) -> dict[str, Any]:
            return state

    simulator = Simulator()
    other = g.vm.create_vcpu()
    with pytest.raises(kvmcpu.StateError):
        other.take_over(simulator)
    simulator.switched_out = True
    other.take_over(simulator)
    other.resume()
    assert other.regs.rax == 0x1111
    other.activate()
    other.run()
    assert other.regs.rax == 0x2222


def test_memory_mode(logger, kvm) -> None:
    """V6: with a memory mode that KVM cannot have, neither start nor take over, and the reason."""
    g, log = logger
    two = twin(kvm, g.ram, log)
    try:
        two.vm.memory_mode_check = lambda: "a cache model stands before the memory"
        drained(g.cpu)
        g.cpu.switch_out()
        with pytest.raises(kvmcpu.StateError, match="cache model"):
            two.take_over(g.cpu)
        with pytest.raises(kvmcpu.StateError, match="cache model"):
            two.vm.create_vcpu()
        cold = two.vm.create_vcpu(start=False)
        with pytest.raises(kvmcpu.StateError, match="cache model"):
            cold.start()
        two.vm.memory_mode_check = lambda: None
        cold.start()
        two.take_over(g.cpu)
        two.resume()
        two.run("5ms")
    finally:
        two.vm.close()
    log.check()


# ---- serialise


def to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key: to_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    assert isinstance(value, int | str), type(value)
    return value


def from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"bytes"}:
            return base64.b64decode(value["bytes"])
        return {key: from_json(each) for key, each in value.items()}
    return [from_json(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("form", ["pickle", "json"])
def test_through_a_file(kvm, logger, tmp_path, form) -> None:
    """V21: a state goes through a file into a new VM, which shows the same and goes on."""
    g, log = logger
    g.run("5ms")
    g.cpu.fpu.xmm1 = 77
    drained(g.cpu)
    before, ticks = strip(g.cpu.dump()), g.vm.queue.now
    path = tmp_path / "state"
    if form == "pickle":
        path.write_bytes(pickle.dumps(g.cpu.serialize()))
        state = pickle.loads(path.read_bytes())
    else:
        path.write_text(json.dumps(to_json(g.cpu.serialize())))
        state = from_json(json.loads(path.read_text()))
    memory = bytes(g.ram)
    g.vm.close()
    with kvm.create_vm() as vm:
        vm.add_memory(0, len(memory))
        vm.write(0, memory)
        log.attach(vm)
        cpu = vm.create_vcpu()
        assert cpu.drain()
        cpu.unserialize(state)
        assert strip(cpu.dump()) == before
        cpu.resume()
        cpu.run("5ms")
        assert cpu.stop_reason == "ticks"
    log.check()
    assert ticks > 0


def test_only_when_idle(logger) -> None:
    """V21: neither saved nor restored unless Idle."""
    g, _ = logger
    with pytest.raises(kvmcpu.StateError, match="Idle"):
        g.cpu.serialize()
    drained(g.cpu)
    state = g.cpu.serialize()
    g.cpu.resume()
    with pytest.raises(kvmcpu.StateError, match="Idle"):
        g.cpu.unserialize(state)
    while g.cpu.status != "RunningService":
        g.cpu.tick()
    with pytest.raises(kvmcpu.StateError):
        g.cpu.serialize()


def test_ours_is_the_newer(guest) -> None:
    """V21: after restoring, our copy counts: the next entry hands it over."""
    g = guest("again: inc bx; out 0x10, al; jmp again")
    g.vm.map_io(0x10, 1, write=lambda *_: g.cpu.stop() and None)
    g.run()
    drained(g.cpu)
    state = g.cpu.serialize()
    rip = g.cpu.regs.rip
    g.cpu.resume()
    for _ in range(10):
        g.run()
    assert g.cpu.regs.rbx == 11
    drained(g.cpu)
    g.cpu.unserialize(state)
    assert (g.cpu.regs.rbx, g.cpu.regs.rip) == (1, rip)
    g.cpu.resume()
    g.run()
    assert g.cpu.regs.rbx == 2


def test_what_is_no_state(guest) -> None:
    """V21: what is not such a state is refused, and nothing has changed."""
    g = guest("hlt")
    g.run()
    state = g.cpu.serialize()
    before = g.cpu.regs.copy()
    for wrong in (None, 5, [], "state", b"state"):
        with pytest.raises((TypeError, KeyError, ValueError, AttributeError)):
            g.cpu.unserialize(wrong)
    with pytest.raises((KeyError, ValueError)):
        g.cpu.unserialize({})
    for key, value in state.items():
        less = {name: each for name, each in state.items() if name != key}
        with contextlib.suppress(KeyError, ValueError):
            g.cpu.unserialize(less)  # what one host has and another lacks may be missing
        if isinstance(value, bool):
            continue
        for wrong in (object(), None if value is not None else 5):
            with pytest.raises((KeyError, ValueError, TypeError)):
                g.cpu.unserialize({**state, key: wrong})
    g.cpu.unserialize(state)
    assert g.cpu.regs == before
    with pytest.raises((KeyError, ValueError)):
        g.cpu.unserialize({**state, "nonsense": 5})


def test_a_state_of_another_processor(kvm, guest) -> None:
    """V21: where the kernel refuses to be the processor that was saved, that is said."""
    g = guest("hlt")
    g.run()
    state = g.cpu.serialize()
    with kvm.create_vm() as vm:
        vm.add_memory(0, "1MiB")
        cpu = vm.create_vcpu(cpuid=None)
        assert cpu.drain()
        cpu.unserialize(state)  # a fresh one becomes it
        assert [entry[0] for entry in cpu.cpuid] == [entry[0] for entry in g.cpu.cpuid]
