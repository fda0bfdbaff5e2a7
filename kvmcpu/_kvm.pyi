# SPDX-License-Identifier: MIT
"""Types and documentation of the C extension; its docstrings are made from this file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, TypeAlias, final

from _typeshed import ReadableBuffer, WriteableBuffer, structseq
from typing_extensions import disjoint_base

_Size: TypeAlias = int | str
_Ticks: TypeAlias = int | str
_Frequency: TypeAlias = int | float | str
_Status: TypeAlias = Literal["Idle", "Running", "RunningService", "RunningServiceCompletion"]
_StopReason: TypeAlias = Literal[
    "ticks", "idle", "exit", "stop", "drained", "instructions", "error"
]
_Read: TypeAlias = Callable[[int, int], int | tuple[int, int]]
_Write: TypeAlias = Callable[[int, int, int], int | None]
_StringRead: TypeAlias = Callable[[int, int, int], ReadableBuffer]
_StringWrite: TypeAlias = Callable[[int, int, bytes], int | None]
_ExitHandler: TypeAlias = Callable[[Vcpu, Exit], int | None]

# ---------------------------------------------------------------------------- errors

class KvmError(OSError):
    """A call to the kernel failed.

    ``errno`` is the kernel's error number and the message names the ioctl or
    system call. Base class of the errors of opening the device.
    """

class KvmNotFoundError(KvmError):
    """There is no KVM device: the file does not exist (ENOENT) or has no driver (ENODEV, ENXIO)."""

class KvmPermissionError(KvmError):
    """The KVM device exists, but this user may not open it (EACCES, EPERM)."""

class NotKvmError(KvmError):
    """The file that was opened is not a KVM device (KVM_GET_API_VERSION fails with ENOTTY)."""

class KvmVersionError(KvmError):
    """The KVM device speaks another API version than 12, the only stable one."""

class UnsupportedError(KvmError):
    """This kernel, this kind of KVM, or kvmcpu on this architecture lacks what the message names."""

class VcpuBusy(RuntimeError):
    """The vCPU is being run by another thread, and the call needs it at rest.

    ``kick()``, ``stop()``, interrupts, memory, statistics and event queues work
    from any thread; registers, state and running do not. Call ``stop()`` first.
    """

class NotStartedError(RuntimeError):
    """The vCPU was constructed but not started (vcpu.md V5): call ``start()`` first."""

class ClosedError(ValueError):
    """The object, or the VM that it belongs to, was closed."""

class ForkError(RuntimeError):
    """This is the child of a fork; the kernel ties a VM to the process that made it."""

class StateError(RuntimeError):
    """The vCPU is in the wrong state for the call, or the system's memory mode forbids it."""

class UnmappedError(LookupError):
    """No guest memory at an address; ``address`` is the first one that is not mapped."""

    address: int
    """The first address (physical or virtual, as in the call) without memory."""

class GuestError(Exception):
    """The guest stopped in a way that the run cannot go on from; the vCPU stays there to be looked at.

    Base class of the errors that an exit raises. The process and other VMs go on.
    """

    exit: Exit
    """The exit that raised the error."""
    registers: str
    """The registers at the exit, as ``Vcpu.dump()`` prints them."""

class UnknownExitError(GuestError):
    """KVM_EXIT_UNKNOWN: the hardware left the guest for a reason the kernel does not know."""

class ExceptionExitError(GuestError):
    """KVM_EXIT_EXCEPTION: an exception that the kernel neither handled nor delivered."""

class FailEntryError(GuestError):
    """KVM_EXIT_FAIL_ENTRY: the hardware refused the guest's state at entry."""

class InternalError(GuestError):
    """KVM_EXIT_INTERNAL_ERROR: the kernel could not go on, most often an instruction it cannot emulate."""

class ShutdownError(GuestError):
    """KVM_EXIT_SHUTDOWN: a triple fault."""

class UnhandledExitError(GuestError):
    """An exit whose meaning only the user can know, and no handler is there for it."""

class UnassignedAccessError(GuestError):
    """The guest accessed an address at which there is neither memory nor a device (vcpu.md V16)."""

    address: int
    """The port or the physical address."""
    size: int
    """The access's width, 1, 2, 4 or 8 bytes."""
    direction: Literal["read", "write"]
    """What the guest did."""
    space: Literal["io", "mmio"]
    """Port space or memory space."""
    pc: int
    """The guest's program counter at the exit."""

# ---------------------------------------------------------------------------- quantities

def parse_size(value: _Size, /) -> int:
    """A size in bytes from a number or from text such as ``"64KiB"``, ``"16 MiB"``, ``"1G"``.

    Suffixes K, M, G, T (with or without ``iB``) are powers of 1024; KB, MB, GB, TB
    are powers of 1000. Raises ValueError for anything else, and for sizes that do
    not fit in 64 bits.
    """

def parse_frequency(value: _Frequency, /) -> float:
    """A frequency in Hz from a number or from text such as ``"2GHz"``, ``"1.5 MHz"``, ``"100Hz"``.

    Raises ValueError unless the result is positive and finite.
    """

def parse_ticks(value: _Ticks, tick_frequency: int = 1000000000000, /) -> int:
    """Ticks from a number or from text such as ``"10ms"``, ``"1.5us"``, ``"3s"``, ``"250ps"``.

    Text is scaled by tick_frequency (ticks a second; a tick is 1 ps by default,
    vcpu.md V1) and rounded to the nearest tick. Raises ValueError for anything
    that is not a time, is negative, or does not fit in 64 bits.
    """

def debug_flags() -> tuple[str, ...]:
    """The names of the tracing categories (vcpu.md V25) that exist."""

def set_debug_flags(*names: str) -> None:
    """Turn on exactly these tracing categories, for every vCPU of this interpreter.

    Raises ValueError for an unknown name and lists the known ones. A category that
    is off costs one comparison. See ``set_trace_sink`` for where the lines go.
    """

def set_trace_sink(sink: Callable[[str, int, str, str], object] | None, /) -> None:
    """Where trace lines go: ``sink(category, tick, cpu_name, message)``; None drops them.

    It is called on the thread that runs the vCPU. What it raises is reported as
    unraisable and does not stop the guest.
    """

# ---------------------------------------------------------------------------- Kvm

