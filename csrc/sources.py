# SPDX-License-Identifier: MIT
"""What the extension is compiled from and how: for setup.py, and for cross.py. Without setuptools.

Paths are relative to the top of the checkout.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from glob import glob
from pathlib import Path

STUB = "kvmcpu/_kvm.pyi"
GENDOCS = "csrc/python/gendocs.py"
GENERATED = "build/generated"
INCLUDE_DIRS = ["csrc/core", "csrc/python", GENERATED]
LINK_FLAGS = ["-pthread"]
LIBRARIES = ["rt"]  # timer_create, where the C library is older than glibc 2.34
ARCHITECTURES = ("x86_64", "arm64", "riscv64")
MACHINES = {"amd64": "x86_64", "aarch64": "arm64"}  # machines that have another name in Linux


def this_architecture() -> str:
    machine = platform.machine().lower()
    return MACHINES.get(machine, machine)


def sources(arch: str) -> list[str]:
    """The C files, in the order of linking."""
    own = sorted(glob(f"csrc/core/arch/{arch}.c") + glob(f"csrc/core/arch/{arch}_*.c"))
    return [*sorted(glob("csrc/core/*.c")), *own, *sorted(glob("csrc/python/*.c"))]


def compile_flags() -> list[str]:
    flags = ["-std=gnu17", "-D_GNU_SOURCE", "-O2", "-g", "-fvisibility=hidden", "-pthread"]
    flags += ["-Wall", "-Wextra"]
    # Two that Python's own way of writing callbacks and tables would set off everywhere.
    flags += ["-Wno-unused-parameter", "-Wno-missing-field-initializers"]
    if os.environ.get("KVMCPU_WERROR") == "1":
        flags.append("-Werror")
    return flags


def make_docs() -> None:
    subprocess.run([sys.executable, GENDOCS, STUB, f"{GENERATED}/docs.h"], check=True)


def outdated(obj: Path, deps: Path) -> bool:
    """Whether an object is older than anything that its compiler read, or was never finished."""
    try:
        made = obj.stat().st_mtime_ns
        words = deps.read_text().replace("\\\n", " ").split()[1:]
        return any(os.stat(word).st_mtime_ns > made for word in words)
    except OSError:
        return True
