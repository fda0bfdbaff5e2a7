# SPDX-License-Identifier: MIT
"""The lab: a complete KVM of any architecture, in an emulated machine, for a command or tests.

QEMU emulates the hardware with its virtualization extensions, a Debian kernel in it provides KVM;
the host needs neither /dev/kvm nor privileges.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence

from kvmcpu._kvm import parse_size
from kvmcpu.lab import machine
from kvmcpu.lab.errors import LabCrash, LabError, LabTimeout
from kvmcpu.lab.session import Job, Session
from kvmcpu.lab.targets import TARGETS, target

__all__ = ["Job", "LabCrash", "LabError", "LabTimeout", "Session", "TARGETS", "run"]


def run(
    command: Sequence[str],
    *,
    arch: str | None = None,
    input: bytes = b"",  # noqa: A002
    directory: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
    memory: int | str = "1GiB",
    cpus: int = 1,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a lab, with what it printed kept.

    arch: "x86_64", "arm64" or "riscv64", by default this machine's. directory: the working
    directory, which the lab shares and may write to; by default this process's. memory: bytes, or
    such as "1GiB". timeout: seconds from the command's start. returncode is the command's status,
    128 and its number for a signal. Raises LabError, LabCrash, LabTimeout.
    """
    job = Job(
        command,
        target(arch),
        directory=os.path.realpath(directory or os.getcwd()),
        environment=environment or {},
        memory=memory if isinstance(memory, int) else parse_size(memory),
        cpus=cpus,
        timeout=timeout,
    )
    out, err = bytearray(), bytearray()
    with tempfile.TemporaryFile() as file:
        file.write(input)
        file.seek(0)
        sinks = {machine.STDOUT: out.extend, machine.STDERR: err.extend}
        with Session(job, sinks, stdin=file.fileno()) as session:
            status = session.run()
    return subprocess.CompletedProcess(list(command), status, bytes(out), bytes(err))
