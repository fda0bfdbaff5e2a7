# SPDX-License-Identifier: MIT
"""A vCPU's life: made, started, refused, closed, and what is left of it afterwards."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Maker

import kvmcpu

pytestmark = pytest.mark.kvm(arch="x86_64")

SPIN = "spin: jmp spin"


def fds() -> list[str]:
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # the directory's own
            continue
    return sorted(links)


# ---- start (V4)


def test_construct_opens_nothing(vm: kvmcpu.VM) -> None:
    """V4: a vCPU that is only constructed has nothing open, and its context is halted."""
    before = fds()
    cpu = vm.create_vcpu(start=False)
    assert fds() == before
    assert cpu.status == "Idle"
    assert vm.vcpus == (cpu,)
    cpu.start()
    assert len(fds()) == len(before) + 1
    assert any("kvm-vcpu" in name for name in fds())
    assert cpu.status == "Running"


def test_started_once(vm: kvmcpu.VM) -> None:
    """V4: a vCPU is started once."""
    cpu = vm.create_vcpu()
    with pytest.raises(kvmcpu.StateError, match="started"):
        cpu.start()
    assert cpu.status == "Running"


def test_started_by_another_thread_than_it_runs_on(guest: Maker) -> None:
    """V4: timer, counters and signals follow the vCPU to whichever thread runs it."""
    g = guest(SPIN)
    seen: list[tuple[int | None, int]] = []

    def run() -> None:
        g.vm.queue.schedule(lambda: seen.append((g.cpu.thread, threading.get_native_id())), delay=1)
        g.run("1ms")

    run()
    for _ in range(3):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    run()
    assert len(seen) == 5
    assert all(told == native for told, native in seen)
    assert g.cpu.thread is None


def test_ids(vm: kvmcpu.VM) -> None:
    """V4: the VM hands out the ids; one may be asked for, none is used twice."""
    first, second = vm.create_vcpu(), vm.create_vcpu(start=False)
    fifth = vm.create_vcpu(5)
    sixth = vm.create_vcpu(start=False)
    assert [cpu.id for cpu in (first, second, fifth, sixth)] == [0, 1, 5, 6]
    with pytest.raises(ValueError, match="5"):
        vm.create_vcpu(5)
    third = vm.create_vcpu(3)
    assert vm.vcpus == (first, second, third, fifth, sixth)
    with pytest.raises((ValueError, OverflowError)):
        vm.create_vcpu(-1)


def test_id_that_was_used(vm: kvmcpu.VM) -> None:
    """V4: the kernel keeps an id for as long as the VM lives: using it again is an error."""
    cpu = vm.create_vcpu(0)
    del cpu
    gc.collect()
    with pytest.raises((kvmcpu.KvmError, ValueError)):
        vm.create_vcpu(0)
    assert vm.create_vcpu().id == 1


def test_id_beyond_the_kernels(vm: kvmcpu.VM) -> None:
    """V4: an id that the kernel does not have is its error, and the VM is as it was."""
    limit = vm.check_extension(kvmcpu.Cap.MAX_VCPU_ID)
    with pytest.raises(kvmcpu.KvmError, match="KVM_CREATE_VCPU"):
        vm.create_vcpu(limit + 1)
    assert all(cpu.id <= limit for cpu in vm.vcpus)
    assert vm.create_vcpu(0).id == 0


def test_names(vm: kvmcpu.VM) -> None:
    """V4: a vCPU is called by its id unless it was given a name."""
    assert vm.create_vcpu().name == "cpu0"
    assert vm.create_vcpu(7).name == "cpu7"
    assert vm.create_vcpu(name="boot").name == "boot"


@pytest.mark.parametrize("threads", [0, 2, -1])
def test_one_hardware_thread(vm: kvmcpu.VM, threads: int) -> None:
    """V4: one hardware thread per vCPU, anything else is refused."""
    with pytest.raises(ValueError, match="thread"):
        vm.create_vcpu(num_threads=threads)
    assert vm.vcpus == ()
    assert vm.create_vcpu(num_threads=1).id == 0


def test_vcpu_without_references(kvm: kvmcpu.Kvm) -> None:
    """V4: a vCPU keeps its VM, and a VM that is only referred to by its vCPU still runs."""
    vm = kvm.create_vm()
    vm.add_memory(0, "64KiB")[0x1000] = 0xF4
    cpu = vm.create_vcpu()
    del vm
    gc.collect()
    cpu.sregs.cs.base = cpu.sregs.cs.selector = 0
    cpu.regs.rip = 0x1000
    cpu.run()
    assert cpu.exit is not None
    assert cpu.exit.name == "HLT"
    cpu.vm.close()


# ---- before start (V5)

REGISTER_FILES = ("regs", "sregs", "fpu", "debugregs", "events", "xcrs")
CALLS: dict[str, Callable[[kvmcpu.Vcpu], object]] = {
    "run": lambda cpu: cpu.run(),
    "run of some ticks": lambda cpu: cpu.run("1ms"),
    "enter": lambda cpu: cpu.enter(),
    "half entry": lambda cpu: cpu.enter(0),
    "tick": lambda cpu: cpu.tick(),
    "step": lambda cpu: cpu.step(),
    "step 0": lambda cpu: cpu.step(0),
    "exit": lambda cpu: cpu.exit,
    "kick": lambda cpu: cpu.kick(),
    "stop": lambda cpu: cpu.stop(),
    "wakeup": lambda cpu: cpu.wakeup(),
    "activate": lambda cpu: cpu.activate(),
    "suspend": lambda cpu: cpu.suspend(),
    "drain": lambda cpu: cpu.drain(),
    "resume": lambda cpu: cpu.resume(),
    "switch_out": lambda cpu: cpu.switch_out(),
    "serialize": lambda cpu: cpu.serialize(),
    "dump": lambda cpu: cpu.dump(),
    "interrupt": lambda cpu: cpu.interrupt(32),
    "nmi": lambda cpu: cpu.nmi(),
    "schedule_inst_stop": lambda cpu: cpu.schedule_inst_stop(10),
    "guest_debug": lambda cpu: cpu.guest_debug(singlestep=True),
    "get_one_reg": lambda cpu: cpu.get_one_reg(0x2030000000000000),
    "set_one_reg": lambda cpu: cpu.set_one_reg(0x2030000000000000, 0),
    "reg_list": lambda cpu: cpu.reg_list(),
    "format_one_reg": lambda cpu: cpu.format_one_reg(0x2030000000000000),
    "translate": lambda cpu: cpu.translate(0),
    "read_virtual": lambda cpu: cpu.read_virtual(0, 1),
    "write_virtual": lambda cpu: cpu.write_virtual(0, b"1"),
    "regs.rax": lambda cpu: cpu.regs.rax,
    "regs.rax = 1": lambda cpu: setattr(cpu.regs, "rax", 1),
    "regs = …": lambda cpu: setattr(cpu, "regs", {"rax": 1}),
    "sregs.cs.base": lambda cpu: cpu.sregs.cs.base,
    "fpu.xmm0": lambda cpu: cpu.fpu.xmm0,
    "debugregs.dr7": lambda cpu: cpu.debugregs.dr7,
    "events.flags": lambda cpu: cpu.events.flags,
    "xcrs.xcr0": lambda cpu: cpu.xcrs.xcr0,
    "xsave": lambda cpu: cpu.xsave,
    "mp_state": lambda cpu: cpu.mp_state,
    "mp_state = 0": lambda cpu: setattr(cpu, "mp_state", 0),
    "lapic": lambda cpu: cpu.lapic,
    "tsc_khz": lambda cpu: cpu.tsc_khz,
    "cpuid": lambda cpu: cpu.cpuid,
    "cpuid = []": lambda cpu: setattr(cpu, "cpuid", []),
    "msrs['EFER']": lambda cpu: cpu.msrs["EFER"],
    "msrs['EFER'] = 0": lambda cpu: cpu.msrs.__setitem__("EFER", 0),
}


@pytest.mark.parametrize("name", CALLS)
def test_before_start(vm: kvmcpu.VM, name: str) -> None:
    """V5: whatever needs a started vCPU says that it was not started."""
    cpu = vm.create_vcpu(start=False)
    with pytest.raises(kvmcpu.NotStartedError, match=r"start\(\)"):
        CALLS[name](cpu)


def test_what_works_before_start(vm: kvmcpu.VM) -> None:
    """V5: what does not need the kernel's vCPU works before it is there, and start() still does."""
    cpu = vm.create_vcpu(start=False, clock="1GHz")
    assert (cpu.id, cpu.name, cpu.vm, cpu.queue) == (0, "cpu0", vm, vm.queue)
    assert (cpu.status, cpu.clock_period, cpu.thread) == ("Idle", 1000, None)
    assert (cpu.stop_reason, cpu.last_exits()) == (None, [])
    assert (cpu.draining, cpu.drained, cpu.switched_out, cpu.closed) == (False,) * 4
    assert cpu.stats["exits"] == 0
    cpu.set_exit_handler(kvmcpu.ExitReason.HLT, lambda _cpu, _exit: None)
    cpu.set_exit_handler(kvmcpu.ExitReason.HLT, None)
    assert "cpu0" in repr(cpu)
    cpu.start()
    assert cpu.regs.rflags == 2


