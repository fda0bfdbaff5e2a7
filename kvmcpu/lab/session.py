# SPDX-License-Identifier: MIT
"""One command in a lab: what it gets, what comes back, and how it ends."""

from __future__ import annotations

import os
import secrets
import selectors
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import kvmcpu
from kvmcpu.lab import images, machine, roots
from kvmcpu.lab.errors import LabCrash, LabError, LabTimeout
from kvmcpu.lab.targets import Target, host

MEMORY = 1 << 30
_PIECE = 1 << 16
_START_LIMIT = 180.0  # s; a lab that takes longer than that is taken to hang
_END_LIMIT = 20.0  # s for what is left to write
_SLICE = 1.0  # s
_SILENT = 60  # slices without a sign of life, after which a lab is taken to hang

Sink = Callable[[bytes], object]

# What the guest's first process does. The relays make the command's standard files pipes, as a
# shell would; their last words, @MARK@, tell the host that nothing more comes. Everything that the
# lab itself runs is the busybox of /run/lab, so that the rest is the command's.
_START = r"""
b=/run/lab/busybox
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd /
exec 4<>/dev/vport0p4
fail() { echo "fail $*" >&4; $b sleep 10; $b poweroff -f; }
$b ip link set lo up
echo lab-@ARCH@ >/proc/sys/kernel/hostname
$b date -s @@TIME@ >/dev/null
$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts -o ptmxmode=666 devpts /dev/pts
$b mount -t tmpfs shm /dev/shm
for link in fd= stdin=/0 stdout=/1 stderr=/2; do
	$b ln -sf "/proc/self/fd${link#*=}" "/dev/${link%=*}"
done
echo 100 >/proc/sys/vm/dirty_writeback_centisecs
echo 100 >/proc/sys/vm/dirty_expire_centisecs
# QEMU sees nothing in a directory that its user may enter but not read: there lies one in memory.
directory=@DIRECTORY@
if ! $b mkdir -p "$directory" 2>/dev/null; then
	over=${directory%/*}
	until [ -d "$over/" ]; do over=${over%/*}; done
	$b mount -t tmpfs -o mode=755 hidden "$over/" && $b mkdir -p "$directory"
fi
why=$($b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose \
	work "$directory" 2>&1) ||
	fail "cannot mount the working directory: $why"
@MORE@
cd "$directory" || fail "cannot go to the working directory"
# Busybox's own would take busybox's commands for those of the same name.
env=/usr/bin/env
[ -x $env ] || env="$b env"
end_others() {
	for process in /proc/[0-9]*; do
		[ -e "$process/exe" ] || continue # one of the kernel's own
		exe=$($b readlink "$process/exe") || continue
		[ "$exe" = /run/lab/busybox ] || kill -KILL "${process#/proc/}" 2>/dev/null
	done
}
{
	while read -r word first second; do
		case $word in
		signal)
			until [ -s /run/lab/pid ]; do $b usleep 10000; done
			read -r command </run/lab/pid
			kill "-$first" "-$command" 2>/dev/null || kill "-$first" "$command" 2>/dev/null
			;;
		size) $b stty -F /dev/hvc0 rows "$first" cols "$second" ;;
		esac
	done <&4
	$b poweroff -f
} &
while $b sleep 2; do echo alive >&4; done &
# Not in the background, where a shell has a command ignore SIGINT for good; in a shell of its own,
# as to open a pipe would be interrupted by the end of another child.
run='echo $$ >/run/lab/pid; exec "$@"'
if [ @TERMINAL@ = 1 ]; then
	relays=
	echo ready >&4
	$b setsid -c $b sh -c "$run" - @COMMAND@ </dev/hvc0 >/dev/hvc0 2>&1 4>&-
	status=$?
else
	$b mkfifo /run/lab/0 /run/lab/1 /run/lab/2
	$b cat </dev/vport0p1 >/run/lab/0 2>/dev/null 4>&- &
	{ $b cat /run/lab/1; echo -n @MARK@; } >/dev/vport0p2 4>&- &
	relays=$!
	{ $b cat /run/lab/2; echo -n @MARK@; } >/dev/vport0p3 4>&- &
	relays="$relays $!"
	echo ready >&4
	(exec $b setsid $b sh -c "$run" - @COMMAND@) </run/lab/0 >/run/lab/1 2>/run/lab/2 4>&-
	status=$?
fi
end_others
[ -z "$relays" ] || wait $relays
cd /
$b umount "$directory" 2>/dev/null || $b sync
echo "exit $status" >&4
$b sleep 60
$b poweroff -f
"""


def _nobody(_data: bytes) -> None:
    """Takes what nobody wants."""


def _quiet(_what: str, _percent: float) -> None:
    """Progress for nobody."""


