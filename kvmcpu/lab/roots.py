# SPDX-License-Identifier: MIT
"""Root file systems for labs of another architecture than this machine's: Debian's Python with
what the tests use, and this package, its extension cross-compiled for that Python.

The package's maintainers' scripts are not run, as they are that architecture's; what they would do
that matters here is done by hand.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata

import kvmcpu
from kvmcpu.lab import debian, images
from kvmcpu.lab.errors import LabError
from kvmcpu.lab.targets import Target

PYTHON = "usr/lib/python3/dist-packages"
_PACKAGES = (
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "diffutils", "findutils"),
    *("grep", "gzip", "hostname", "libc-bin", "mount", "procps", "sed", "tar", "util-linux"),
    *("python3", "python3-pytest", "python3-hypothesis", "python3-pyelftools"),
    *("python3-tomli-w", "python3-numpy", "linux-libc-dev"),
)
# What is compiled once, which an emulated processor would take half a minute for at each start.
_IMPORTED = (
    *("pytest", "hypothesis", "numpy", "elftools.elf.elffile", "tomli_w", "asyncio", "ctypes"),
    *("concurrent.futures", "doctest", "http.client", "multiprocessing", "pdb", "unittest.mock"),
    *("_pytest.junitxml", "_pytest.pytester", "tomllib", "wave", "zipfile"),
)
_SHELL = "bin/sh"
_ALTERNATIVES = ("blas/libblas.so.3", "lapack/liblapack.so.3")  # of numpy's libraries
_MERGED = ("bin", "lib", "lib64", "sbin")  # directories that are links into usr
_KEPT = 4  # states of the package that are kept
_HERE = os.path.dirname(os.path.abspath(kvmcpu.__file__))


RunThere = Callable[[str, str, str], None]
"""Runs a shell's script in a lab: gets the root file system, the working directory, the script."""


def root(target: Target, progress: images.Progress, run_there: RunThere) -> str:
    """The root file system's directory. Raises LabError."""
    suite = target.suite or debian.codename()

    def make(new: str) -> None:
        apt = debian.Apt(os.path.join(new, "apt"), target.debian, suite, progress)
        apt.update()
        files = apt.download_all(f"Python for {target.name}", _PACKAGES)
        system = os.path.join(new, "root")
        _unpack(files, system, os.path.join("usr/lib", target.triplet))
        progress(f"compiling Python's modules for {target.name}", 0)
        _compile(system, os.path.join(new, "compiled"), run_there)
        progress(f"compiling Python's modules for {target.name}", 100)
        version = _version(system)
        headers = os.path.join(new, "headers")
        (development,) = apt.download(f"libpython{version}-dev")
        debian.unpack(development, headers)
        with open(os.path.join(new, "contents"), "w", encoding="utf-8") as file:
            file.write(f"Debian {suite}\nPython {version}\n")
            file.writelines(f"{debian.name(file_)}\n" for file_ in files)
        shutil.rmtree(os.path.join(new, "apt"))

    key = images.key(target.debian, suite, _PACKAGES)
    return os.path.join(images.made(f"root-{target.name}-{key}", make, keep=1), "root")


def _compile(system: str, directory: str, run_there: RunThere) -> None:
    """Let its own Python compile the modules that are imported again and again."""
    os.mkdir(directory)
    imports = "; ".join(f"import {name}" for name in _IMPORTED)
    run_there(system, directory, f"PYTHONPYCACHEPREFIX=$PWD python3 -c '{imports}'")
    for folder, _, names in os.walk(directory):
        cached = os.path.join(system, os.path.relpath(folder, directory), "__pycache__")
        for name in names:
            os.makedirs(cached, exist_ok=True)
            shutil.move(os.path.join(folder, name), cached)
    shutil.rmtree(directory)


def _unpack(files: list[str], system: str, libraries: str) -> None:
    for name in _MERGED:
        os.makedirs(os.path.join(system, "usr", name))
        os.symlink(f"usr/{name}", os.path.join(system, name))
    for file in files:
        debian.unpack(file, system)
    for name in ("passwd", "group"):
        master = os.path.join(system, "usr/share/base-passwd", f"{name}.master")
        shutil.copy(master, os.path.join(system, "etc", name))
    if not os.path.exists(os.path.join(system, _SHELL)):
        os.symlink("dash", os.path.join(system, _SHELL))
    for name in _ALTERNATIVES:
        link = os.path.join(system, libraries, os.path.basename(name))
        if os.path.exists(os.path.join(system, libraries, name)):
            os.symlink(name, link)
    for name in ("dev", "proc", "root", "run", "sys", "tmp"):
        os.makedirs(os.path.join(system, name), exist_ok=True)
    os.chmod(os.path.join(system, "tmp"), 0o1777)
    for name in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(os.path.join(system, name), ignore_errors=True)


