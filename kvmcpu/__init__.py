# SPDX-License-Identifier: MIT
"""Control real KVM virtual CPUs from Python.

``Kvm``, ``VM``, ``Vcpu`` and ``Memory`` are the kernel's objects, one class each::

    with kvmcpu.Kvm() as kvm, kvm.create_vm() as vm:
        ram = vm.add_memory(0, "64KiB")
        cpu = vm.create_vcpu()
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from kvmcpu import _kvm
from kvmcpu._kvm import (
    VM,
    BusRange,
    ByteSink,
    ClosedError,
    DebugExit,
    DirtyRingFullExit,
    Event,
    EventQueue,
    ExceptionExit,
    ExceptionExitError,
    Exit,
    ExitRecord,
    FailEntryError,
    FailEntryExit,
    ForkError,
    GuestError,
    HltExit,
    HypercallExit,
    InternalError,
    InternalErrorExit,
    IntrExit,
    IoExit,
    IrqWindowExit,
    Kvm,
    KvmError,
    KvmNotFoundError,
    KvmPermissionError,
    KvmVersionError,
    Memory,
    MemoryFaultExit,
    MmioExit,
    MsrExit,
    Msrs,
    NotKvmError,
    NotStartedError,
    RegisterFile,
    ShutdownError,
    ShutdownExit,
    StateError,
    Stats,
    SystemEventExit,
    UnassignedAccessError,
    UnhandledExitError,
    UnknownExit,
    UnknownExitError,
    UnmappedError,
    UnsupportedError,
    Vcpu,
    VcpuBusy,
    debug_flags,
    parse_frequency,
    parse_size,
    parse_ticks,
    set_debug_flags,
    set_trace_sink,
)
from kvmcpu.lazy import later as _later

if _TYPE_CHECKING:
    from kvmcpu import trace
    from kvmcpu._kvm import DebugRegs, DTable, Fpu, Regs, Segment, Sregs, VcpuEvents, Xcrs
    from kvmcpu.enums import Cap, ExitReason, capabilities
    from kvmcpu.system import ConfigError, Result, System

# What is imported when it is asked for: who pokes at a CPU needs neither its time nor its memory.
_LATER = {
    "Cap": "enums",
    "ExitReason": "enums",
    "capabilities": "enums",
    "System": "system",
    "Result": "system",
    "ConfigError": "system",
    "trace": "",
    # The registers of this architecture, if it has a vCPU yet.
    "Regs": "_kvm",
    "Segment": "_kvm",
    "DTable": "_kvm",
    "Sregs": "_kvm",
    "Fpu": "_kvm",
    "DebugRegs": "_kvm",
    "VcpuEvents": "_kvm",
    "Xcrs": "_kvm",
}

_imported, __dir__ = _later(globals(), _LATER)


def __getattr__(name: str) -> _Any:
    if name != "__version__":
        return _imported(name)
    from importlib import metadata

    try:
        return metadata.version("kvmcpu")
    except metadata.PackageNotFoundError:  # a checkout that nobody installed
        return "0+unknown"


__all__ = [
    "__version__",
    "KvmError",
    "KvmNotFoundError",
    "KvmPermissionError",
    "NotKvmError",
    "KvmVersionError",
    "UnsupportedError",
    "VcpuBusy",
    "NotStartedError",
    "ClosedError",
    "ForkError",
    "StateError",
    "UnmappedError",
    "GuestError",
    "UnknownExitError",
    "ExceptionExitError",
    "FailEntryError",
    "InternalError",
    "ShutdownError",
    "UnhandledExitError",
    "UnassignedAccessError",
    "Kvm",
    "VM",
    "Memory",
    "BusRange",
    "ByteSink",
    "EventQueue",
    "Event",
    "Stats",
    "Exit",
    "IoExit",
    "MmioExit",
    "HypercallExit",
    "DebugExit",
    "HltExit",
    "IrqWindowExit",
    "ShutdownExit",
    "IntrExit",
    "FailEntryExit",
    "UnknownExit",
    "ExceptionExit",
    "InternalErrorExit",
    "SystemEventExit",
    "MsrExit",
    "DirtyRingFullExit",
    "MemoryFaultExit",
    "ExitRecord",
    "Vcpu",
    "Msrs",
    "RegisterFile",
    "Regs",
    "Segment",
    "DTable",
    "Sregs",
    "Fpu",
    "DebugRegs",
    "VcpuEvents",
    "Xcrs",
    "parse_size",
    "parse_frequency",
    "parse_ticks",
    "debug_flags",
    "set_debug_flags",
    "set_trace_sink",
    "Cap",
    "ExitReason",
    "capabilities",
    "trace",
    "System",
    "Result",
    "ConfigError",
]
__all__[:] = [name for name in __all__ if _LATER.get(name) != "_kvm" or hasattr(_kvm, name)]
