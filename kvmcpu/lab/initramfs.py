# SPDX-License-Identifier: MIT
"""A lab's first file system: busybox, the kernel's modules, and the script that mounts the root.

The format is Linux's "newc" cpio archive (Documentation/driver-api/early-userspace/buffer-format).
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterable, Iterator

from kvmcpu.lab.errors import LabError

_SIGNED = b"~Module signature appended~\n"
INIT = """\
#!/bin/busybox sh
# The kernel starts this. It mounts the root that the host shares, read-only under a file system in
# memory, and goes on there with what the host sends.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for module in @MODULES@; do
	$b insmod "/modules/$module.ko" || echo "lab: no module $module"
done
share() { $b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro "$1" "$2"; }
share root /lower/root || { echo "lab: the root cannot be mounted"; $b poweroff -f; }
lower=/lower/root
if $b grep -qs package /sys/bus/virtio/devices/*/mount_tag && share package /lower/package; then
	lower=/lower/package:$lower
fi
$b mount -t tmpfs -o mode=755 upper /upper
$b mkdir /upper/files /upper/work
$b mount -t overlay -o "lowerdir=$lower,upperdir=/upper/files,workdir=/upper/work" overlay /root ||
	{ echo "lab: no overlay"; $b poweroff -f; }
for directory in dev proc sys run; do $b mkdir -p "/root/$directory"; done
for directory in dev proc sys; do $b mount -o move "/$directory" "/root/$directory"; done
$b mount -t tmpfs -o mode=755 run /root/run
$b mkdir /root/run/lab
$b cp /bin/busybox /root/run/lab/busybox
until [ -e /root/dev/vport0p4 ] && [ -e /root/dev/vport0p5 ]; do $b usleep 5000; done
exec /bin/busybox switch_root /root /run/lab/busybox sh -c '
	/run/lab/busybox cat /dev/vport0p5 >/run/lab/start
	exec /run/lab/busybox sh /run/lab/start'
"""


def _entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    raw = name.encode() + b"\0"
    #         ino mode uid gid links mtime size         device of it, of the special file
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    head += bytes(-len(head) % 4)
    return head + data + bytes(-len(data) % 4)


def archive(busybox: bytes, modules: Iterable[tuple[str, bytes]], script: str = INIT) -> bytes:
    """The archive's bytes. modules: names and contents, in the order of loading."""
    directories = ("bin", "dev", "lower", "lower/root", "lower/package", "modules", "proc", "root")
    parts = [_entry(name, stat.S_IFDIR | 0o755) for name in (*directories, "sys", "upper")]
    parts.append(_entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    parts.append(_entry("bin/busybox", stat.S_IFREG | 0o755, busybox))
    names = []
    for name, data in modules:
        names.append(name)
        parts.append(_entry(f"modules/{name}.ko", stat.S_IFREG | 0o644, data))
    init = script.replace("@MODULES@", " ".join(names)).encode()
    parts.append(_entry("init", stat.S_IFREG | 0o755, init))
    return b"".join([*parts, _entry("TRAILER!!!", 0)])


def _unsigned(module: bytes) -> bytes:
    """Without the signature, which an emulated processor would take long to verify.

    The kernel's struct module_signature lies before a mark (include/linux/module_signature.h).
    """
    if not module.endswith(_SIGNED):
        return module
    end = len(module) - len(_SIGNED) - 12
    _algo, _hash, _kind, signer, key, size = struct.unpack_from(">5B3xI", module, end)
    return module[: end - signer - key - size]


def decompress(path: str) -> bytes:
    """A module's bytes, however the distribution compressed it, without a signature."""
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".xz"):
        data = lzma.decompress(data)
    elif path.endswith(".zst"):
        data = zstd(data)
    return _unsigned(data)


def zstd(data: bytes) -> bytes:
    """What a zstd frame holds. Raises LabError."""
    if shutil.which("zstd") is None:
        raise LabError("zstd is not there: apt-get install zstd")
    done = subprocess.run(["zstd", "-dcq"], input=data, capture_output=True)
    if not done.stdout:
        raise LabError(f"zstd: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _needs(module: bytes) -> list[str]:
    """The modules that a module names in its .modinfo."""
    at = module.find(b"\0depends=")
    if at < 0:
        return []
    text = module[at + 9 : module.index(b"\0", at + 9)].decode()
    return [_plain(name) for name in text.split(",") if name]


def _plain(name: str) -> str:
    return name.replace("-", "_")


def find_modules(directory: str, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """These modules and what they need, in the order of loading; what is built in is left out."""
    where = {}
    for folder, _, files in os.walk(directory):
        for file in files:
            stem, dot, ending = file.partition(".ko")
            if dot and ending in ("", ".xz", ".zst"):
                where[_plain(stem)] = os.path.join(folder, file)
    done: set[str] = set()

    def load(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done or name not in where:
            return
        done.add(name)
        data = decompress(where[name])
        for need in _needs(data):
            yield from load(need)
        yield name, data

    for name in names:
        yield from load(_plain(name))