@final
class Kvm:
    """The host's KVM device.

    path is the device's file. Raises KvmNotFoundError, KvmPermissionError,
    NotKvmError or KvmVersionError, each of which says what to do. A context
    manager: leaving it closes the device; VMs made from it live on.
    """

    def __init__(self, path: str = "/dev/kvm") -> None: ...
    @property
    def path(self) -> str:
        """The device's file name."""
    @property
    def api_version(self) -> int:
        """The API version, 12 since Linux 2.6.22 (KVM_GET_API_VERSION)."""
    @property
    def arch(self) -> Literal["x86_64", "arm64", "riscv64"]:
        """The architecture of this host, and so of its guests."""
    @property
    def backend(self) -> Literal["svm", "vmx", "pvm", "arm64", "riscv64", "unknown"]:
        """What runs the guests, as far as it can be told from here.

        On x86 by the processor's flags and the loaded modules in /sys/module:
        AMD's and Intel's extensions, or a paravirtual backend without either.
        """
    @property
    def vcpu_mmap_size(self) -> int:
        """The size in bytes of a vCPU's shared run structure (KVM_GET_VCPU_MMAP_SIZE)."""
    def check_extension(self, cap: int, /) -> int:
        """What KVM_CHECK_EXTENSION says of a capability, by number or by ``kvmcpu.Cap``.

        0 means absent; what a positive number means depends on the capability
        (Linux, Documentation/virt/kvm/api.rst).
        """
    def supported_cpuid(self) -> list[tuple[int, int, int, int, int, int, int]]:
        """The CPUID leaves that KVM supports on this host (KVM_GET_SUPPORTED_CPUID), x86 only.

        Tuples ``(function, index, flags, eax, ebx, ecx, edx)``. Asked of the kernel
        once and remembered, as it takes the kernel long.
        """
    def msr_index_list(self) -> list[int]:
        """The MSRs that a vCPU can save and restore (KVM_GET_MSR_INDEX_LIST), x86 only."""
    def msr_feature_index_list(self) -> list[int]:
        """The MSRs that describe features (KVM_GET_MSR_FEATURE_INDEX_LIST), x86 only."""
    def get_msr_feature(self, index: int, /) -> int:
        """The value of a feature MSR (KVM_GET_MSRS on the device). Raises KvmError if there is none."""
    def create_vm(self, *, type: int = 0, tick_frequency: int = 1000000000000) -> VM:
        """Make a virtual machine (KVM_CREATE_VM).

        type is the machine type of the architecture (0: the default; on arm64 that is one
        with guest-physical addresses of 40 bits, or of as many as the host has if that is
        fewer). tick_frequency is the number of ticks in a simulated second (vcpu.md V1).
        """
    def fileno(self) -> int:
        """The device's file descriptor. Raises ClosedError after ``close()``."""
    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called."""
    def close(self) -> None:
        """Close the device. VMs made from it stay usable. Closing twice does nothing."""
    def __enter__(self) -> Kvm: ...
    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

# ---------------------------------------------------------------------------- VM

@final
class VM:
    """A virtual machine: memory, vCPUs, devices on a bus, an event queue. Made by ``Kvm.create_vm()``."""

    @property
    def queue(self) -> EventQueue:
        """The event queue that the VM's vCPUs run on unless they were given one of their own."""
    @property
    def memory(self) -> tuple[Memory, ...]:
        """The memory slots, in the order of their addresses."""
    @property
    def vcpus(self) -> tuple[Vcpu, ...]:
        """The vCPUs whose objects live, in the order of their ids."""
    @property
    def ranges(self) -> tuple[BusRange, ...]:
        """The ranges on the bus: port space first, then memory space, in the order of addresses."""
    @property
    def tick_frequency(self) -> int:
        """Ticks in a simulated second (vcpu.md V1)."""
    @property
    def stats(self) -> Stats:
        """The sums of the vCPUs' statistics (vcpu.md V14)."""
    unassigned: Literal["error", "ones"]
    """What an access to nobody does (vcpu.md V16).

    ``"error"``, the default, raises UnassignedAccessError out of the run; ``"ones"``
    reads all ones, drops writes, and counts them in the statistic ``unassigned``.
    """
    memory_mode_check: Callable[[], str | None] | None
    """A system's check of its memory mode (vcpu.md V6), called before a vCPU starts or takes over.

    It returns None if guest memory is mapped directly, or text that says why it is
    not: then the vCPU refuses with StateError and that text.
    """
    address_hook: Callable[[Vcpu, int, int, bool], int] | None
    """Called before an MMIO access is dispatched, as ``hook(cpu, address, size, is_write)``.

    It returns the address that the access goes to, the same one or another.
    """
    def add_memory(
        self,
        address: int,
        source: _Size | Memory | WriteableBuffer,
        *,
        file: int | None = None,
        offset: int = 0,
        readonly: bool = False,
        log_dirty: bool = False,
    ) -> Memory:
        """Give the guest memory at a physical address (KVM_SET_USER_MEMORY_REGION).

        source is a size (anonymous memory, or file's when a file descriptor is given
        with ``file=``, from ``offset=`` on; a memfd for one), another Memory, of this
        or another VM, whose bytes are then shared, or any object with a writable
        buffer, which stays the caller's and must start at a page boundary. Address,
        size and offset are multiples of the page size. readonly: the guest's writes
        leave it as MMIO. Raises ValueError for a bad size or address or an overlap,
        KvmError if the kernel refuses; the VM stays as it was.
        """
    def read(self, address: int, size: int, /) -> bytes:
        """Copy size bytes of guest memory at a physical address, across slots if need be.

        Raises UnmappedError, whose ``address`` is the first one without memory.
        """
    def write(self, address: int, data: ReadableBuffer, /) -> None:
        """Copy data to guest memory at a physical address, across slots if need be.

        Read-only slots are written too: they are read-only for the guest. Raises
        UnmappedError before anything is written.
        """
    def map_io(
        self,
        port: int,
        size: int,
        read: _Read | _StringRead | ReadableBuffer | None = None,
        write: _Write | _StringWrite | ByteSink | None = None,
        *,
        string: bool = False,
        coalesced: bool = False,
        device: object = None,
    ) -> BusRange:
        """Put a device at I/O ports ``port`` to ``port + size - 1``.

        read is called as ``read(offset, size)`` and returns the value (or a tuple of
        value and latency in ticks), write as ``write(offset, size, value)`` and
        returns None or its latency in ticks. write may be a ByteSink, which collects
        the bytes in C; read may be a buffer as long as the range, such as a bytearray,
        from which the guest reads in C, whatever it holds then. With ``string=True`` a repeated string instruction is one
        call: ``read(offset, size, count)`` returns ``size * count`` bytes and
        ``write(offset, size, data)`` gets them; of as many items, that is, as the
        kernel hands over at once: KVM on x86 gathers ``ins``, not ``outs``. A direction
        without a handler reads all ones or drops the write. coalesced: the kernel collects writes and they
        are delivered before the next exit (vcpu.md V15). device: a capsule named
        ``"kvmcpu.device"`` with a C ``struct kc_device`` (csrc/core/bus.h), in place of read
        and write. Handlers run on the vCPU's thread with the VM's device lock held;
        what they raise comes out of the run. Raises ValueError for an overlap or a
        range outside the 65536 ports.
        """
    def map_mmio(
        self,
        address: int,
        size: int,
        read: _Read | _StringRead | ReadableBuffer | None = None,
        write: _Write | _StringWrite | ByteSink | None = None,
        *,
        coalesced: bool = False,
        device: object = None,
    ) -> BusRange:
        """Put a device at physical addresses ``address`` to ``address + size - 1``; else like ``map_io``."""
    def create_vcpu(
        self,
        id: int | None = None,
        *,
        start: bool = True,
        name: str | None = None,
        queue: EventQueue | None = None,
        clock: _Frequency | None = None,
        host_freq: _Frequency | None = None,
        host_factor: float = 1.0,
        time_source: Literal["auto", "perf", "thread", "tsc"] = "auto",
        perf_event: tuple[int, int] | None = None,
        use_perf_overflow: bool = False,
        cpuid: Sequence[tuple[int, int, int, int, int, int, int]]
        | Literal["supported"]
        | None = "supported",
        num_threads: int = 1,
    ) -> Vcpu:
        """Make a vCPU. It lives as long as its object: keep that.

        id: the kernel's number for it, by default the next free one; an id cannot be
        used twice in a VM's life. start=False only constructs it (vcpu.md V4): call
        ``start()`` before anything else. clock: its frequency, whose period is the
        cycle (V1), by default host_freq * host_factor. host_freq and host_factor
        scale host time (V2); host_freq is by default that of the time source.
        time_source: ``"perf"``, the guest's own cycles by a hardware counter;
        ``"thread"``, the thread's CPU clock; ``"tsc"``, the host's time stamp counter;
        ``"auto"`` takes perf where the host has it, else tsc. perf_event is the
        ``(type, config)`` of the counter that ``"perf"`` counts cycles with and
        ``use_perf_overflow`` stops runs with, by default hardware cycles (see
        perf_event_open(2)). cpuid: the CPUID table, ``"supported"`` for what the host
        supports, None for none. num_threads: hardware threads, 1; anything else is
        refused with ValueError.
        """
    def check_extension(self, cap: int, /) -> int:
        """What KVM_CHECK_EXTENSION says of a capability for this VM."""
    def enable_cap(self, cap: int, /, *args: int, flags: int = 0) -> None:
        """Enable a capability of the VM (KVM_ENABLE_CAP) with up to four arguments."""
    def create_irqchip(self) -> None:
        """Make the kernel's interrupt controllers: two 8259s, an I/O APIC and a local APIC a vCPU, on x86.

        Before the first vCPU is made. From then on ``Vcpu.interrupt()`` is refused, and
        a halted vCPU waits in the kernel.
        """
    def create_pit(self, *, speaker_dummy: bool = False) -> None:
        """Make the kernel's 8254 timer (KVM_CREATE_PIT2). Needs the irqchip."""
    def irq_line(self, gsi: int, level: int, /) -> None:
        """Set the level of an interrupt line (KVM_IRQ_LINE), from any thread. Needs the irqchip."""
    def signal_msi(self, address: int, data: int, /) -> int:
        """Send a message-signalled interrupt (KVM_SIGNAL_MSI), from any thread.

        Returns how many vCPUs got it: 0 if the guest blocked it.
        """
    def set_gsi_routing(
        self,
        routes: Sequence[
            tuple[int, Literal["irqchip"], int, int] | tuple[int, Literal["msi"], int, int]
        ],
        /,
    ) -> None:
        """Replace the whole table of interrupt routes (KVM_SET_GSI_ROUTING).

        A route is ``(gsi, "irqchip", chip, pin)`` with chip 0 and 1 for the 8259s and 2
        for the I/O APIC, or ``(gsi, "msi", address, data)``.
        """
    def irqfd(self, gsi: int, fd: int | None = None, *, resample: int | None = None) -> int:
        """Tie an eventfd to an interrupt line (KVM_IRQFD): writing to it raises the interrupt.

        Without fd a new eventfd is made, which is the caller's to close. Returns the
        file descriptor. resample: an eventfd the kernel signals at the end of a level
        interrupt.
        """
    def remove_irqfd(self, gsi: int, fd: int, /) -> None:
        """Undo ``irqfd()``."""
    def ioeventfd(
        self,
        address: int,
        size: int,
        fd: int | None = None,
        *,
        value: int | None = None,
        io: bool = False,
    ) -> int:
        """Make guest writes to an address signal an eventfd without an exit (KVM_IOEVENTFD).

        size is 0 (any), 1, 2, 4 or 8 bytes; with value only that value counts; io:
        a port instead of a physical address. Without fd a new eventfd is made,
        non-blocking and the caller's to close. Returns the file descriptor.
        """
    def remove_ioeventfd(
        self, address: int, size: int, fd: int, *, value: int | None = None, io: bool = False
    ) -> None:
        """Undo ``ioeventfd()``, called with the same arguments."""
    def schedule_inst_stop(self, insts: int, /) -> None:
        """Stop the runs of all vCPUs when insts more instructions were committed in the whole VM (V23)."""
    def stop(self) -> None:
        """Make every run of the VM's vCPUs return, from any thread."""
    def fileno(self) -> int:
        """The VM's file descriptor. Raises ClosedError after ``close()``."""
    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called."""
    def close(self) -> None:
        """Stop the vCPUs, wait for their threads to leave them, and free everything the kernel holds.

        In a handler it takes effect when the run ends. Events that wait in its queue are
        dropped, ranges are taken off the bus. Views of memory stay valid. Closing twice
        does nothing.
        """
    def __enter__(self) -> VM: ...
    def __exit__(
        self,
        type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

@final
class Memory:
    """A memory slot: guest memory at a physical address. Made by ``VM.add_memory()``.

    It has the buffer protocol, and ``memory[a:b]`` is a memoryview: no copies. A view
    keeps the bytes alive, also after ``remove()`` and after the VM was closed.
    Offsets count from the slot's start.
    """

    @property
    def address(self) -> int:
        """The guest physical address of the slot's first byte."""
    @property
    def size(self) -> int:
        """The slot's size in bytes."""
    @property
    def slot(self) -> int:
        """The kernel's number for the slot."""
    @property
    def backing(self) -> Literal["anonymous", "file", "buffer"]:
        """What the bytes are: memory of our own, a mapped file, or the caller's buffer."""
    @property
    def readonly(self) -> bool:
        """Whether the guest may only read it."""
    log_dirty: bool
    """Whether the kernel logs which pages the guest writes; it can be turned on and off."""
    @property
    def closed(self) -> bool:
        """Whether the guest has it no more: after ``remove()``, or the VM was closed."""
    def dirty_pages(self) -> list[int]:
        """The numbers of the pages written since the last call, counted from the slot's start.

        KVM_GET_DIRTY_LOG, which also clears the log. Raises StateError if log_dirty is off.
        """
    def remove(self) -> None:
        """Take the memory away from the guest. Views of it stay valid. Twice does nothing."""
    def __len__(self) -> int: ...
    def __getitem__(self, key: int | slice, /) -> Any: ...
    def __setitem__(self, key: int | slice, value: int | ReadableBuffer, /) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class BusRange:
    """A range of ports or physical addresses with a device. Made by ``VM.map_io()`` and ``map_mmio()``."""

    @property
    def address(self) -> int:
        """The first port or physical address."""
    @property
    def size(self) -> int:
        """The number of ports or bytes."""
    @property
    def space(self) -> Literal["io", "mmio"]:
        """Port space or memory space."""
    @property
    def removed(self) -> bool:
        """Whether it was taken off the bus."""
    def remove(self) -> None:
        """Take it off the bus, also from inside its own handler. Twice does nothing."""

