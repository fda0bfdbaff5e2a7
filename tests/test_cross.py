# SPDX-License-Identifier: MIT
"""The core and the extension built for other architectures, as far as that can be seen here.

The headers are those of the Python that runs the tests, with its pyconfig.h standing in for the
other architecture's: all three are 64 bits wide and little-endian. What is built is not run, but
for this machine's own.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.outside(
    "compiling for another machine is the same there, and takes minutes"
)

TOP = Path(__file__).resolve().parent.parent
GNU = {"x86_64": "x86_64", "arm64": "aarch64", "riscv64": "riscv64"}
MACHINE = {"arm64": "AArch64", "riscv64": "RISC-V"}
HERE = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}{'t' if 't' in sys.abiflags else ''}"


def need_compiler(arch: str) -> None:
    gnu = f"{GNU[arch]}-linux-gnu"
    if not shutil.which(f"{gnu}-gcc"):
        pytest.skip(f"no cross compiler: install gcc-{gnu} and libc6-dev-{arch}-cross")


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("CC", "AR", "ARCH")}
    return subprocess.run(
        command,
        env=env | {"KVMCPU_WERROR": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def cross(arch: str, root: Path, *options: str | Path, **environment: str) -> str:
    script = TOP / "csrc/cross.py"
    result = run(*(sys.executable, script, "--arch", arch, "--root", root), *options, **environment)
    assert result.returncode == 0, result.stdout
    return result.stdout


def make_root(path: Path, arch: str) -> Path:
    """A directory with Python's headers where Debian's packages have them."""
    include = path / "usr/include"
    headers = include / f"python{PYTHON}"
    own = include / f"{GNU[arch]}-linux-gnu/python{PYTHON}"
    headers.mkdir(parents=True)
    own.mkdir(parents=True)
    for header in Path(sysconfig.get_path("include")).iterdir():
        if header.name != "pyconfig.h":
            (headers / header.name).symlink_to(header)
    config = Path(sysconfig.get_config_h_filename())
    # Debian's own Python has its per-architecture one, and in its usual place this same include.
    debian = Path(f"/usr/include/{GNU[HERE]}-linux-gnu/python{PYTHON}/pyconfig.h")
    shared = debian.exists() and config.samefile(f"/usr/include/python{PYTHON}/pyconfig.h")
    shutil.copy(debian if shared else config, own / "pyconfig.h")
    (headers / "pyconfig.h").write_text(
        f"#include <{GNU[arch]}-linux-gnu/python{PYTHON}/pyconfig.h>\n"
    )
    return path


@pytest.mark.parametrize("arch", ["arm64", "riscv64"])
def test_extension(arch: str, tmp_path: Path) -> None:
    need_compiler(arch)
    output = tmp_path / "made/_kvm.so"
    printed = cross(arch, make_root(tmp_path / "root", arch), "--output", output)
    assert printed == f"{output}\n"  # and no warning
    header = run("readelf", "-h", output).stdout
    assert MACHINE[arch] in header
    assert "DYN" in header
    needed = [line for line in run("readelf", "-d", output).stdout.splitlines() if "NEEDED" in line]
    # Of the C library, and nothing else that a small system would have to bring along.
    assert all("[libc.so" in line or "[ld-linux" in line for line in needed), needed


@pytest.mark.parametrize("arch", ["arm64", "riscv64"])
def test_core(arch: str) -> None:
    need_compiler(arch)
    result = run("make", "-s", "-C", TOP / "csrc", f"ARCH={arch}", MAKEFLAGS="")
    assert (result.returncode, result.stdout) == (0, "")
    library = TOP / f"build/core-{arch}/libkvmcpu_core.a"
    assert MACHINE[arch] in run("readelf", "-h", library).stdout


def test_what_is_built_for_this_machine_works(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", HERE)
    file = cross(HERE, root, "--python", PYTHON, CC="cc").strip()
    assert Path(file).name == f"_kvm{sysconfig.get_config_var('EXT_SUFFIX')}"
    code = (
        "import sys; from importlib import util\n"
        "spec = util.spec_from_file_location('kvmcpu._kvm', sys.argv[1])\n"
        "kvm = util.module_from_spec(spec); spec.loader.exec_module(kvm)\n"
        "queue = kvm.EventQueue(); queue.schedule(print, 5); queue.service(7); print(queue.now)\n"
    )
    result = run(sys.executable, "-c", code, file)
    assert result.stdout.split() == ["7"], result.stdout


def test_missing_headers(tmp_path: Path) -> None:
    result = run(sys.executable, TOP / "csrc/cross.py", "--arch", "arm64", "--root", tmp_path)
    assert result.returncode == 1
    assert "headers of 0 Pythons" in result.stdout
    result = run(
        *(sys.executable, TOP / "csrc/cross.py", "--arch", "riscv64", "--root", tmp_path),
        *("--python", "3.13"),
    )
    assert "unpack libpython3.13-dev of riscv64" in result.stdout