@dataclass
class Job:
    """A command, and the lab that it runs in."""

    command: Sequence[str]
    target: Target
    directory: str = field(default_factory=os.getcwd)
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set for the command, beyond what it gets anyway."""
    memory: int = MEMORY
    """Bytes."""
    cpus: int = 1
    timeout: float | None = None
    """Seconds from the command's start."""
    qemu: str | None = None
    kernel: str | None = None
    modules: str | None = None
    busybox: str | None = None
    root: str | None = None


def _environment(job: Job) -> dict[str, str]:
    """On the host's own root the host's environment, with this interpreter's commands first."""
    if job.target.name != host() or job.root is not None:
        own = {name: os.environ[name] for name in ("TERM", "LANG") if name in os.environ}
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"HOME": "/root", "PATH": path, **own, **job.environment}
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    return {**os.environ, "PATH": path, **job.environment}


def _start_script(job: Job, mark: bytes, terminal: bool) -> bytes:
    words = ["-i", *(f"{n}={v}" for n, v in _environment(job).items()), *job.command]
    # Where the package lies in the working directory, that of the lab's architecture is there.
    package = os.path.dirname(os.path.abspath(kvmcpu.__file__))
    more = ""
    if job.target.name != host() and package.startswith(os.path.join(job.directory, "")):
        more = f"$b mount -o bind /{roots.PYTHON}/kvmcpu {shlex.quote(package)}"
    fields = {
        "@ARCH@": job.target.name,
        "@TIME@": str(int(time.time())),
        "@DIRECTORY@": shlex.quote(job.directory),
        "@MORE@": more,
        "@TERMINAL@": "1" if terminal else "0",
        "@MARK@": mark.decode(),
        "@COMMAND@": f"$env {shlex.join(words)}",
    }
    script = _START
    for name, text in fields.items():
        script = script.replace(name, text)
    return os.fsencode(script)


def _kernel(job: Job, progress: images.Progress) -> images.Kernel:
    if job.kernel is None:
        return images.kernel(job.target, progress)
    if job.busybox is None:
        raise LabError("a kernel of your own needs a static busybox: --busybox FILE")
    return images.own_kernel(job.target, job.kernel, job.modules, job.busybox)


def _shares(job: Job, progress: images.Progress) -> list[machine.Share]:
    work = machine.Share("work", job.directory, writable=True)
    if job.root is not None:
        return [machine.Share("root", job.root), work]
    if job.target.name == host():
        return [machine.Share("root", "/"), work]

    def run_there(root: str, directory: str, script: str) -> None:
        there = replace(
            job, command=["sh", "-c", script], root=root, directory=directory, timeout=600
        )
        with Session(there, {machine.STDERR: said.extend}) as session:
            if session.run():
                raise LabError(f"in the new root: {said.decode(errors='replace').strip()}")

    said = bytearray()
    base = roots.root(job.target, progress, run_there)
    package = machine.Share("package", roots.package(job.target, base))
    return [machine.Share("root", base), package, work]


