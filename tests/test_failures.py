# SPDX-License-Identifier: MIT
"""Misuse: after close, from two threads, after a fork, before start, with wrong arguments."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import guests
import pytest

import kvmcpu

Calls = dict[str, Callable[[], object]]


def calls_of_a_vcpu(cpu: kvmcpu.Vcpu) -> Calls:
    """What needs a vCPU that is at rest."""
    return {
        "run": cpu.run,
        "run with ticks": lambda: cpu.run(1000),
        "enter": cpu.enter,
        "half entry": lambda: cpu.enter(0),
        "tick": cpu.tick,
        "step": cpu.step,
        "activate": cpu.activate,
        "suspend": cpu.suspend,
        "inst stop": lambda: cpu.schedule_inst_stop(5),
        "guest_debug": lambda: cpu.guest_debug(singlestep=True),
        "resume": cpu.resume,
        "switch_out": cpu.switch_out,
        "serialize": cpu.serialize,
        "regs": lambda: cpu.regs.rax,
        "regs set": lambda: setattr(cpu.regs, "rax", 1),
        "regs as_dict": lambda: cpu.regs.as_dict(),
        "sregs": lambda: cpu.sregs.cs.base,
        "fpu": lambda: cpu.fpu.fcw,
        "debugregs": lambda: cpu.debugregs.dr7,
        "events": lambda: cpu.events.flags,
        "xcrs": lambda: cpu.xcrs.xcr0,
        "xsave": lambda: cpu.xsave,
        "mp_state": lambda: cpu.mp_state,
        "tsc_khz": lambda: cpu.tsc_khz,
        "cpuid": lambda: cpu.cpuid,
        "msr": lambda: cpu.msrs["STAR"],
        "msrs": lambda: cpu.msrs.as_dict(),
        "one_reg": lambda: cpu.get_one_reg(0x2030000200000000 | 0xC0000081),
        "reg_list": cpu.reg_list,
        "dump": cpu.dump,
        "translate": lambda: cpu.translate(0),
        "read_virtual": lambda: cpu.read_virtual(0, 1),
        "write_virtual": lambda: cpu.write_virtual(0, b"x"),
    }


def calls_of_a_vm(vm: kvmcpu.VM) -> Calls:
    return {
        "add_memory": lambda: vm.add_memory(1 << 32, 4096),
        "read": lambda: vm.read(0, 1),
        "write": lambda: vm.write(0, b"x"),
        "map_io": lambda: vm.map_io(0x999, 1),
        "map_mmio": lambda: vm.map_mmio(1 << 40, 1),
        "create_vcpu": vm.create_vcpu,
        "check_extension": lambda: vm.check_extension(0),
        "enable_cap": lambda: vm.enable_cap(0),
        "create_irqchip": vm.create_irqchip,
        "ioeventfd": lambda: vm.ioeventfd(0, 4),
        "inst stop": lambda: vm.schedule_inst_stop(5),
    }


def cases(make: Callable[..., Calls]) -> list[str]:
    class Any:
        def __getattr__(self, name: str) -> object:
            return None

    return list(make(Any()))


VCPU_CASES, VM_CASES = cases(calls_of_a_vcpu), cases(calls_of_a_vm)


# ---- after close


@pytest.fixture
def closed(guest):
    g = guest("hlt")
    g.run()
    g.last = g.cpu.exit
    g.vm.close()
    return g


@pytest.mark.parametrize("name", VCPU_CASES)
def test_a_vcpu_after_close(closed, name) -> None:
    """V4: the VM is closed: each call of its vCPU says so."""
    with pytest.raises(kvmcpu.ClosedError, match="closed"):
        calls_of_a_vcpu(closed.cpu)[name]()
    assert closed.cpu.closed


@pytest.mark.parametrize("name", [*VM_CASES, "fileno"])
def test_a_vm_after_close(closed, name) -> None:
    """V4: and each call of the VM."""
    with pytest.raises(kvmcpu.ClosedError, match="closed"):
        {**calls_of_a_vm(closed.vm), "fileno": closed.vm.fileno}[name]()


def test_what_still_works_after_close(closed) -> None:
    """V14: what was found out stays to be looked at."""
    g = closed
    assert g.last.name == "HLT"
    assert g.cpu.stats["halts"] == 1
    assert g.cpu.stop_reason == "idle"
    assert (g.cpu.id, g.cpu.name, g.cpu.vm) == (0, "cpu0", g.vm)
    assert g.ram.closed
    assert g.ram[guests.ORIGIN] == 0xF4
    g.vm.stop()
    g.vm.close()
    assert "closed" in repr(g.vm)
    assert repr(g.cpu)
    assert repr(g.ram)
    for call in (lambda: g.cpu.interrupt(1), g.cpu.nmi, g.cpu.drain, g.cpu.kick, g.cpu.stop):
        with pytest.raises(kvmcpu.ClosedError):
            call()


def test_closed_while_another_thread_runs_it(user_guest) -> None:
    """V10: closing stops the run, waits for it, and the run returns or says that it was closed."""
    g = user_guest("again: jmp again")
    caught: list[BaseException] = []

    def run() -> None:
        try:
            g.cpu.run()
        except kvmcpu.ClosedError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while g.cpu.thread is None:
        time.sleep(0.001)
    g.vm.close()
    thread.join(5)
    assert not thread.is_alive()
    with pytest.raises(kvmcpu.ClosedError):
        g.cpu.run()


# ---- from two threads at once


@pytest.fixture
def busy(user_guest):
    """A vCPU that another thread runs."""
    g = user_guest("again: jmp again")
    thread = threading.Thread(target=g.cpu.run)
    thread.start()
    while g.cpu.thread is None:
        time.sleep(0.001)
    yield g
    g.cpu.stop()
    thread.join()


def test_from_two_threads(busy) -> None:
    """V24: what needs the vCPU at rest is refused at once, and names what to do."""
    for call in calls_of_a_vcpu(busy.cpu).values():
        with pytest.raises(kvmcpu.VcpuBusy, match=r"stop\(\)"):
            call()
    assert busy.cpu.thread is not None


def test_what_works_from_two_threads(busy) -> None:
    """V24: and what works from any thread at any moment does."""
    cpu, vm = busy.cpu, busy.vm
    assert cpu.kick() is True
    assert cpu.stats["exits"] >= 0
    assert vm.read(guests.ORIGIN, 1)
    vm.write(0x100000, b"x")
    vm.map_io(0x77, 1).remove()
    vm.add_memory(1 << 32, 4096).remove()
    cpu.interrupt(0x30)
    assert cpu.status in ("Running", "RunningService")
    event = vm.queue.schedule(lambda: None, delay="1000s")
    assert event.cancel()
    assert (cpu.id, cpu.name) == (0, "cpu0")
    assert "cpu0" in repr(cpu)


# ---- after a fork


FORKED = """
import os, sys
sys.path.insert(0, {tests!r})
import guests, kvmcpu, test_failures
kvm = kvmcpu.Kvm()
g = guests.real_guest(kvm, "hlt; hlt")
place = g.vm.map_io(0x10, 1)
view = memoryview(g.ram)
g.run()
pid = os.fork()
if not pid:
    wrong = []
    calls = {{
        **{{"cpu " + name: call for name, call in test_failures.calls_of_a_vcpu(g.cpu).items()}},
        **{{"vm " + name: call for name, call in test_failures.calls_of_a_vm(g.vm).items()}},
        "kvm create_vm": kvm.create_vm,
        "kvm supported_cpuid": kvm.supported_cpuid,
        "kvm check_extension": lambda: kvm.check_extension(0),
    }}
    for name, call in calls.items():
        try:
            call()
        except kvmcpu.ForkError:
            continue
        except BaseException as error:
            wrong.append(name + ": " + repr(error))
        else:
            wrong.append(name + ": no error")
    g.vm.close()
    del g, kvm, place
    # A new one in the child works.
    with kvmcpu.Kvm() as own:
        new = guests.real_guest(own, "hlt")
        new.run()
        if new.cpu.exit.name != "HLT":
            wrong.append("a VM of the child's own")
    print("\\n".join(wrong), flush=True)
    os._exit(bool(wrong))