# ---- the memory mode (V6)


def test_memory_mode_refuses_start(vm: kvmcpu.VM) -> None:
    """V6: where guest memory is not mapped directly the vCPU refuses to start and says why."""
    reason: str | None = "the system's memory has a cache model in front of it"
    vm.memory_mode_check = lambda: reason
    with pytest.raises(kvmcpu.StateError, match="cache model"):
        vm.create_vcpu()
    cpu = vm.create_vcpu(start=False)
    with pytest.raises(kvmcpu.StateError, match="cache model"):
        cpu.start()
    with pytest.raises(kvmcpu.NotStartedError):
        cpu.run()
    reason = None
    cpu.start()
    assert cpu.status == "Running"


def test_memory_mode_refuses_take_over(vm: kvmcpu.VM) -> None:
    """V6: nor does it take over."""
    old, new = vm.create_vcpu(), vm.create_vcpu()
    assert old.drain()
    assert new.drain()
    old.switch_out()
    asked: list[int] = []

    def check() -> str | None:
        asked.append(1)
        return "timing mode" if len(asked) == 1 else None

    vm.memory_mode_check = check
    with pytest.raises(kvmcpu.StateError, match="timing mode"):
        new.take_over(old)
    assert old.switched_out
    new.take_over(old)
    assert len(asked) == 2


