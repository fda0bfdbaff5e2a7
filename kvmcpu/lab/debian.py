# SPDX-License-Identifier: MIT
"""Debian packages of any architecture, fetched with apt and unpacked into a directory.

apt gets lists, caches and a package database of its own: nothing of the machine's own apt changes,
and no privilege is needed. The mirror is that of the machine's own sources.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from glob import glob
from urllib.parse import unquote

from kvmcpu.lab.errors import LabError

Progress = Callable[[str, float], None]
"""Gets what is being done, and the percentage that is done of it."""

_SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list")
_DEB822 = "/etc/apt/sources.list.d/*.sources"
_LINE = re.compile(
    r"^deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<rest>.*)"
)


def codename() -> str:
    """The name of this machine's release, such as bookworm."""
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            found = re.search(r'^VERSION_CODENAME="?(\w+)', file.read(), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        raise LabError(
            "this is no Debian or Ubuntu: give a kernel with --kernel and --modules, a static"
            " busybox with --busybox and a root file system with --root"
        )
    return found[1]


def _own_sources() -> Iterator[tuple[str, str, str]]:
    """The URI, the suite and the keyring of each of the machine's sources that has "main"."""
    for pattern in _SOURCES:
        for path in sorted(glob(pattern)):
            with open(path, encoding="utf-8") as file:
                for line in map(_LINE.match, file):
                    if line and "main" in line["rest"].split():
                        key = re.search(r"signed-by=(\S+)", line["options"] or "")
                        yield line["uri"], line["suite"], key[1] if key else ""
    for path in sorted(glob(_DEB822)):
        with open(path, encoding="utf-8") as file:
            text = "".join(line for line in file if not line.startswith("#"))
        for stanza in re.split(r"\n\s*\n", text):
            fields = {
                name.lower(): value.split()
                for name, value in re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
            }
            if "main" not in fields.get("components", ()) or "deb" not in fields.get("types", ()):
                continue
            for uri in fields.get("uris", ()):
                for suite in fields.get("suites", ()):
                    yield uri, suite, next(iter(fields.get("signed-by", ())), "")


def sources(suite: str | None) -> str:
    """A sources.list for that release, None: this machine's own, from this machine's mirrors.

    The release alone, without its updates: those are younger, and mirrors at times half copied.
    """
    mine = codename()
    lines = []
    for uri, own, key in _own_sources():
        if own == mine:
            lines.append(f"deb {f'[signed-by={key}] ' if key else ''}{uri} {suite or mine} main\n")
    if not lines:
        raise LabError(f"apt's sources on this machine name no {mine} with its component main")
    return "".join(dict.fromkeys(lines))


class Apt:
    """apt for one architecture and release, with its state in a directory."""

    def __init__(
        self, directory: str, architecture: str, suite: str | None, progress: Progress
    ) -> None:
        for tool in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise LabError(f"{tool} is not there, which Debian's and Ubuntu's packages need")
        self._progress = progress
        self.archives = os.path.join(directory, "archives")
        for name in ("lists/partial", "archives/partial", "parts"):
            os.makedirs(os.path.join(directory, name), exist_ok=True)
        sources_list = os.path.join(directory, "sources.list")
        with open(sources_list, "w", encoding="utf-8") as file:
            file.write(sources(suite))
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Get::Assume-Yes": "true",
            "APT::Get::Download-Only": "true",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "APT::Update::Post-Invoke": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Dir::State": directory,
            "Dir::State::Lists": os.path.join(directory, "lists"),
            "Dir::State::Status": os.devnull,
            "Dir::Cache": directory,
            "Dir::Cache::Archives": self.archives,
            "Dir::Etc::SourceList": sources_list,
            "Dir::Etc::SourceParts": os.path.join(directory, "parts"),
            "Dir::Etc::Preferences": os.devnull,
            "Dir::Etc::PreferencesParts": os.path.join(directory, "parts"),
        }
        self._config = os.path.join(directory, "apt.conf")
        with open(self._config, "w", encoding="utf-8") as file:
            file.writelines(f'{name} "{value}";\n' for name, value in settings.items())
            # A list that the machine's own configuration fills is emptied like this only.
            file.write("#clear APT::Update::Post-Invoke;\n#clear DPkg::Post-Invoke;\n")

    def _run(self, what: str, *command: str) -> str:
        """apt, with its progress handed on; returns what it printed."""
        reading, writing = os.pipe()
        # APT_CONFIG would be read before the machine's own configuration, -c is read after it.
        words = [command[0], "-c", self._config, "-q", "-o", f"APT::Status-Fd={writing}"]
        try:
            process = subprocess.Popen(
                [*words, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[writing],
                cwd=self.archives,
                env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
                text=True,
            )
        finally:
            os.close(writing)
        try:
            with open(reading, encoding="utf-8", errors="replace") as status:
                for line in status:
                    fields = line.split(":")
                    if len(fields) > 2 and fields[0] in ("dlstatus", "pmstatus"):
                        self._progress(f"fetching {what}", float(fields[2]))
            output, _ = process.communicate()
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode:
            errors = [line for line in output.splitlines() if line.startswith(("E:", "Err:"))]
            raise LabError(f"{' '.join(command)}: {'; '.join(errors[:3]) or output[-300:]}")
        self._progress(f"fetching {what}", 100)
        return output

    def update(self) -> None:
        """Fetch the lists of packages."""
        self._run("package lists", "apt-get", "update")

    def newest(self, package: str) -> str:
        """What a package that only names another one depends on."""
        text = self._run(package, "apt-cache", "depends", package)
        found = re.search(r"^\s*Depends: ([\w.+-]+)", text, re.MULTILINE)
        if found is None:
            raise LabError(f"the package {package} names no other one")
        return found[1]

    def download(self, *packages: str) -> list[str]:
        """Fetch these packages alone; returns the files."""
        before = set(os.listdir(self.archives))
        self._run(", ".join(packages), "apt-get", "download", *packages)
        return self._files(before, packages)

    def download_all(self, what: str, packages: Sequence[str]) -> list[str]:
        """Fetch these packages with all that they depend on; returns the files."""
        before = set(os.listdir(self.archives))
        self._run(what, "apt-get", "install", *packages)
        return self._files(before, packages)

    def _files(self, before: set[str], packages: Sequence[str]) -> list[str]:
        files = [n for n in os.listdir(self.archives) if n.endswith(".deb") and n not in before]
        if not files:
            raise LabError(f"apt-get fetched none of {', '.join(packages)}")
        return sorted(os.path.join(self.archives, name) for name in files)


def name(file: str) -> str:
    """What a package's file says of it: its name, version and architecture."""
    return unquote(os.path.basename(file).removesuffix(".deb"))


def unpack(file: str, directory: str) -> None:
    """Unpack a package's files; links that stand for directories are kept (usrmerge)."""
    os.makedirs(directory, exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE) as package:
        tar = ["tar", "-x", "-C", directory, "--keep-directory-symlink", "--no-same-owner", "-f-"]
        done = subprocess.run(tar, stdin=package.stdout, capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"unpacking {os.path.basename(file)}: {done.stderr.strip()[-300:]}")
    if package.returncode:
        raise LabError(f"{os.path.basename(file)} is not a Debian package")
