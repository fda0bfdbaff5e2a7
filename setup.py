# SPDX-License-Identifier: MIT
"""Builds kvmcpu._kvm, the C extension; everything else about the package is in pyproject.toml.

Environment:
    KVMCPU_ARCH      build for this architecture (x86_64, arm64, riscv64), not for the machine's
    KVMCPU_WERROR=1  a compiler's warning is an error

For another architecture's Python on this machine there is csrc/cross.py.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, "csrc")
import sources

arch = os.environ.get("KVMCPU_ARCH") or sources.this_architecture()


def extension() -> Extension:
    return Extension(
        "kvmcpu._kvm",
        sources=sources.sources(arch),
        include_dirs=sources.INCLUDE_DIRS,
        depends=[
            *sorted(glob("csrc/**/*.h", recursive=True)),
            sources.STUB,
            sources.GENDOCS,
        ],
        extra_compile_args=sources.compile_flags(),
        extra_link_args=sources.LINK_FLAGS,
        libraries=sources.LIBRARIES,
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
        if arch not in sources.ARCHITECTURES:
            known = ", ".join(sources.ARCHITECTURES)
            sys.exit(f"kvmcpu: there is no code for the architecture {arch}, only for {known}")
        sources.make_docs()
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
            if self.force or not same or sources.outdated(Path(obj), deps):
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


class BuildPy(build_py):
    """Takes the C sources along into what is installed: labs of another architecture compile them
    (kvmcpu/lab/roots.py)."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "kvmcpu/_source"
            shutil.rmtree(target, ignore_errors=True)
            ignore = shutil.ignore_patterns("__pycache__", "build*")
            shutil.copytree("csrc", target, ignore=ignore)


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExt, "build_py": BuildPy})