class Session:
    """A lab with one command in it. Use as a context manager: leaving it ends the machine."""

    def __init__(
        self,
        job: Job,
        sinks: Mapping[int, Sink],
        *,
        stdin: int | None = None,
        terminal: bool = False,
        progress: images.Progress | None = None,
    ) -> None:
        """sinks: who gets what comes out of which port; stdin: a descriptor, None: nothing."""
        self._job = job
        self._sinks = dict(sinks)
        self._stdin = stdin
        self._terminal = terminal
        qemu = machine.find_qemu(job.target, job.qemu)
        self._mark = secrets.token_hex(16).encode()
        self.machine = machine.Machine(
            job.target,
            qemu,
            _kernel(job, progress or _quiet),
            _shares(job, progress or _quiet),
            memory=job.memory,
            cpus=job.cpus,
            terminal=terminal,
        )
        self.started = False
        self._since = time.monotonic()
        self._status: int | None = None
        self._held: dict[int, bytes] = {}
        self._control = b""
        self._waiting = b""
        self._outgoing: dict[int, bytes] = {}
        self._selector = selectors.PollSelector()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._selector.close()
        self.machine.close()

    def signal(self, name: str) -> None:
        """Send the command's process group a signal, such as "INT"."""
        self._tell(f"signal {name}\n")

    def size(self, rows: int, columns: int) -> None:
        """Tell the terminal its size."""
        self._tell(f"size {rows} {columns}\n")

    def send(self, port: int, data: bytes) -> None:
        """Write to a port, as fast as the guest takes it."""
        self._outgoing[port] = self._outgoing.get(port, b"") + data
        self._flush(port)

    def _flush(self, port: int) -> None:
        file = self.machine.ports[port]
        with suppress(BlockingIOError):
            sent = file.send(self._outgoing[port], socket.MSG_DONTWAIT)
            self._outgoing[port] = self._outgoing[port][sent:]
        events = selectors.EVENT_READ
        if self._outgoing[port]:
            events |= selectors.EVENT_WRITE
        self._selector.modify(file, events, port)

    def _tell(self, line: str) -> None:
        with suppress(OSError):
            self.machine.ports[machine.CONTROL].sendall(line.encode())

    def run(self) -> int:
        """Run the command to its end; returns its status, 128 and the number for a signal.

        Raises LabTimeout, LabCrash, LabError, and what a sink raises.
        """
        ports = self.machine.ports
        start = ports[machine.START]
        start.sendall(_start_script(self._job, self._mark, self._terminal))
        start.shutdown(socket.SHUT_WR)
        outputs = [machine.TERMINAL] if self._terminal else [machine.STDOUT, machine.STDERR]
        for port in (*outputs, machine.CONTROL, machine.REPORTS):
            self._selector.register(ports[port], selectors.EVENT_READ, port)
        self._selector.register(self.machine.console, selectors.EVENT_READ, -1)
        self._held = {} if self._terminal else dict.fromkeys(outputs, b"")
        # Slices without a sign of life: a clock would go on while this process is stopped.
        silent = 0
        while self._status is None or self._held:
            left = self._limit() - time.monotonic()
            if left <= 0:
                if not self.started:
                    raise LabCrash("the lab did not start in time")
                if self._status is None:
                    raise LabTimeout(f"timed out after {self._job.timeout:g} s")
                break  # somebody holds its output
            heard = self._step(min(_SLICE, left))
            if heard is None:
                raise LabCrash(f"the lab died: {self.machine.why_it_died()}")
            silent = 0 if heard or not self.started else silent + 1
            if silent > _SILENT:
                raise LabCrash(f"the lab hangs: no sign of life for {_SILENT * _SLICE:g} s")
        assert self._status is not None
        return self._status

    def _limit(self) -> float:
        """Until when what goes on now may last."""
        if not self.started:
            return self._since + _START_LIMIT
        if self._status is None:
            return self._since + (self._job.timeout or float("inf"))
        return self._since + _END_LIMIT

    def _step(self, patience: float) -> bool | None:
        """Wait for something and hand it on: whether anything came; None: the machine is gone."""
        ready = self._selector.select(max(0.0, patience))
        for key, events in ready:
            port = key.data
            if port == -1:
                if not self.machine.listen():
                    return None
            elif port == machine.STDIN:
                self._feed(key)
            elif events & selectors.EVENT_WRITE:
                self._flush(port)
            else:
                data = self.machine.ports[port].recv(_PIECE)
                if not data:
                    return None
                self._take(port, data)
        return bool(ready)

    def _feed(self, key: selectors.SelectorKey) -> None:
        """Standard input, as fast as the guest takes it."""
        port = self.machine.ports[machine.TERMINAL if self._terminal else machine.STDIN]
        if key.events == selectors.EVENT_READ:
            assert self._stdin is not None
            self._selector.unregister(self._stdin)
            try:
                self._waiting = os.read(self._stdin, _PIECE)
            except OSError:
                self._waiting = b""
            if not self._waiting:
                if not self._terminal:
                    port.shutdown(socket.SHUT_WR)
                return
        else:
            self._selector.unregister(port)
        with suppress(BlockingIOError):
            sent = port.send(self._waiting, socket.MSG_DONTWAIT)
            self._waiting = self._waiting[sent:]
        if self._waiting:
            self._selector.register(port, selectors.EVENT_WRITE, machine.STDIN)
        else:
            self._selector.register(self._stdin or 0, selectors.EVENT_READ, machine.STDIN)

    def _take(self, port: int, data: bytes) -> None:
        if port == machine.CONTROL:
            *lines, self._control = (self._control + data).split(b"\n")
            for line in lines:
                self._obey(line.decode(errors="replace"))
            return
        sink = self._sinks.get(port) or _nobody
        if port not in self._held:
            sink(data)
            return
        data = self._held[port] + data
        found = data.find(self._mark)
        if found >= 0:
            del self._held[port]
            self._selector.unregister(self.machine.ports[port])
            if found:
                sink(data[:found])
            return
        keep = next(n for n in range(len(self._mark) - 1, -1, -1) if data.endswith(self._mark[:n]))
        self._held[port] = data[len(data) - keep :]
        if len(data) > keep:
            sink(data[: len(data) - keep])

    def _obey(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "ready":
            self.started, self._since = True, time.monotonic()
            if self._stdin is not None:
                self._selector.register(self._stdin, selectors.EVENT_READ, machine.STDIN)
            else:
                self.machine.ports[machine.STDIN].shutdown(socket.SHUT_WR)
        elif word == "exit":
            self._status, self._since = int(rest), time.monotonic()
        elif word == "fail":
            raise LabError(f"the lab did not start: {rest}")


def prepare(job: Job, progress: images.Progress) -> None:
    """Fetch and build what the job's lab needs, if it is not there yet."""
    _kernel(job, progress)
    _shares(job, progress)