def _version(system: str) -> str:
    target = os.readlink(os.path.join(system, "usr/bin/python3"))
    found = re.fullmatch(r"python(3\.\d+)", target)
    if found is None:
        raise LabError(f"the Python of that root file system is called {target}")
    return found[1]


def _sources() -> str:
    """The directory of the extension's sources: in a checkout, or in an installed package."""
    for path in (os.path.join(_HERE, "_source"), os.path.join(os.path.dirname(_HERE), "csrc")):
        if os.path.exists(os.path.join(path, "cross.py")):
            return path
    raise LabError("the extension's sources are not here: install kvmcpu anew, or use its checkout")


def _files(directory: str, *endings: str) -> Iterator[str]:
    """The files below a directory that have one of these endings, by their paths in it."""
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if name not in ("__pycache__", "_source")]
        for name in names:
            if name.endswith(endings):
                yield os.path.relpath(os.path.join(folder, name), directory)


def _digest(directory: str, names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(names):
        with open(os.path.join(directory, name), "rb") as file:
            data = file.read()
        digest.update(f"{name} {len(data)} ".encode() + data)
    return digest.hexdigest()


def _extension(target: Target, base: str) -> str:
    """The extension's file, cross-compiled if these sources have not been."""
    source = _sources()
    names = list(_files(source, ".c", ".h", ".py"))
    stub = os.path.join(_HERE, "_kvm.pyi")
    version = _version(base)
    name = f"_kvm.cpython-{version.replace('.', '')}-{target.triplet}.so"

    def make(new: str) -> None:
        # The build takes a checkout, and leaves its objects there.
        with tempfile.TemporaryDirectory() as top:
            ignore = shutil.ignore_patterns("build", "__pycache__")
            shutil.copytree(source, os.path.join(top, "csrc"), ignore=ignore)
            os.mkdir(os.path.join(top, "kvmcpu"))
            shutil.copy(stub, os.path.join(top, "kvmcpu"))
            command = [sys.executable, os.path.join(top, "csrc/cross.py"), "--arch", target.name]
            command += [
                "--root",
                os.path.join(os.path.dirname(base), "headers"),
                "--python",
                version,
            ]
            command += ["--output", os.path.join(new, name)]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr or done.stdout).strip()
            hint = "" if shutil.which(f"{target.triplet}-gcc") else (
                f"; apt-get install gcc-{target.triplet} libc6-dev-{target.debian}-cross"
            )  # fmt: skip
            raise LabError(f"the extension cannot be built for {target.name}: {why}{hint}")
        with open(os.path.join(new, "contents"), "w", encoding="utf-8") as file:
            file.write(f"the extension for {target.name}\n")

    digest = _digest(source, names) + _digest(_HERE, ["_kvm.pyi"])
    key = images.key(digest, os.path.basename(os.path.dirname(base)), version)
    return os.path.join(images.made(f"extension-{target.name}-{key}", make, keep=_KEPT), name)


def package(target: Target, base: str) -> str:
    """A directory that goes over the root: this package for that architecture. Raises LabError."""
    extension = _extension(target, base)
    names = list(_files(_HERE, ".py", ".pyi", "py.typed"))

    def make(new: str) -> None:
        modules = os.path.join(new, PYTHON, "kvmcpu")
        for name in names:
            copy = os.path.join(modules, name)
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            shutil.copy(os.path.join(_HERE, name), copy)
        shutil.copy(extension, modules)
        _describe(os.path.join(new, PYTHON))
        os.makedirs(os.path.join(new, "usr/bin"))
        script = os.path.join(new, "usr/bin/kvmcpu")
        with open(script, "w", encoding="utf-8") as file:
            file.write(
                "#!/usr/bin/python3\nimport sys\nfrom kvmcpu.cli import main\nsys.exit(main())\n"
            )
        os.chmod(script, 0o755)
        with open(os.path.join(new, "contents"), "w", encoding="utf-8") as file:
            file.write(f"kvmcpu {kvmcpu.__version__} for {target.name}\n")

    key = images.key(_digest(_HERE, names), os.path.basename(os.path.dirname(extension)))
    return images.made(f"package-{target.name}-{key}", make, keep=_KEPT)


def _describe(directory: str) -> None:
    """The package's metadata, by which pytest finds the plugin."""
    own = os.path.join(directory, f"kvmcpu-{kvmcpu.__version__}.dist-info")
    os.makedirs(own)
    with open(os.path.join(own, "METADATA"), "w", encoding="utf-8") as file:
        file.write(f"Metadata-Version: 2.1\nName: kvmcpu\nVersion: {kvmcpu.__version__}\n")
    try:
        entries = metadata.distribution("kvmcpu").read_text("entry_points.txt")
    except metadata.PackageNotFoundError:
        entries = None
    with open(os.path.join(own, "entry_points.txt"), "w", encoding="utf-8") as file:
        file.write(entries or "")
