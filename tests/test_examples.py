# SPDX-License-Identifier: MIT
"""The examples do what they say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples, built with their Makefile."""
    directory = tmp_path_factory.mktemp("examples")
    ignore = shutil.ignore_patterns("*.o", "*.elf")
    shutil.copytree(EXAMPLES, directory, dirs_exist_ok=True, ignore=ignore)
    subprocess.run(["make", "-s", "-C", directory], check=True)
    return directory


def kvmcpu(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvmcpu", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.kvm(arch="x86_64")
def test_hello(built: Path) -> None:
    done = kvmcpu("run", built / "hello.elf")
    assert done.stdout == "Hello from a real virtual CPU!\n"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.kvm(arch="x86_64")
def test_hello_with_arguments_and_statistics(built: Path) -> None:
    done = kvmcpu("run", "--stats", "-", built / "hello.elf", "--", "one", "--two")
    hello, arguments, *stats = done.stdout.splitlines()
    assert hello == "Hello from a real virtual CPU!"
    assert arguments == "My arguments: one --two"
    assert any(line.split()[0].endswith("numVMExits") for line in stats if line)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.kvm(arch="x86_64")
def test_poke() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "poke.py"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "port 0x3f8 got [0, 1, 2, 3, 4], address 0xf000 got [0, 1, 2, 3, 4]" in done.stdout
    assert "UnassignedAccessError" in done.stdout


@pytest.mark.kvm(arch="x86_64")
def test_pc(built: Path) -> None:
    """The configuration script: a kernel's shell answers."""
    done = subprocess.run(
        [sys.executable, built / "pc.py"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "command line: kernel.elf first second" in done.stdout
    assert "exit 0" in done.stdout


@pytest.mark.kvm(arch="x86_64")
def test_two_cpus(built: Path) -> None:
    done = kvmcpu("run", "--cpus", "2", "--timeout", "30", built / "two_cpus.elf")
    assert done.stdout.endswith("a ping was answered\n")
    assert (done.returncode, done.stderr) == (0, "")
