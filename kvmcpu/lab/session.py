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
from dataclasses import dataclass, field

from kvmcpu.lab import images, machine
from kvmcpu.lab.errors import LabCrash, LabError, LabTimeout
from kvmcpu.lab.targets import Target

MEMORY = 1 << 30
_PIECE = 1 << 16

Sink = Callable[[bytes], object]

# What the guest does, with @NAMES@ filled in. The relays make the command's standard files pipes,
# as they would be on the host; their last words tell the host that nothing more comes.
_START = """\
b=/run/lab/busybox
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd /
$b ip link set lo up
$b hostname lab-@ARCH@
$b date -s @@TIME@ >/dev/null
$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts devpts /dev/pts
$b mount -t tmpfs shm /dev/shm
for link in fd: stdin:/0 stdout:/1 stderr:/2; do $b ln -sf "/proc/self/fd${link#*:}" "/dev/${link%:*}"; done
@MOUNTS@
cd @DIRECTORY@ || { echo cannot @DIRECTORY@ >/dev/vport0p4; $b sleep 5; $b poweroff -f; }
end() {
	for process in /proc/[0-9]*; do
		pid=${process#/proc/}
		case " 1 $relays " in *" $pid "*) continue ;; esac
		$b readlink "$process/exe" >/dev/null 2>&1 && kill -KILL "$pid" 2>/dev/null
	done
}
relays=
terminal=@TERMINAL@
if [ -z "$terminal" ]; then
	$b mkfifo /run/lab/0 /run/lab/1 /run/lab/2
	$b sh -c 'exec /run/lab/busybox cat /dev/vport0p1 >/run/lab/0' &
	for n in 1 2; do
		$b sh -c '/run/lab/busybox cat </run/lab/$0 >/run/lab/out$0; echo' $n >/dev/null 2>&1 &
	done
fi
"""


@dataclass
class Job:
    """A command and where it runs."""

    command: Sequence[str]
    target: Target
    directory: str
    environment: Mapping[str, str] = field(default_factory=dict)
    memory: int = MEMORY
    cpus: int = 1
    timeout: float | None = None
    qemu: str | None = None
    kernel: str | None = None
    modules: str | None = None
    busybox: str | None = None
    root: str | None = None
