# SPDX-License-Identifier: MIT
"""``kvmcpu info``: what this host offers, and if no guest can run, why not and what to do."""

from __future__ import annotations

import grp
import os
import platform
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from kvmcpu._kvm import (
    GuestError,
    Kvm,
    KvmError,
    KvmNotFoundError,
    KvmPermissionError,
    KvmVersionError,
    NotKvmError,
    UnsupportedError,
    Vcpu,
    debug_flags,
)
from kvmcpu.enums import Cap, ExitReason, capabilities

BACKENDS = {
    "svm": "AMD's hardware extensions",
    "vmx": "Intel's hardware extensions",
    "pvm": "paravirtual, without hardware extensions: ring 3 runs natively, ring 0 is emulated",
    "arm64": "arm64's hardware extensions",
    "riscv64": "riscv64's hardware extensions",
    "unknown": "it cannot be told",
}

# What this package uses, or tells its user about.
CAPABILITIES = {
    Cap.NR_VCPUS: "vCPUs of a VM, recommended",
    Cap.MAX_VCPUS: "vCPUs of a VM, at most",
    Cap.NR_MEMSLOTS: "memory slots of a VM",
    Cap.IMMEDIATE_EXIT: "half entries without a signal",
    Cap.SYNC_REGS: "registers that come with the exit (a set of bits)",
    Cap.COALESCED_MMIO: "writes collected in the kernel (the ring's page)",
    Cap.READONLY_MEM: "read-only memory",
    Cap.DIRTY_LOG_RING: "dirty ring (bytes)",
    Cap.DIRTY_LOG_RING_ACQ_REL: "dirty ring, on weakly ordered hosts (bytes)",
    Cap.ONE_REG: "registers by id",
    Cap.SET_GUEST_DEBUG: "single steps and breakpoints",
    Cap.IRQCHIP: "interrupt controllers in the kernel",
    Cap.IRQFD: "interrupts by eventfd",
    Cap.IOEVENTFD: "eventfds signalled by a guest's write",
    Cap.SIGNAL_MSI: "message-signalled interrupts",
    Cap.VCPU_EVENTS: "events in flight, saved and restored",
    Cap.MP_STATE: "multiprocessor states",
    Cap.BINARY_STATS_FD: "statistics of the kernel's own",
}
X86_CAPABILITIES = {
    Cap.COALESCED_PIO: "writes to ports collected in the kernel",
    Cap.PIT2: "interval timer in the kernel",
    Cap.XSAVE2: "the whole vector state (bytes)",
    Cap.XCRS: "extended control registers",
    Cap.DEBUGREGS: "debug registers",
    Cap.X86_USER_SPACE_MSR: "MSR accesses handed to Python (a set of bits)",
    Cap.GET_MSR_FEATURES: "feature MSRs",
    Cap.TSC_CONTROL: "choice of the guest's TSC frequency",
}
# By the backend; the others are x86's.
CAPABILITIES_OF = {
    "arm64": {
        Cap.ARM_VM_IPA_SIZE: "bits of a guest-physical address, at most",
        Cap.ARM_PSCI_0_2: "power control by firmware calls",
        Cap.ARM_PMU_V3: "performance counters for guests",
        Cap.ARM_SVE: "scalable vectors",
        Cap.ARM_PTRAUTH_ADDRESS: "pointer authentication",
        Cap.ARM_MTE: "memory tags",
        Cap.ARM_EL2: "guests that run guests",
    },
    "riscv64": {
        Cap.VM_GPA_BITS: "bits of a guest-physical address",
        Cap.RISCV_MP_STATE_RESET: "vCPUs reset by their state",
    },
}

DEVICE = "/dev/kvm"
HLT = b"\xf4"


def _line(name: str, value: object) -> str:
    return f"{name:<14}{value}"


def _device(path: str) -> str:
    """Who may open the device, as ls -l has it."""
    try:
        info = os.stat(path)
    except OSError as error:
        return f"{path}: {error.strerror}"
    try:
        owner = pwd.getpwuid(info.st_uid).pw_name
    except KeyError:
        owner = str(info.st_uid)
    try:
        group = grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        group = str(info.st_gid)
    return f"{path} ({stat.filemode(info.st_mode)} {owner} {group})"