@final
class ByteSink:
    """Collects the bytes that a guest writes, in C, without asking for the interpreter lock.

    limit bounds what is kept, in bytes: older bytes are dropped. fd: a file
    descriptor that every byte is also written to at once (what it does not take is
    dropped and counted).
    """

    def __init__(self, *, limit: int = 16777216, fd: int | None = None) -> None: ...
    def getvalue(self) -> bytes:
        """A copy of the bytes that are kept."""
    def clear(self) -> bytes:
        """Take the bytes out: a copy of what was kept, and nothing is kept from then on."""
    def write(self, data: ReadableBuffer, /) -> None:
        """Add bytes, as if the guest had written them: for a device in Python. From any thread."""
    @property
    def text(self) -> str:
        """The bytes as UTF-8 text, with replacement characters for what is not."""
    @property
    def total(self) -> int:
        """How many bytes the guest wrote in all."""
    @property
    def dropped(self) -> int:
        """How many bytes were lost: over the limit, without memory, or refused by fd."""
    def __len__(self) -> int: ...

# ---------------------------------------------------------------------------- time

@final
class EventQueue:
    """Events in order of ticks, then priority, then of scheduling (vcpu.md V1, V7).

    ``VM.queue`` is one; another can be given to ``VM.create_vcpu()``. The time is
    that of the vCPU which is furthest. Usable from any thread: an event that comes
    before the end of an entry in progress shortens it.
    """

    def __init__(self, *, tick_frequency: int = 1000000000000) -> None: ...
    @property
    def now(self) -> int:
        """The time in ticks."""
    @property
    def tick_frequency(self) -> int:
        """Ticks in a simulated second (vcpu.md V1)."""
    @property
    def next_tick(self) -> int | None:
        """When the next event is due, in ticks; None if there is none."""
    def schedule(
        self,
        callback: Callable[[], object],
        when: _Ticks | None = None,
        *,
        delay: _Ticks | None = None,
        priority: int = 0,
    ) -> Event:
        """Call callback at the tick ``when``, or ``delay`` ticks from now.

        From a thread that runs no vCPU of the queue, *now* includes the time of the
        entry in progress. Of events at one tick the lower priority goes first. It is
        called on the thread of a vCPU, with the VM's device lock held; what it raises
        comes out of the run. Raises ValueError for a time that has passed.
        """
    def service(self, until: _Ticks | None = None, /) -> int:
        """Move the time on to ``until`` and call what is due; without it, what is due now.

        For using a queue without a vCPU. Returns how many events were called.
        """
    def __len__(self) -> int: ...

