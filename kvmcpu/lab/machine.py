# SPDX-License-Identifier: MIT
"""The emulated machine: a QEMU process, the directories it shares, and its ports."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from kvmcpu.lab.errors import LabError
from kvmcpu.lab.images import Kernel
from kvmcpu.lab.targets import Target

# The ports' numbers in the guest: /dev/vport0pN. Port 0 is the terminal, /dev/hvc0.
TERMINAL, STDIN, STDOUT, STDERR, CONTROL, START, REPORTS = range(7)
_PORTS = range(1, 7)
_LOG = 1 << 16  # bytes of the kernel's messages that are kept
_PATIENCE = 5.0  # s


@dataclass(frozen=True)
class Share:
    """A directory that the guest mounts over 9p, by its tag."""

    tag: str
    path: str
    writable: bool = False

    def options(self) -> list[str]:
        path = self.path.replace(",", ",,")
        text = f"local,path={path},mount_tag={self.tag},security_model=none,multidevs=remap"
        return ["-virtfs", text if self.writable else f"{text},readonly=on"]


def find_qemu(target: Target, given: str | None) -> str:
    """QEMU for that architecture. Raises LabError naming the package."""
    path = shutil.which(given or target.qemu)
    if path is None:
        if given:
            raise LabError(f"{given} is not there, or is no program")
        raise LabError(
            f"{target.qemu} is not there: apt-get install {target.qemu_package}"
            " (or name another one with --qemu)"
        )
    if (
        target.firmware
        and not given
        and not os.path.exists(f"/usr/share/qemu/{target.firmware[0]}")
    ):
        raise LabError(f"{target.firmware[0]} is not there: apt-get install {target.firmware[1]}")
    return path


class Machine:
    """A running machine. Ends with its object's close(), and with this process."""

    def __init__(
        self,
        target: Target,
        qemu: str,
        kernel: Kernel,
        shares: Sequence[Share],
        *,
        memory: int,
        cpus: int,
        terminal: bool = False,
    ) -> None:
        numbers = [*([TERMINAL] if terminal else []), *_PORTS]
        pairs = {number: socket.socketpair() for number in (*numbers, -1)}
        self.ports = {number: ours for number, (ours, _) in pairs.items() if number >= 0}
        self.console = pairs[-1][0]
        self.log = b""
        command = [
            *(qemu, *target.machine, "-accel", "tcg", "-m", f"{memory >> 20}M"),
            *("-smp", str(cpus), "-nodefaults", "-no-user-config", "-display", "none"),
            *("-monitor", "none", "-no-reboot", "-kernel", kernel.kernel),
            *("-initrd", kernel.initramfs, "-append", target.append),
            *("-chardev", f"socket,id=console,fd={pairs[-1][1].fileno()}"),
            *("-serial", "chardev:console", "-device", "virtio-serial-pci,max_ports=8"),
        ]
        for number in numbers:
            device = "virtserialport" if number else "virtconsole"
            command += ["-chardev", f"socket,id=c{number},fd={pairs[number][1].fileno()}"]
            command += ["-device", f"{device},chardev=c{number},nr={number}"]
        for share in shares:
            command += share.options()
        # A process that is killed leaves no machine behind.
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "KILL", *command]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno() for _, theirs in pairs.values()],
                start_new_session=True,
            )
        except OSError as error:
            self._close_sockets()
            raise LabError(f"{qemu} cannot be started: {error.strerror}") from error
        finally:
            for _, theirs in pairs.values():
                theirs.close()
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        self.console.setblocking(False)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    def listen(self) -> bool:
        """Take what the kernel printed meanwhile; False when it will print no more."""
        while True:
            try:
                data = self.console.recv(1 << 16)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self.log = (self.log + data)[-_LOG:]

    def why_it_died(self) -> str:
        """In words, after the ports have closed."""
        end = time.monotonic() + _PATIENCE
        while self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        self.listen()
        log = self.log.decode(errors="replace")
        panic = re.search(r"Kernel panic - not syncing: .*", log)
        if panic:
            cause = re.search(r"(?:BUG|Oops|sysrq): .*", log)
            return f"its kernel crashed: {panic[0].strip()}" + (f" ({cause[0]})" if cause else "")
        said = ""
        if self._process.stderr is not None:
            with suppress(OSError):
                said = (self._process.stderr.read() or b"").decode(errors="replace").strip()
        status = self._process.returncode
        if status is None:
            return "its ports closed"
        if status < 0:
            name = signal.Signals(-status).name
            return f"QEMU was ended by {name}" + (f": {said[-300:]}" if said else "")
        if status:
            return f"QEMU ended with status {status}: {said[-500:]}"
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        return "it powered off" + (f": {lines[-1]}" if lines else "")

    def _close_sockets(self) -> None:
        for port in (*self.ports.values(), self.console):
            port.close()

    def close(self, patience: float = 0) -> None:
        """End the machine, after at most so many seconds that it may take to power off."""
        try:
            if patience:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience)
        finally:
            self._process.kill()
            self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()
            self._close_sockets()
