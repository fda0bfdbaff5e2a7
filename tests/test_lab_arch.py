# SPDX-License-Identifier: MIT
"""Labs of other architectures: a KVM, a Python, and this package built for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvmcpu.lab.targets import TARGETS, host

pytestmark = pytest.mark.lab

TOP = Path(__file__).resolve().parent.parent
OTHERS = [name for name in TARGETS if name not in (host(), "x86_64")]

SCRIPT = """
import os, platform
import kvmcpu

with kvmcpu.Kvm() as kvm, kvm.create_vm() as vm:
    ram = vm.add_memory(0x80000000, "1MiB")
    ram[:4] = b"able"
    vm.queue.schedule(lambda: None, delay="1us")
    vm.queue.service(10**7)
    try:
        vm.create_vcpu()
    except kvmcpu.UnsupportedError as error:
        print(error)
    print(kvm.arch, kvm.backend, bytes(vm.read(0x80000000, 4)), platform.machine())
open("written", "w").write(os.getcwd())
"""


@pytest.mark.parametrize("arch", OTHERS)
def test_other_architecture(tmp_path: Path, arch: str) -> None:
    """VM, memory and queue work on that KVM, info tells what it offers, a vCPU is not there yet."""
    target = TARGETS[arch]
    for tool, package in (
        (target.qemu, target.qemu_package),
        (f"{target.triplet}-gcc", f"gcc-{target.triplet}"),
    ):
        if shutil.which(tool) is None:
            pytest.skip(f"{package} is not installed: tools/install-packages lab {arch}")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kvmcpu",
            "lab",
            "run",
            "--arch",
            arch,
            "--timeout",
            "240",
            "--",
            "sh",
            "-c",
            "python3 script.py && kvmcpu info; python3 -m pytest --version",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    lines = done.stdout.splitlines()
    assert f"no vCPU of {arch} yet" in lines[0], done.stderr
    machine = target.triplet.partition("-")[0]
    assert lines[1] == f"{arch} {arch} b'able' {machine}"
    assert f"backend       {arch}: " in done.stdout
    assert "ONE_REG" in done.stdout
    assert done.returncode == 0
    assert (tmp_path / "written").read_text() == str(tmp_path)


@pytest.mark.parametrize("arch", OTHERS[:1])
def test_tests_of_the_checkout(arch: str) -> None:
    """The checkout's tests run there, with the extension of that architecture over its own."""
    target = TARGETS[arch]
    if shutil.which(target.qemu) is None or shutil.which(f"{target.triplet}-gcc") is None:
        pytest.skip(f"{target.qemu_package} or gcc-{target.triplet} is not installed")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--lab={arch}",
            "tests/test_queue.py",
            "tests/test_enums.py",
        ],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert f"{arch} lab, KVM of Linux" in done.stdout
    assert f"needs a KVM of x86_64; this is the {arch} lab" in done.stdout