@final
class Event:
    """An event of a queue. Made by ``EventQueue.schedule()``; it can be scheduled again when it is over."""

    @property
    def when(self) -> int:
        """The tick at which it is or was due."""
    @property
    def priority(self) -> int:
        """The lower goes first among events of one tick."""
    @property
    def scheduled(self) -> bool:
        """Whether it still waits in its queue."""
    def cancel(self) -> bool:
        """Take it out of the queue. False if it was not there."""
    def reschedule(self, when: _Ticks | None = None, *, delay: _Ticks | None = None) -> None:
        """Move it, or put it back, to the tick ``when`` or ``delay`` ticks from now."""

# ---------------------------------------------------------------------------- statistics

@final
class Stats(Mapping[str, int | None]):
    """Statistics of a vCPU or, summed, of a VM (vcpu.md V14): a mapping of names to numbers.

    None stands for a number that this host cannot count, such as instructions
    without a hardware counter. Readable from any thread at any time.
    """

    def __getitem__(self, name: str, /) -> int | None: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def describe(self, name: str, /) -> str:
        """What the statistic counts. Raises KeyError for an unknown name."""
    def dump(self) -> str:
        """The statistics as text with gem5's names (``numVMExits``, ``committedInsts``, …)."""
    def reset(self) -> None:
        """Set all of them to zero."""

# ---------------------------------------------------------------------------- exits

