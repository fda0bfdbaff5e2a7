# SPDX-License-Identifier: MIT
"""Builds kvmcpu._kvm, the C extension; everything else about the package is in pyproject.toml.

Environment:
    KVMCPU_ARCH      build for this architecture (x86_64, arm64, riscv64), not for this machine's
    KVMCPU_WERROR=1  a compiler's warning is an error
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

STUB = "kvmcpu/_kvm.pyi"
GENDOCS = "csrc/python/gendocs.py"
GENERATED = "build/generated"
DOCS = f"{GENERATED}/docs.h"
ARCHITECTURES = {"amd64": "x86_64", "aarch64": "arm64"}  # machines that have another name in Linux


machine = platform.machine().lower()
arch = os.environ.get("KVMCPU_ARCH") or ARCHITECTURES.get(machine, machine)
arch_sources = sorted(glob(f"csrc/core/arch/{arch}.c") + glob(f"csrc/core/arch/{arch}_*.c"))


def extension() -> Extension:
    flags = ["-std=gnu17", "-D_GNU_SOURCE", "-O2", "-g", "-fvisibility=hidden", "-pthread"]
    flags += ["-Wall", "-Wextra"]
    # Two that Python's own way of writing callbacks and tables would set off everywhere.
    flags += ["-Wno-unused-parameter", "-Wno-missing-field-initializers"]
    if os.environ.get("KVMCPU_WERROR") == "1":
        flags.append("-Werror")
    return Extension(
        "kvmcpu._kvm",
        sources=[*sorted(glob("csrc/core/*.c")), *arch_sources, *sorted(glob("csrc/python/*.c"))],
        include_dirs=["csrc/core", "csrc/python", GENERATED],
        depends=[
            *sorted(glob("csrc/**/*.h", recursive=True)),
            *sorted(glob("csrc/**/*.inc", recursive=True)),
            STUB,
            GENDOCS,
        ],
        extra_compile_args=flags,
        extra_link_args=["-pthread"],
        libraries=["rt"],  # timer_create, where the C library is older than glibc 2.34
    )


class BuildExt(build_ext):
    """Makes the docstrings first, then compiles what changed, as many files at once as there
    are processors. Objects are kept under build/ also for an editable install, which would
    otherwise compile everything into a temporary directory each time."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = f"build/ext-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        if "t" in sys.abiflags:  # free-threaded
            self.build_temp += "t"

    def build_extension(self, ext: Extension) -> None:
        if not sys.platform.startswith("linux"):
            sys.exit(f"kvmcpu: KVM is a part of Linux, and this is {sys.platform}")
        if not arch_sources:
            known = ", ".join(sorted(Path(file).stem for file in glob("csrc/core/arch/*.c")))
            sys.exit(f"kvmcpu: there is no code for the architecture {arch}, only for {known}")
        subprocess.run([sys.executable, GENDOCS, STUB, DOCS], check=True)
        temp = Path(self.build_temp)
        temp.mkdir(parents=True, exist_ok=True)

        command = f"{self.compiler.compiler_so} {ext.extra_compile_args} {sys.version}"
        stamp = temp / "command"
        same = stamp.exists() and stamp.read_text() == command
        if not same:
            stamp.unlink(missing_ok=True)

        def compile_one(source: str) -> str:
            (obj,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
            deps = Path(obj).with_suffix(".d")
            if self.force or not same or outdated(Path(obj), deps):
                deps.unlink(missing_ok=True)
                self.compiler.compile(
                    [source],
                    output_dir=self.build_temp,
                    include_dirs=ext.include_dirs,
                    extra_postargs=[*ext.extra_compile_args, "-MD", "-MF", str(deps)],
                    depends=ext.depends,
                )
            return str(obj)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        stamp.write_text(command)
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)  # a source that is gone leaves no newer object
        self.compiler.link_shared_object(
            objects,
            str(target),
            libraries=self.get_libraries(ext),
            extra_postargs=ext.extra_link_args,
            build_temp=self.build_temp,
        )


def outdated(obj: Path, deps: Path) -> bool:
    """Whether an object is older than anything that its compiler read, or was never finished."""
    try:
        made = obj.stat().st_mtime_ns
        words = deps.read_text().replace("\\\n", " ").split()[1:]
        return any(os.stat(word).st_mtime_ns > made for word in words)
    except OSError:
        return True


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExt})
