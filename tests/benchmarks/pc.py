# SPDX-License-Identifier: MIT
"""A whole PC beside QEMU's isapc, on the same KVM: firmware, GRUB, the example kernel.

    python tests/benchmarks/pc.py [--rounds N] [--check]

Both run as processes of their own, with the same firmware and image; the ratio is the median of the
rounds' ratios. GRUB is started in both at the same time, each on one of two CPUs, which they swap
from round to round, so that what else happens on the machine meets both; the kernel's work is done
by turns. Debian packages: qemu-system-x86, seabios, grub-common, grub-pc-bin, mtools;
examples/kernel must be built.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))

import grub_disk  # noqa: E402

FIRMWARE = "/usr/share/seabios/bios.bin"
KERNEL = TOP / "examples" / "kernel" / "kernel.elf"
MEMORY = 32  # MiB
DISK_KIB = 8192
SPEW_KIB = 1024

OURS = f"""
import sys
from kvmcpu import devices as d
from kvmcpu.system import System
from kvmcpu.terminal import Input
devices = [d.Serial16550(), d.Cmos(), d.FwCfg(), d.I8042(), d.DmaPage(), d.PowerOff(),
           d.AtaController()]
system = System(memory="{MEMORY}MiB", devices=devices, disks=[sys.argv[1] + ",overlay"], output=1,
                firmware=sys.argv[2] or None)
if sys.argv[3]:
    system.load(sys.argv[3])
system.build()
serial = devices[0]
with Input(0, system.console.send, lambda: serial.waiting, lambda: None):
    system.start().wait()
"""


class Machine:
    """A process whose standard files are a PC's serial port."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.begin = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )
        self._output = b""

    def expect(self, text: bytes, timeout: float = 240) -> None:
        assert self._process.stdout is not None
        fd, end = self._process.stdout.fileno(), time.monotonic() + timeout
        searched = 0
        while (found := self._output.find(text, searched)) < 0:
            searched = max(0, len(self._output) - len(text))
            if not select.select([fd], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"{text!r} did not come; the end is {self._output[-300:]!r}")
            data = os.read(fd, 1 << 16)
            if not data:
                raise EOFError(f"it ended: {self._output[-300:]!r}")
            self._output += data
        self._output = self._output[found + len(text) :]

    def send(self, text: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def peak(self) -> float:
        """Its largest resident memory so far, in KiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return float(status.split("VmHWM:")[1].split()[0])

    def cpu_time(self) -> float:
        """What all its threads have used so far, guest's time included, in s."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def ours(disk: str, *, kernel: bool) -> Machine:
    # Without site: the import hooks of an editable install take 2 MB that no user's has.
    command = [sys.executable, "-S", "-c", OURS, disk]
    arguments = ["", str(KERNEL)] if kernel else [FIRMWARE, ""]
    path = os.pathsep.join([str(TOP), sysconfig.get_path("purelib")])
    return Machine([*command, *arguments], PYTHONPATH=path)


def qemu(disk: str, *, kernel: bool) -> Machine:
    command = (
        f"qemu-system-x86_64 -M isapc -accel kvm -cpu qemu64,-arch-capabilities -m {MEMORY}"
        " -nodefaults -display none -serial stdio -bios"
    ).split()
    drive = f"file={disk},format=raw,if=ide,snapshot=on"
    extra = ["-kernel", str(KERNEL)] if kernel else []
    return Machine([*command, FIRMWARE, "-drive", drive, *extra])


Maker = Callable[..., Machine]
Figures = tuple[float, ...]


def boot(make: Maker, disk: str) -> Figures:
    """Seconds to GRUB's prompt, seconds of CPU time for it, and KiB of peak memory then."""
    machine = make(disk, kernel=False)
    try:
        machine.expect(b"grub> ")
        return time.perf_counter() - machine.begin, machine.cpu_time(), machine.peak()
    finally:
        machine.close()


def work(make: Maker, disk: str) -> Figures:
    """Seconds for 1 MiB of console output, and for 8 MiB read from the disk."""
    machine = make(disk, kernel=True)
    try:
        machine.expect(b"> ")
        times = []
        for command in (f"spew {SPEW_KIB}", f"disk {DISK_KIB}"):
            begin = time.perf_counter()
            machine.send(command.encode() + b"\n")
            machine.expect(b"\n> ")
            times.append(time.perf_counter() - begin)
        return tuple(times)
    finally:
        machine.close()


def boots(disk: str, swapped: bool) -> list[Figures]:
    """Ours and QEMU's figures, taken at the same time."""
    cpus = sorted(os.sched_getaffinity(0))
    both = (cpus[-1], cpus[0]) if swapped else (cpus[0], cpus[-1])

    def on(cpu: int, make: Maker) -> Figures:
        os.sched_setaffinity(0, {cpu})  # of this thread, and of the process that it starts
        return boot(make, disk)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(on, both, (ours, qemu)))


def works(disk: str, swapped: bool) -> list[Figures]:
    """Ours and QEMU's figures, taken one after the other."""
    if swapped:
        return [work(make, disk) for make in (qemu, ours)][::-1]
    return [work(make, disk) for make in (ours, qemu)]


# What is printed, what measures it, which of its two figures, what that is divided by, the limit.
LINES = (
    ("time to GRUB's prompt, s", boots, 0, 1, 1.0),
    ("CPU time of it, s", boots, 1, 1, 1.0),
    ("peak resident memory there, MiB", boots, 2, 1024, 0.5),
    ("1 MiB of console output, s", works, 0, 1, 1.0),
    ("8 MiB read from the ATA disk, s", works, 1, 1, 1.0),
)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="status 1 if a limit is missed")
    options = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        disk = os.path.join(name, "disk.img")
        grub_disk.make(disk, {}, size=12 << 20)
        results: dict[Callable[[str, bool], list[Figures]], list[list[Figures]]]
        results = {boots: [], works: []}
        for round_ in range(options.rounds):
            for what, rounds in results.items():
                rounds.append(what(disk, bool(round_ % 2)))
    print(f"| {'work':<35} | {'kvmcpu':>8} | {'QEMU':>8} | {'ratio':>6} | {'limit':>5} |      |")
    print(f"| {'-' * 35} | {'-' * 7}: | {'-' * 7}: | {'-' * 5}: | {'-' * 4}: | ---- |")
    for text, what, which, scale, limit in LINES:
        mine = [r[0][which] for r in results[what]]
        theirs = [r[1][which] for r in results[what]]
        ratio = median(a / b for a, b in zip(mine, theirs, strict=True))
        missed += ratio > limit
        print(
            f"| {text:<35} | {median(mine) / scale:>8.2f} | {median(theirs) / scale:>8.2f} |"
            f" {ratio:>6.3f} | {limit:>5} | {'over' if ratio > limit else '':<4} |"
        )
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