@disjoint_base
@disjoint_base
class Exit:
    """A vCPU's last exit. Each reason has a class of its own with typed fields; others are plain Exit.

    The fields that a handler answers with can be set while it is the vCPU's last
    exit; they take effect at the next entry.
    """

    @property
    def reason(self) -> int:
        """KVM's exit reason (``kvmcpu.ExitReason``)."""
    @property
    def name(self) -> str:
        """The reason's name without KVM_EXIT_, such as ``"IO"``."""
    def as_dict(self) -> dict[str, Any]:
        """Reason, name and the fields as a plain dict."""

@final
class IoExit(Exit):
    """KVM_EXIT_IO: a port was read or written."""

    direction: Final[Literal["in", "out"]]
    """``"in"``: the guest reads."""
    port: Final[int]
    """The port, 0 to 65535."""
    size: Final[int]
    """Bytes in an item: 1, 2 or 4."""
    count: Final[int]
    """Items: more than one for string instructions."""
    data: bytes
    """``size * count`` bytes, little-endian items; what the guest is to read can be set."""

@final
class MmioExit(Exit):
    """KVM_EXIT_MMIO: an address without memory was accessed."""

    address: Final[int]
    """The guest physical address."""
    size: Final[int]
    """Bytes, 1 to 8."""
    is_write: Final[bool]
    """Whether the guest writes."""
    data: bytes
    """The bytes, in the guest's order; what the guest is to read can be set."""

@final
class HypercallExit(Exit):
    """KVM_EXIT_HYPERCALL: a hypercall that the kernel passes on."""

    nr: Final[int]
    """The hypercall's number."""
    args: Final[tuple[int, ...]]
    """Six arguments."""
    ret: int
    """The result that the guest gets; can be set."""

@final
class DebugExit(Exit):
    """KVM_EXIT_DEBUG: a single step or a breakpoint."""

    exception: Final[int]
    """The exception's vector: 1 for debug, 3 for a breakpoint instruction."""
    pc: Final[int]
    """The linear address of the instruction."""
    dr6: Final[int]
    """Debug status register at the exit."""
    dr7: Final[int]
    """Debug control register at the exit."""

@final
class HltExit(Exit):
    """KVM_EXIT_HLT: the guest halted, and no kernel interrupt controller waits for it."""

@final
class IrqWindowExit(Exit):
    """KVM_EXIT_IRQ_WINDOW_OPEN: the guest can take an interrupt now."""

@final
class ShutdownExit(Exit):
    """KVM_EXIT_SHUTDOWN: a triple fault."""

@final
class IntrExit(Exit):
    """KVM_EXIT_INTR: a kick, a timer or another signal ended the entry."""

@final
class FailEntryExit(Exit):
    """KVM_EXIT_FAIL_ENTRY: the hardware refused to enter the guest."""

    hardware_entry_failure_reason: Final[int]
    """The hardware's own code (Intel SDM vol. 3, 27.8; AMD APM vol. 2, appendix C)."""
    cpu: Final[int]
    """The host processor it happened on."""

@final
class UnknownExit(Exit):
    """KVM_EXIT_UNKNOWN: an exit that the kernel does not know."""

    hardware_exit_reason: Final[int]
    """The hardware's own code."""

@final
class ExceptionExit(Exit):
    """KVM_EXIT_EXCEPTION: an exception that nobody handled."""

    exception: Final[int]
    """The exception's vector."""
    error_code: Final[int]
    """The exception's error code."""

@final
class InternalErrorExit(Exit):
    """KVM_EXIT_INTERNAL_ERROR: the kernel could not go on."""

    suberror: Final[int]
    """1 emulation, 2 simultaneous exceptions, 3 event delivery, 4 unexpected exit reason."""
    data: Final[tuple[int, ...]]
    """What the kernel adds, 0 to 16 numbers; for an emulation failure flags and instruction bytes."""

@final
class SystemEventExit(Exit):
    """KVM_EXIT_SYSTEM_EVENT: the guest asks for a shutdown, a reset or reports a crash."""

    type: Final[int]
    """1 shutdown, 2 reset, 3 crash, 4 wakeup, 5 suspend, 6 SEV termination."""
    data: Final[tuple[int, ...]]
    """What the kernel adds, 0 to 16 numbers."""

@final
class MsrExit(Exit):
    """KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR: an MSR access that user space is to decide."""

    index: Final[int]
    """The MSR's number."""
    msr_reason: Final[int]
    """Why: 1 invalid for the kernel, 2 unknown to it, 4 filtered."""
    data: int
    """The value written, or to be read; can be set."""
    error: int
    """Set to 1 to raise a general protection fault in the guest."""

@final
class DirtyRingFullExit(Exit):
    """KVM_EXIT_DIRTY_RING_FULL: the dirty ring must be collected before the guest goes on."""

@final
class MemoryFaultExit(Exit):
    """KVM_EXIT_MEMORY_FAULT: the kernel could not resolve a fault on guest memory."""

    flags: Final[int]
    """Bit 3: a private page."""
    gpa: Final[int]
    """The guest physical address of the fault."""
    size: Final[int]
    """Bytes, a multiple of the page size."""

@final
class ExitRecord(structseq[Any], tuple[str, int, int, int, int, int]):
    """A line of a vCPU's ring of last exits (vcpu.md V25)."""

    __match_args__: Final = ("name", "address", "size", "data", "latency", "tick")
    @property
    def name(self) -> str:
        """The reason's name without KVM_EXIT_."""
    @property
    def address(self) -> int:
        """Port or physical address; 0 where the exit has none."""
    @property
    def size(self) -> int:
        """Bytes accessed, negative for a read; 0 where the exit has none."""
    @property
    def data(self) -> int:
        """The value accessed, its first 8 bytes; otherwise the exit's sub-reason."""
    @property
    def latency(self) -> int:
        """Ticks that the service took."""
    @property
    def tick(self) -> int:
        """When the exit happened."""

# ---------------------------------------------------------------------------- vCPU

