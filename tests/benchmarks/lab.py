# SPDX-License-Identifier: MIT
"""How long a lab takes to the first line of a command in it, beside the bare recipe.

    python tests/benchmarks/lab.py [--arch A …] [--rounds N] [--check]

The bare recipe is QEMU with the same machine, the kernel as the distribution ships it, and an
initial file system with a static busybox that loads KVM's modules and prints a line. Both run by
turns; the ratio is the median of the rounds' ratios. What the lab needs is prepared before.
Debian packages: what `tools/install-packages lab` installs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from glob import glob
from pathlib import Path
from statistics import median

from kvmcpu.lab import debian, initramfs
from kvmcpu.lab.targets import TARGETS, Target

LINE = b"the first line"
LIMIT = 1.3
INIT = f"""\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in @MODULES@; do /bin/busybox insmod "/modules/$module.ko"; done
[ -e /dev/kvm ] && echo {LINE.decode()}
/bin/busybox poweroff -f
"""


def recipe(target: Target, directory: str) -> list[str]:
    """The bare recipe's command, with its files made in a directory."""
    apt = debian.Apt(os.path.join(directory, "apt"), target.debian, target.suite, lambda *_: None)
    apt.update()
    files = os.path.join(directory, "files")
    for file in apt.download(apt.newest(target.kernel), "busybox-static"):
        debian.unpack(file, files)
    (kernel,) = glob(f"{files}/boot/vmlinu*")
    busybox = next(iter(glob(f"{files}/bin/busybox") + glob(f"{files}/usr/bin/busybox")))
    (modules,) = glob(f"{files}/lib/modules/*") or glob(f"{files}/usr/lib/modules/*")
    found = list(initramfs.find_modules(modules, target.modules))
    archive = Path(directory, "initramfs")
    archive.write_bytes(initramfs.archive(Path(busybox).read_bytes(), found, INIT))
    # Without the options by which a lab makes the kernel quicker.
    console = target.append.split()[0]
    command = [target.qemu, *target.machine, "-accel", "tcg", "-m", "1024M", "-nographic"]
    command += ["-no-reboot", "-kernel", kernel, "-initrd", str(archive)]
    return [*command, "-append", f"{console} quiet panic=-1"]


def first_line(command: list[str]) -> float:
    """Seconds to the line, from the command's start."""
    begin = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if LINE in line:
                passed = time.perf_counter() - begin
                process.stdout.read()
                return passed
    raise RuntimeError(f"{command[0]} ended without the line")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", action="append", choices=tuple(TARGETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="status 1 if a limit is missed")
    options = parser.parse_args()
    missed = 0
    print(f"| {'to the first line, s':<20} | {'lab':>6} | {'recipe':>6} | {'ratio':>5} | limit |")
    print(f"| {'-' * 20} | {'-' * 5}: | {'-' * 5}: | {'-' * 4}: | ----: |")
    for arch in options.arch or TARGETS:
        lab = [sys.executable, "-m", "kvmcpu", "lab"]
        subprocess.run([*lab, "prepare", "--arch", arch], check=True, stdout=sys.stderr)
        lab += ["run", "--arch", arch, "--", "echo", LINE.decode()]
        with tempfile.TemporaryDirectory() as directory:
            bare = recipe(TARGETS[arch], directory)
            times: dict[str, list[float]] = {"lab": [], "bare": []}
            for round_ in range(options.rounds):
                both = (("lab", lab), ("bare", bare))
                for name, command in both if round_ % 2 else both[::-1]:
                    times[name].append(first_line(command))
        ratio = median(a / b for a, b in zip(times["lab"], times["bare"], strict=True))
        missed += ratio > LIMIT
        print(
            f"| {arch:<20} | {median(times['lab']):>6.2f} | {median(times['bare']):>6.2f} |"
            f" {ratio:>5.2f} | {LIMIT:>5} |",
            flush=True,
        )
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    raise SystemExit(main())