def test_memory_mode_check_that_fails(vm: kvmcpu.VM) -> None:
    """V6: an exception of the check comes out of start(); the vCPU can be started later."""
    cpu = vm.create_vcpu(start=False)
    vm.memory_mode_check = lambda: str(1 // 0)
    with pytest.raises(ZeroDivisionError):
        cpu.start()
    vm.memory_mode_check = None
    cpu.start()


# ---- the end


@pytest.mark.parametrize("name", CALLS)
def test_use_after_close(cpu: kvmcpu.Vcpu, name: str) -> None:
    """V5: after its VM was closed a vCPU says so, whatever it is asked for."""
    cpu.vm.close()
    assert cpu.closed
    with pytest.raises(kvmcpu.ClosedError):
        CALLS[name](cpu)


def test_registers_kept_over_close(cpu: kvmcpu.Vcpu) -> None:
    """V5: a view of the registers that outlives the VM is refused, a copy stays."""
    views = {name: getattr(cpu, name) for name in REGISTER_FILES}
    copy, segment = cpu.regs.copy(), cpu.sregs.cs
    rip = cpu.regs.rip
    cpu.vm.close()
    for view in views.values():
        with pytest.raises(kvmcpu.ClosedError):
            view.as_dict()
    with pytest.raises(kvmcpu.ClosedError):
        _ = segment.base
    assert copy.as_dict()["rip"] == rip


def test_what_works_after_close(cpu: kvmcpu.Vcpu) -> None:
    """V5: what was counted and seen can still be read."""
    cpu.run()
    exits = cpu.stats["exits"]
    cpu.vm.close()
    assert cpu.stats["exits"] == exits != 0
    assert [record.name for record in cpu.last_exits()] == ["HLT"]
    assert (cpu.thread, cpu.id) == (None, 0)
    assert "cpu0" in repr(cpu)
    assert "closed" in repr(cpu.vm)


def test_vm_after_close(kvm: kvmcpu.Kvm) -> None:
    """V5: a closed VM refuses everything but to be closed again."""
    vm = kvm.create_vm()
    ram = vm.add_memory(0, "64KiB")
    view = ram[0:16]
    vm.close()
    vm.close()
    assert vm.closed
    assert ram.closed
    calls: list[Callable[[], Any]] = [
        lambda: vm.add_memory(0, 4096),
        lambda: vm.read(0, 1),
        lambda: vm.write(0, b"1"),
        lambda: vm.map_io(0, 1),
        lambda: vm.map_mmio(0x10000000, 1),
        vm.create_vcpu,
        lambda: vm.create_vcpu(start=False),
        lambda: vm.check_extension(0),
        vm.create_irqchip,
        vm.create_pit,
        lambda: vm.irq_line(0, 1),
        lambda: vm.signal_msi(0, 0),
        lambda: vm.irqfd(0),
        lambda: vm.ioeventfd(0x1000, 4),
        lambda: vm.schedule_inst_stop(1),
        vm.fileno,
        vm.__enter__,
    ]
    for call in calls:
        with pytest.raises(kvmcpu.ClosedError):
            call()
    view[0] = 1
    assert bytes(view[:2]) == b"\x01\x00"


def test_context_managers() -> None:
    """V5: leaving the block closes; a VM outlives the Kvm that it came from."""
    before = fds()
    with kvmcpu.Kvm() as kvm, kvm.create_vm() as vm:
        kvm.close()
        assert kvm.closed
        with pytest.raises(kvmcpu.ClosedError):
            kvm.create_vm()
        vm.add_memory(0, "64KiB")[0x1000] = 0xF4
        cpu = vm.create_vcpu()
        cpu.sregs.cs.base = cpu.sregs.cs.selector = 0
        cpu.regs.rip = 0x1000
        cpu.run()
        assert cpu.stop_reason == "idle"
        assert len(cpu.cpuid) > 1
        assert cpu.msrs.as_dict()
        assert kvm.closed
        vm.close()
        assert fds() == before
    assert vm.closed
    assert fds() == before


def test_context_manager_with_an_error(kvm: kvmcpu.Kvm) -> None:
    """V5: an exception inside the block comes out, and the VM is closed."""
    with pytest.raises(ZeroDivisionError), kvm.create_vm() as vm:
        _ = 1 // 0
    assert vm.closed


def test_close_in_a_handler(guest: Maker) -> None:
    """V5: a handler may close the VM that calls it: the run ends, then everything is freed."""
    before = fds()
    g = guest("out 0x10, al\nspin: jmp spin")
    closed: list[bool] = []

    def write(_offset: int, _size: int, _value: int) -> None:
        g.vm.close()
        g.vm.close()
        closed.append(g.vm.closed)

    g.vm.map_io(0x10, 1, write=write)
    with contextlib.suppress(kvmcpu.ClosedError):
        g.run()
    assert closed == [True]
    assert g.cpu.closed
    assert g.cpu.thread is None
    assert fds() == before
    with pytest.raises(kvmcpu.ClosedError):
        g.run()


def test_close_in_an_event(guest: Maker) -> None:
    """V5: so may an event."""
    before = fds()
    g = guest(SPIN)
    g.vm.queue.schedule(g.vm.close, "1ms")
    with contextlib.suppress(kvmcpu.ClosedError):
        g.run()
    assert g.cpu.closed
    assert fds() == before


@pytest.mark.parametrize("cpus", [1, 3])
def test_close_while_others_run(kvm: kvmcpu.Kvm, cpus: int) -> None:
    """V5: close() stops the vCPUs that other threads run, waits for them, and frees everything."""
    before = fds()
    vm = kvm.create_vm()
    vm.add_memory(0, "64KiB")[0x1000:0x1002] = b"\xeb\xfe"
    threads, ends = [], []
    for _ in range(cpus):
        cpu = vm.create_vcpu()
        cpu.sregs.cs.base = cpu.sregs.cs.selector = 0
        cpu.regs.rip = 0x1000

        def run(cpu: kvmcpu.Vcpu = cpu) -> None:
            try:
                cpu.run()
                ends.append(cpu.stop_reason)
            except kvmcpu.ClosedError:
                ends.append("stop")

        threads.append(threading.Thread(target=run))
        threads[-1].start()
    while any(cpu.thread is None for cpu in vm.vcpus):
        time.sleep(0.001)
    vm.close()
    for thread in threads:
        thread.join(10)
    assert ends == ["stop"] * cpus
    assert fds() == before


def test_closed_by_two_threads_at_once(kvm: kvmcpu.Kvm) -> None:
    """V5: two threads may close one VM; both come back when it is closed."""
    for _ in range(20):
        vm = kvm.create_vm()
        vm.add_memory(0, "64KiB")
        vm.create_vcpu()
        threads = [threading.Thread(target=vm.close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert vm.closed


def test_many_lives(kvm: kvmcpu.Kvm) -> None:
    """V4, V5: VMs that are made, run and closed leave no file descriptor behind."""
    before = fds()
    for n in range(50):
        vm = kvm.create_vm()
        vm.add_memory(0, "64KiB")[0x1000] = 0xF4
        cpu = vm.create_vcpu(cpuid=None)
        cpu.sregs.cs.base = cpu.sregs.cs.selector = 0
        cpu.regs.rip = 0x1000
        cpu.run("1ms")
        if n % 2:
            vm.close()
        del vm, cpu
    gc.collect()
    assert fds() == before


def test_after_a_fork(cpu: kvmcpu.Vcpu) -> None:
    """V5: the child of a fork is told that the VM is its parent's; the parent's runs on."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            calls = (cpu.run, lambda: cpu.regs.rax, cpu.kick, cpu.vm.create_vcpu, cpu.wakeup)
            refused = 0
            for call in calls:
                try:
                    call()
                except kvmcpu.ForkError:
                    refused += 1
            cpu.vm.close()
            status = 0 if refused >= 3 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    cpu.run()
    assert cpu.stop_reason == "idle"