def _extensions() -> str:
    """What the processor says of its virtualization extensions, on x86."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError as error:
        return f"unknown: /proc/cpuinfo: {error.strerror}"
    flags: set[str] = set()
    for line in text.splitlines():
        if line.startswith("flags"):
            flags.update(line.split())
    if "svm" in flags:
        return "svm (AMD): the module is kvm_amd"
    if "vmx" in flags:
        return "vmx (Intel): the module is kvm_intel"
    if "hypervisor" in flags:
        return (
            "none: this is a virtual machine, and the one who runs it would have to turn nested"
            " virtualization on"
        )
    return "none: if the processor has them, they are turned off in the firmware's settings"


def _why_not(path: str, error: KvmError) -> Iterator[str]:
    """The reason that the device cannot be used, and what to do."""
    reasons: tuple[tuple[type[KvmError], str], ...] = (
        (KvmNotFoundError, "no KVM device"),
        (KvmPermissionError, "no permission for the KVM device"),
        (NotKvmError, "not a KVM device"),
        (KvmVersionError, "wrong version of the KVM interface"),
    )
    what = next((text for kind, text in reasons if isinstance(error, kind)), "KVM does not work")
    yield _line("device", _device(path))
    yield _line("guests", f"cannot run: {what}")
    yield _line("", error.strerror or str(error))
    # What the processor lacks explains why the device is missing, but not some other file.
    if path == DEVICE and isinstance(error, KvmNotFoundError) and os.uname().machine == "x86_64":
        yield _line("extensions", _extensions())


def _try_guest(kvm: Kvm) -> tuple[Vcpu | None, str | None]:
    """Run a guest of one instruction: the vCPU, for what it knows, and what went wrong."""
    try:
        with kvm.create_vm() as vm:
            ram = vm.add_memory(0, 0x1000)
            ram[: len(HLT)] = HLT
            cpu = vm.create_vcpu()
            cpu.sregs.cs.update({"base": 0, "selector": 0})
            cpu.regs.update({"rip": 0, "rflags": 2})
            cpu.run("1s")
            # Where it halts at once, the rest of the second passes in no time.
            if cpu.exit is None or cpu.exit.reason != ExitReason.HLT:
                return cpu, f"a guest that halts did not do so within a second: {cpu.exit!r}"
            return cpu, None
    except UnsupportedError as error:
        return None, error.strerror or str(error)
    except (GuestError, OSError, RuntimeError) as error:
        return None, f"a guest that halts failed: {error}"


def _counters(cpu: Vcpu) -> Iterator[str]:
    if cpu.counter_error is None:
        yield _line("counters", f"instructions by {cpu.insts_source}")
    else:
        yield _line("counters", f"none: {cpu.counter_error}")
    yield _line("time", f"by {cpu.time_source}, {cpu.host_freq / 1e6:.1f} MHz")
    yield _line("run timer", f"resolution {cpu.timer_resolution / 1000:g} ns")


def _capabilities(kvm: Kvm) -> Iterator[str]:
    found = capabilities(kvm)
    yield _line("capabilities", f"{len(found)} of the {len(Cap)} known here; those that matter:")
    of_backend = CAPABILITIES_OF.get(kvm.backend, X86_CAPABILITIES)
    for cap, what in (CAPABILITIES | of_backend).items():
        yield f"  {cap.name:<24}{found.get(cap, '-'):>8}  {what}"


def describe(path: str = DEVICE) -> tuple[bool, str]:
    """Whether guests can run on this host, and a page of text for a person."""
    uname = platform.uname()
    lines = [_line("host", f"{uname.system} {uname.release}, {uname.machine}")]
    try:
        with Kvm(path) as kvm:
            lines.append(_line("device", f"{_device(path)}, API version {kvm.api_version}"))
            lines.append(_line("backend", f"{kvm.backend}: {BACKENDS[kvm.backend]}"))
            cpu, problem = _try_guest(kvm)
            if cpu is not None:
                lines += _counters(cpu)
            lines += _capabilities(kvm)
            lines.append(_line("tracing", f"--debug-flags {','.join(debug_flags())}"))
            lines.append(_line("guests", f"cannot run: {problem}" if problem else "can run"))
            return problem is None, "\n".join(lines)
    except KvmError as error:
        lines += _why_not(path, error)
        return False, "\n".join(lines)