@final
class Vcpu:
    """A virtual CPU. Made by ``VM.create_vcpu()``; behaves as docs/vcpu describes (V1 to V25)."""

    # life
    def start(self) -> None:
        """Make the kernel's vCPU and map its run structure (vcpu.md V4); the context becomes active.

        Raises StateError if it was started before, or if the memory mode forbids it (V6).
        """
    @property
    def id(self) -> int:
        """The kernel's number for the vCPU."""
    @property
    def name(self) -> str:
        """The name that traces and statistics carry."""
    @property
    def vm(self) -> VM:
        """The virtual machine that it belongs to."""
    @property
    def queue(self) -> EventQueue:
        """The event queue that it runs on."""
    @property
    def status(self) -> _Status:
        """The state (vcpu.md, States): Idle, Running, RunningService or RunningServiceCompletion."""
    @property
    def thread(self) -> int | None:
        """The native id of the thread that runs it now; None if none does."""
    @property
    def clock_period(self) -> int:
        """Ticks of a cycle (vcpu.md V1)."""
    @property
    def host_freq(self) -> float:
        """The host clock's frequency in Hz that time is scaled by (V2)."""
    @property
    def host_factor(self) -> float:
        """Guest cycles a host cycle (V2)."""
    @property
    def time_source(self) -> Literal["perf", "thread", "tsc"]:
        """What the guest's time is measured with."""
    @property
    def insts_source(self) -> str | None:
        """What instructions are counted with; None, they cannot be counted, and then ``counter_error`` says why."""
    @property
    def counter_error(self) -> str | None:
        """Why there are no hardware counters on this host, and what to do about it; None if there are."""
    @property
    def timer_resolution(self) -> int:
        """The run timer's resolution in ticks (V3): shorter entries are lengthened to it."""

    # running
    def run(self, ticks: _Ticks | None = None, /) -> int:
        """Run the guest: steps (``tick()``) until something stops it. Returns the ticks that passed.

        It stops when the ticks have passed; when the CPU has gone Idle and nothing is
        left that can wake it (no event, no other vCPU that runs), also before the ticks
        have passed; at an exit that nobody handles; when ``stop()`` was
        called, a drain is done, or an instruction stop is reached. ``stop_reason``
        says which. An exit that is an error raises a GuestError; what a handler
        raises comes out as it is; the vCPU can then be looked at and run again. The
        interpreter lock is not held while the guest runs.
        """
    def enter(self, ticks: _Ticks | None = None, /) -> int:
        """One entry into the guest (vcpu.md V8), for ticks at most; services nothing.

        0 is a half entry: it delivers what a finished access left pending and comes
        back without running guest code. None: no limit. ``exit`` tells why it came
        back. Returns the ticks that it took.
        """
    def tick(self) -> int:
        """One step of the state machine (vcpu.md V7). Returns the ticks until the next one is due.

        Raises StateError if the vCPU is Idle.
        """
    def step(self, n: int = 1, /) -> int:
        """Execute exactly n instructions, each by a single step (KVM_SET_GUEST_DEBUG), exits serviced.

        Returns how many were executed: fewer if the CPU went Idle or was stopped.
        """
    def kick(self) -> bool:
        """Make the vCPU leave the guest (vcpu.md V10), from any thread. A run then goes on.

        False if nobody runs it: then there is nothing to do, and nothing is kept.
        """
    def stop(self) -> bool:
        """Make the run in progress return, from any thread. False if nobody runs it."""
    def wakeup(self) -> None:
        """Activate a suspended context and kick the vCPU (vcpu.md V11), from any thread."""
    def activate(self) -> None:
        """Make the context active: Idle becomes Running."""
    def suspend(self) -> None:
        """Make the context inactive: the vCPU goes Idle. Does nothing if it is."""
    @property
    def stop_reason(self) -> _StopReason | None:
        """Why the last run returned; None before the first."""
    @property
    def exit(self) -> Exit | None:
        """The last exit; None before the first entry."""
    def last_exits(self) -> list[ExitRecord]:
        """The vCPU's last exits, at most 64, the oldest first (vcpu.md V25)."""
    def set_exit_handler(self, reason: int, handler: _ExitHandler | None, /) -> None:
        """Have an exit reason (``kvmcpu.ExitReason``) serviced by ``handler(cpu, exit)``; None undoes it.

        It takes the place of what vcpu.md says of that reason. It returns None or its
        latency in ticks.
        """
    @property
    def stats(self) -> Stats:
        """The vCPU's statistics (vcpu.md V14)."""
    def schedule_inst_stop(self, insts: int, /) -> None:
        """Stop the run when insts more instructions were committed, exactly (vcpu.md V23).

        With a hardware counter the guest runs at full speed until shortly before;
        without one every instruction is single-stepped. ``stop_reason`` is then
        ``"instructions"``.
        """
    def guest_debug(
        self, *, singlestep: bool = False, breakpoints: Sequence[int] = (), software: bool = False
    ) -> None:
        """Set guest debugging (KVM_SET_GUEST_DEBUG): the guest leaves with a DebugExit.

        breakpoints: up to four linear addresses of instructions, in debug registers.
        software: breakpoint instructions leave the guest too. Without arguments it is
        turned off. A run returns with stop_reason ``"exit"``.
        """

    # interrupts
    def interrupt(self, vector: int, /) -> None:
        """Queue a maskable interrupt with a vector, 0 to 255 (vcpu.md V17), from any thread.

        It is delivered when the guest can take it, and wakes a halted vCPU. Refused with StateError
        where the kernel has the interrupt controller: use ``VM.irq_line()`` or
        ``signal_msi()``.
        """
    def nmi(self) -> None:
        """Queue a non-maskable interrupt (KVM_NMI), from any thread; wakes a halted vCPU."""

    # drain, hand over, save
    def drain(self, done: Callable[[], object] | None = None, /) -> bool:
        """Ask the vCPU to come to a consistent state (vcpu.md V19), from any thread.

        True: it is drained. False: not yet, steps go on until it is; then a run
        returns with stop_reason ``"drained"`` and ``done()`` is called once.
        """
    @property
    def draining(self) -> bool:
        """Whether a drain was asked for and is not done yet."""
    @property
    def drained(self) -> bool:
        """Whether the vCPU is drained: between a drain's end and ``resume()``."""
    def resume(self) -> None:
        """End a drain: an active context runs again, an inactive one stays Idle."""
    def switch_out(self) -> None:
        """Retire the vCPU so that another can take over (vcpu.md V20). Raises StateError unless drained."""
    @property
    def switched_out(self) -> bool:
        """Whether another vCPU may have taken over."""
    def take_over(self, other: Any, /) -> None:
        """Receive the context of a switched-out vCPU, at once (vcpu.md V20).

        other is a Vcpu, of this or another VM, or any CPU with ``switched_out`` and
        ``serialize()``. This one goes on as the other left off, once ``resume()`` is called.
        """
    def serialize(self) -> dict[str, Any]:
        """Everything that the vCPU holds, as a dict of bytes, ints and lists of them (vcpu.md V21).

        Raises StateError unless Idle (drained).
        """
    def unserialize(self, state: Mapping[str, Any], /) -> None:
        """Restore what ``serialize()`` returned, at once: what the kernel refuses is an error here.

        Raises StateError unless Idle, KeyError or ValueError for what is not such a state.
        """

    # registers
    regs: Regs
    """The general registers, rip and rflags: a live view (KVM_GET_REGS).

    Setting it takes a Regs or a mapping of some of its fields; likewise for the
    others.
    """
    sregs: Sregs
    """Segments, descriptor tables, control registers: a live view (KVM_GET_SREGS)."""
    fpu: Fpu
    """x87, SSE and AVX registers: a live view of the XSAVE area (KVM_GET_XSAVE2)."""
    debugregs: DebugRegs
    """The debug registers: a live view (KVM_GET_DEBUGREGS)."""
    events: VcpuEvents
    """Pending and injected exceptions, interrupts and NMIs: a live view (KVM_GET_VCPU_EVENTS)."""
    xcrs: Xcrs
    """The extended control registers: a live view (KVM_GET_XCRS)."""
    xsave: bytes
    """The whole XSAVE area in its standard, non-compacted form (Intel SDM vol. 1, 13.4)."""
    mp_state: int
    """The multiprocessor state (KVM_GET_MP_STATE): 0 runnable, 1 uninitialized, 2 init received, 3 halted, 4 SIPI received."""
    lapic: bytes
    """The local APIC's register page, 1024 bytes (KVM_GET_LAPIC). Needs the irqchip."""
    tsc_khz: int
    """The guest's time stamp counter frequency in kHz (KVM_GET_TSC_KHZ)."""
    cpuid: Sequence[tuple[int, int, int, int, int, int, int]]
    """The CPUID table: ``(function, index, flags, eax, ebx, ecx, edx)`` (KVM_SET_CPUID2).

    The kernel refuses to change it after the guest ran.
    """
    @property
    def msrs(self) -> Msrs:
        """The model-specific registers, by number or name."""
    def get_one_reg(self, id: int, /) -> int | bytes:
        """A register by its id (KVM_GET_ONE_REG): an int up to 64 bits, else bytes."""
    def set_one_reg(self, id: int, value: int | ReadableBuffer, /) -> None:
        """Write a register by its id (KVM_SET_ONE_REG). Raises ValueError if the value does not fit."""
    def reg_list(self) -> list[int]:
        """The ids of the registers of the one-register interface (KVM_GET_REG_LIST).

        x86 kernels list none but have the MSRs there since Linux 6.18; then these are listed.
        """
    def format_one_reg(self, id: int, /) -> str:
        """A register as text: 0x hex to 64 bits, a list of bytes to 2048 bits, else ``??`` (V13)."""
    def dump(self) -> str:
        """Every register the vCPU has, as text for a person (vcpu.md V22)."""

    # the guest's virtual memory
    def translate(self, address: int, /) -> int:
        """The physical address of a linear address, by the guest's page tables (KVM_TRANSLATE).

        Raises UnmappedError if it has none.
        """
    def read_virtual(self, address: int, size: int, /) -> bytes:
        """Copy size bytes at a linear address. Raises UnmappedError with the first one that is not mapped."""
    def write_virtual(self, address: int, data: ReadableBuffer, /) -> None:
        """Copy data to a linear address. Raises UnmappedError before anything is written."""
    @property
    def closed(self) -> bool:
        """Whether the VM was closed."""