status = os.waitpid(pid, 0)[1]
g.cpu.activate()
g.run()
assert g.cpu.exit.name == "HLT" and g.cpu.regs.rip == guests.ORIGIN + 2
g.vm.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.kvm(arch="x86_64")
def test_after_a_fork() -> None:
    """V4: in the child of a fork each call is a ForkError; the parent goes on."""
    script = FORKED.format(tests=os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- before start


@pytest.mark.parametrize("name", [n for n in VCPU_CASES if n not in ("activate", "suspend")])
def test_before_start(vm, name) -> None:
    """V5: anything before start is an error that says so."""
    cpu = vm.create_vcpu(start=False)
    with pytest.raises(kvmcpu.NotStartedError, match=r"start\(\)"):
        calls_of_a_vcpu(cpu)[name]()


def test_start(vm) -> None:
    """V4, V5: constructed, nothing is open; started, once; then it works."""
    vm.add_memory(0, "64KiB")[0x1000] = 0xF4
    fds = len(os.listdir("/proc/self/fd"))
    cpu = vm.create_vcpu(start=False)
    assert len(os.listdir("/proc/self/fd")) == fds
    assert cpu.status == "Idle"
    for call in (cpu.kick, cpu.stop, cpu.nmi, cpu.drain):
        with pytest.raises(kvmcpu.NotStartedError):
            call()
    cpu.start()
    assert cpu.exit is None
    with pytest.raises(kvmcpu.StateError, match="started"):
        cpu.start()
    guests.x86_start.real(cpu, 0x1000, stack=0x1000)
    cpu.run()
    assert cpu.exit.name == "HLT"


# ---- wrong arguments


@pytest.mark.parametrize(
    "options",
    [
        {"id": -1},
        {"id": "0"},
        {"id": 1 << 40},
        {"name": 5},
        {"queue": 5},
        {"clock": 0},
        {"clock": -1},
        {"clock": "fast"},
        {"clock": float("nan")},
        {"host_freq": "0Hz"},
        {"host_freq": []},
        {"host_factor": 0},
        {"host_factor": -2.0},
        {"host_factor": float("inf")},
        {"host_factor": "2"},
        {"time_source": "sundial"},
        {"time_source": 5},
        {"perf_event": 5},
        {"perf_event": (1,)},
        {"perf_event": (-1, 0)},
        {"cpuid": "mine"},
        {"cpuid": [(1, 2, 3)]},
        {"cpuid": 5},
        {"num_threads": 2},
        {"num_threads": 0},
        {"nonsense": 1},
    ],
    ids=str,
)
def test_create_vcpu(vm, options) -> None:
    """V2, V4: a wrong argument is refused, and the VM has no vCPU more."""
    with pytest.raises((TypeError, ValueError, OverflowError)) as caught:
        vm.create_vcpu(**options)
    assert len(str(caught.value)) > 10
    assert vm.vcpus == ()
    cpu = vm.create_vcpu()
    assert cpu.id == 0


def test_ids(vm) -> None:
    """V4: the VM hands ids out; one is used once."""
    three, four = vm.create_vcpu(3), vm.create_vcpu()
    assert (three.id, four.id, four.name) == (3, 4, "cpu4")
    one = vm.create_vcpu(1, name="one")
    assert [cpu.id for cpu in vm.vcpus] == [1, 3, 4]
    assert one.name == "one"
    with pytest.raises((ValueError, kvmcpu.KvmError)):
        vm.create_vcpu(3)


@pytest.mark.parametrize(
    "kind",
    [
        kvmcpu.VM,
        kvmcpu.Vcpu,
        kvmcpu.Memory,
        kvmcpu.BusRange,
        kvmcpu.Event,
        kvmcpu.Stats,
        kvmcpu.Msrs,
        kvmcpu.Regs,
        kvmcpu.Exit,
        kvmcpu.IoExit,
        kvmcpu.ExitRecord,
    ],
)
def test_made_by_others(kind) -> None:
    """What others make cannot be made by its class."""
    with pytest.raises(TypeError):
        kind()


@pytest.mark.parametrize("call", ["run", "enter"])
@pytest.mark.parametrize("ticks", [-1, 1 << 64, "soon", "-1ms", "", 1.5, [], b"1"], ids=str)
def test_ticks(cpu, call, ticks) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        getattr(cpu, call)(ticks)
    assert cpu.status == "Running"
