# SPDX-License-Identifier: MIT
"""Build the extension for another architecture's Python, without having that Python run.

    python csrc/cross.py --arch arm64 --root DIR [--python 3.11] [--output FILE.so]

DIR holds Debian's packages of that architecture, unpacked (dpkg -x): of libpython3.11-dev its
headers, in usr/include/python3.11 and usr/include/aarch64-linux-gnu/python3.11; the C library's
come with the cross compiler. The default Python is the one whose headers DIR has, the default FILE
is in build/ and has the name that this Python looks for. FILE's path is printed. Run again, it
compiles what changed.

Environment:
    CC               the compiler, with options if need be; Debian's cross compiler by default
    KVMCPU_WERROR=1  a compiler's warning is an error
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sources import (
    ARCHITECTURES,
    INCLUDE_DIRS,
    LIBRARIES,
    LINK_FLAGS,
    compile_flags,
    make_docs,
    outdated,
    sources,
)

TOP = Path(__file__).resolve().parent.parent
GNU = {"x86_64": "x86_64", "arm64": "aarch64", "riscv64": "riscv64"}  # in the names of the tools


def fail(why: str) -> None:
    sys.exit(f"cross.py: {why}")


def headers(root: Path, arch: str, python: str | None) -> tuple[str, list[str]]:
    """The version of Python whose headers the root has, and the flags that find them."""
    include = root / "usr/include"
    found = sorted(path.parent.name[6:] for path in include.glob("python3.*/Python.h"))
    if python is None and len(found) != 1:
        fail(f"{include} has headers of {len(found)} Pythons: name one with --python")
    python = python or found[0]
    own = include / f"{GNU[arch]}-linux-gnu/python{python}/pyconfig.h"
    for file in (include / f"python{python}/Python.h", own):
        if not file.exists():
            fail(f"no {file}: unpack libpython{python}-dev of {arch} there")
    # Behind the compiler's own: the C library's headers may be there too, of another version.
    return python, ["-isystem", f"{include}/python{python}", "-idirafter", str(include)]


def compiler(arch: str) -> list[str]:
    command = shlex.split(os.environ.get("CC", "")) or [f"{GNU[arch]}-linux-gnu-gcc"]
    if not shutil.which(command[0]):
        fail(f"no {command[0]}: install gcc-{GNU[arch]}-linux-gnu, or name a compiler with CC")
    return command


def build(arch: str, root: Path, python: str | None, output: Path | None) -> Path:
    python, include = headers(root, arch, python)
    tag = f"cpython-{python.replace('.', '')}-{GNU[arch]}-linux-gnu"
    temp = Path(f"build/cross-{tag}")
    output = output or TOP / temp / f"_kvm.{tag}.so"
    cc = compiler(arch)
    flags = [*compile_flags(), "-fPIC", *(f"-I{path}" for path in INCLUDE_DIRS), *include]
    os.chdir(TOP)
    make_docs()
    temp.mkdir(parents=True, exist_ok=True)
    command = shlex.join([*cc, *flags])
    stamp = temp / "command"
    same = stamp.exists() and stamp.read_text() == command
    if not same:
        stamp.unlink(missing_ok=True)

    def compile_one(source: str) -> Path:
        obj = temp / source.replace(".c", ".o")
        deps = obj.with_suffix(".d")
        if not same or outdated(obj, deps):
            obj.parent.mkdir(parents=True, exist_ok=True)
            deps.unlink(missing_ok=True)
            subprocess.run(
                [*cc, *flags, "-MD", "-MF", str(deps), "-c", "-o", str(obj), source], check=True
            )
        return obj

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, sources(arch)))
    stamp.write_text(command)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    link = [*cc, "-shared", *LINK_FLAGS, *map(str, objects), *(f"-l{name}" for name in LIBRARIES)]
    subprocess.run([*link, "-o", str(output)], check=True)
    return output


def version(text: str) -> str:
    if not re.fullmatch(r"3\.\d+t?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no version like 3.11")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="cross.py", description="Build the extension for another architecture's Python."
    )
    parser.add_argument("--arch", required=True, choices=ARCHITECTURES)
    parser.add_argument(
        "--root", required=True, type=Path, help="where libpython3.X-dev of that arch is unpacked"
    )
    parser.add_argument("--python", type=version, help="such as 3.11; default: the root's")
    parser.add_argument("--output", type=Path, help="the file to make; default: in build/")
    args = parser.parse_args()
    output = args.output and args.output.absolute()
    try:
        print(build(args.arch, args.root.absolute(), args.python, output))
    except subprocess.CalledProcessError as error:
        fail(f"{error.cmd[0]} failed with status {error.returncode}")


if __name__ == "__main__":
    main()