@final
class Msrs:
    """A vCPU's model-specific registers: ``msrs[0xc0000080]`` or ``msrs["EFER"]``, read and written.

    Raises KeyError for an unknown name, KvmError for a number the kernel does not
    know or a value that it refuses.
    """

    def __getitem__(self, msr: int | str, /) -> int: ...
    def __setitem__(self, msr: int | str, value: int, /) -> None: ...
    def __iter__(self) -> Iterator[int]: ...
    def __len__(self) -> int: ...
    def name(self, index: int, /) -> str | None:
        """The name of an MSR as the manuals have it (without IA32_ or MSR_); None if it has none here."""
    def as_dict(self) -> dict[str, int]:
        """All that can be read, by name, or by hex number where there is none."""

@disjoint_base
@disjoint_base
class RegisterFile:
    """A structure of named registers: a live view of a vCPU, or a copy.

    Fields read and write one at a time; files compare with their like and with
    mappings. A view belongs to the vCPU and raises VcpuBusy while another thread
    runs it.
    """

    fields: ClassVar[tuple[str, ...]]
    """The names of the fields, in order."""
    def as_dict(self) -> dict[str, Any]:
        """The fields as a plain dict, nested where they are structures."""
    def copy(self) -> RegisterFile:
        """A copy that no longer follows the vCPU."""
    def update(self, values: Mapping[str, Any] | RegisterFile, /) -> None:
        """Set several fields; all or none. Raises AttributeError for an unknown name."""

@final
class Regs(RegisterFile):
    """The general registers (struct kvm_regs)."""

    rax: int
    """General register, 64 bits."""
    rbx: int
    """General register, 64 bits."""
    rcx: int
    """General register, 64 bits."""
    rdx: int
    """General register, 64 bits."""
    rsi: int
    """General register, 64 bits."""
    rdi: int
    """General register, 64 bits."""
    rsp: int
    """General register, 64 bits."""
    rbp: int
    """General register, 64 bits."""
    r8: int
    """General register, 64 bits."""
    r9: int
    """General register, 64 bits."""
    r10: int
    """General register, 64 bits."""
    r11: int
    """General register, 64 bits."""
    r12: int
    """General register, 64 bits."""
    r13: int
    """General register, 64 bits."""
    r14: int
    """General register, 64 bits."""
    r15: int
    """General register, 64 bits."""
    rip: int
    """Instruction pointer, 64 bits."""
    rflags: int
    """Flags; bit 1 is always set (Intel SDM vol. 1, 3.4.3)."""

@final
class Segment(RegisterFile):
    """A segment register with its hidden part (struct kvm_segment)."""

    base: int
    """Linear base address, 64 bits."""
    limit: int
    """Limit in bytes, 32 bits, already scaled by granularity."""
    selector: int
    """The visible selector, 16 bits."""
    type: int
    """Type, 4 bits (Intel SDM vol. 3, 3.4.5.1)."""
    present: int
    """1: present."""
    dpl: int
    """Descriptor privilege level, 0 to 3."""
    db: int
    """1: 32-bit default operation size."""
    s: int
    """1: code or data, 0: system."""
    l: int
    """1: 64-bit code."""
    g: int
    """1: the limit counts pages."""
    avl: int
    """Free for software."""
    unusable: int
    """1: not usable (a null selector)."""

@final
class DTable(RegisterFile):
    """A descriptor table register (struct kvm_dtable)."""

    base: int
    """Linear base address, 64 bits."""
    limit: int
    """Limit in bytes, 16 bits."""

@final
class Sregs(RegisterFile):
    """Segments, descriptor tables and control registers (struct kvm_sregs)."""

    cs: Segment
    """Code segment."""
    ds: Segment
    """Data segment."""
    es: Segment
    """Extra segment."""
    fs: Segment
    """Segment FS."""
    gs: Segment
    """Segment GS."""
    ss: Segment
    """Stack segment."""
    tr: Segment
    """Task register."""
    ldt: Segment
    """Local descriptor table register."""
    gdt: DTable
    """Global descriptor table register."""
    idt: DTable
    """Interrupt descriptor table register."""
    cr0: int
    """Control register 0: modes."""
    cr2: int
    """Control register 2: the linear address of the last page fault."""
    cr3: int
    """Control register 3: the page table root."""
    cr4: int
    """Control register 4: extensions."""
    cr8: int
    """Control register 8: task priority, 4 bits."""
    efer: int
    """Extended feature enable register (MSR 0xc0000080)."""
    apic_base: int
    """Local APIC base (MSR 0x1b)."""

@final
class Fpu(RegisterFile):
    """x87, SSE and AVX registers (the XSAVE area, Intel SDM vol. 1, 13.4)."""

    fcw: int
    """x87 control word, 16 bits."""
    fsw: int
    """x87 status word, 16 bits."""
    ftw: int
    """x87 abridged tag word, 8 bits: 1 means in use."""
    fop: int
    """Last x87 opcode, 11 bits."""
    fip: int
    """Last x87 instruction pointer."""
    fdp: int
    """Last x87 data pointer."""
    mxcsr: int
    """SSE control and status."""
    mxcsr_mask: int
    """Which bits of mxcsr the processor has."""
    st0: int
    """x87 register from the top of the stack, 80 bits as an integer."""
    st1: int
    """x87 register from the top of the stack, 80 bits as an integer."""
    st2: int
    """x87 register from the top of the stack, 80 bits as an integer."""
    st3: int
    """x87 register from the top of the stack, 80 bits as an integer."""
    st4: int
    """x87 register from the top of the stack, 80 bits as an integer."""
    st5: int
    """x87 register from the top of the stack, 80 bits as an integer."""
    st6: int
    """x87 register from the top of the stack, 80 bits as an integer."""
    st7: int
    """x87 register from the top of the stack, 80 bits as an integer."""
    xmm0: int
    """SSE register, 128 bits."""
    xmm1: int
    """SSE register, 128 bits."""
    xmm2: int
    """SSE register, 128 bits."""
    xmm3: int
    """SSE register, 128 bits."""
    xmm4: int
    """SSE register, 128 bits."""
    xmm5: int
    """SSE register, 128 bits."""
    xmm6: int
    """SSE register, 128 bits."""
    xmm7: int
    """SSE register, 128 bits."""
    xmm8: int
    """SSE register, 128 bits."""
    xmm9: int
    """SSE register, 128 bits."""
    xmm10: int
    """SSE register, 128 bits."""
    xmm11: int
    """SSE register, 128 bits."""
    xmm12: int
    """SSE register, 128 bits."""
    xmm13: int
    """SSE register, 128 bits."""
    xmm14: int
    """SSE register, 128 bits."""
    xmm15: int
    """SSE register, 128 bits."""
    ymm0: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm1: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm2: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm3: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm4: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm5: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm6: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm7: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm8: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm9: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm10: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm11: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm12: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm13: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm14: int
    """AVX register, 256 bits. AttributeError where the processor has none."""
    ymm15: int
    """AVX register, 256 bits. AttributeError where the processor has none."""

@final
class DebugRegs(RegisterFile):
    """The debug registers (struct kvm_debugregs)."""

    db0: int
    """Breakpoint address, linear."""
    db1: int
    """Breakpoint address, linear."""
    db2: int
    """Breakpoint address, linear."""
    db3: int
    """Breakpoint address, linear."""
    dr6: int
    """Debug status."""
    dr7: int
    """Debug control."""
    flags: int
    """Reserved, 0."""

@final
class VcpuEvents(RegisterFile):
    """Exceptions, interrupts, NMIs and SMIs in flight (struct kvm_vcpu_events)."""

    exception_injected: int
    """1: an exception is being delivered."""
    exception_nr: int
    """Its vector."""
    exception_has_error_code: int
    """1: it has an error code."""
    exception_pending: int
    """1: an exception waits."""
    exception_error_code: int
    """Its error code."""
    interrupt_injected: int
    """1: an interrupt is being delivered."""
    interrupt_nr: int
    """Its vector."""
    interrupt_soft: int
    """1: a software interrupt."""
    interrupt_shadow: int
    """Bit 0: after mov ss, bit 1: after sti."""
    nmi_injected: int
    """1: an NMI is being delivered."""
    nmi_pending: int
    """How many NMIs wait."""
    nmi_masked: int
    """1: NMIs are blocked."""
    sipi_vector: int
    """Vector of a start-up interrupt, 0 if none."""
    flags: int
    """Which of the fields are valid (KVM_VCPUEVENT_VALID_*)."""
    smi_smm: int
    """1: in system management mode."""
    smi_pending: int
    """1: an SMI waits."""
    smi_smm_inside_nmi: int
    """1: the SMI interrupted an NMI."""
    smi_latched_init: int
    """1: an INIT waits for the end of SMM."""
    triple_fault_pending: int
    """1: a triple fault waits."""
    exception_has_payload: int
    """1: exception_payload is valid."""
    exception_payload: int
    """Payload of a pending exception: CR2 or DR6."""

@final
class Xcrs(RegisterFile):
    """Extended control registers (struct kvm_xcrs)."""

    xcr0: int
    """Which state XSAVE handles (Intel SDM vol. 1, 13.3)."""
