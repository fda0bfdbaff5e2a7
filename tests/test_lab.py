# SPDX-License-Identifier: MIT
"""The lab: a command in it is as one here, whatever it does; and nothing is left of it."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmcpu import lab
from kvmcpu.lab import images
from kvmcpu.lab.targets import host

pytestmark = pytest.mark.lab

TOP = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "kvmcpu", "lab"]
NOBODY = 65534
# The interpreter may lie where others may not go, so it starts as root and then is nobody.
AS_NOBODY = f"""
import os, sys
from kvmcpu import cli
from kvmcpu.lab import command
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
sys.exit(cli.main(["lab", "run", *sys.argv[1:]]))
"""


def run(
    *words: str, options: tuple[str, ...] = (), stdin: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """``kvmcpu lab run OPTIONS -- WORDS``."""
    return subprocess.run(
        [*COMMAND, "run", *options, "--", *words],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        timeout=90,
    )


def shell(
    script: str, *options: str, cwd: Path | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    return run("sh", "-c", script, options=options, cwd=cwd, stdin=stdin)


def machines() -> set[str]:
    """The QEMU processes there are."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if "qemu-system" in os.readlink(path / "exe"):
                found.add(path.name)
        except OSError:
            pass
    return found


@pytest.fixture(autouse=True, scope="module")
def prepared() -> None:
    """What the labs need is there, and says nothing of its being fetched in the tests."""
    subprocess.run([*COMMAND, "prepare"], check=True, timeout=300)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a test does, no machine outlives it."""
    before = machines()
    yield
    end = time.monotonic() + 20
    while machines() - before and time.monotonic() < end:
        time.sleep(0.05)
    assert not machines() - before


# ---- a command in it is as one here


def test_standard_files(tmp_path: Path) -> None:
    """Input, output and errors are the bytes they are, apart from one another; so is the status."""
    data = bytes(range(256)) * 4096  # 1 MiB
    done = shell(
        "cat; printf '\\377no line' >&2; printf x >file; echo $0 >&2; exit 77",
        cwd=tmp_path,
        stdin=data,
    )
    assert done.returncode == 77
    assert done.stdout == data
    assert done.stderr == b"\xffno linesh\n"
    assert (tmp_path / "file").read_bytes() == b"x"


def test_surroundings(tmp_path: Path) -> None:
    """The working directory, whatever its name, is there to read and write; the rest is there to
    read, and what is written elsewhere is gone afterwards; KVM is complete."""
    directory = tmp_path / "a b,c=d'e"
    directory.mkdir()
    (directory / "given").write_text("given")
    (directory / "tool").write_text("#!/bin/sh\necho tool\n")
    (directory / "tool").chmod(0o755)
    script = f"""
        pwd; cat given; mkdir new; echo 1 >new/file; rm given; ./tool
        echo lost >{tmp_path}/elsewhere && cat {tmp_path}/elsewhere
        ls {TOP}/pyproject.toml; uname -n; test -c /dev/kvm && echo kvm
        kvmcpu run --stats stats {TOP}/examples/hello.elf
        """
    subprocess.run(["make", "-s", "-C", TOP / "examples", "hello.elf"], check=True)
    done = shell(script, cwd=directory)
    assert done.stderr == b""
    assert done.stdout.decode().splitlines()[:6] == [
        str(directory),
        *("giventool", "lost", f"{TOP}/pyproject.toml", f"lab-{host()}", "kvm"),
    ]
    assert done.returncode == 0
    assert sorted(path.name for path in directory.iterdir()) == ["new", "stats", "tool"]
    assert (directory / "new/file").read_text() == "1\n"
    assert "committedInsts" in (directory / "stats").read_text()
    assert not (tmp_path / "elsewhere").exists()


def test_from_python(tmp_path: Path) -> None:
    """`kvmcpu.lab.run` returns what subprocess.run does."""
    data = os.urandom(300_000)
    done = lab.run(
        ["sh", "-c", "cat; echo $A >&2; kill -TERM $$"],
        input=data,
        directory=tmp_path,
        environment={"A": "an environment"},
        memory="512MiB",
        timeout=60,
    )
    assert done.stdout == data
    assert done.stderr == b"an environment\n"
    assert done.returncode == 128 + signal.SIGTERM
    with pytest.raises(lab.LabTimeout, match=r"after 0\.5 s"):
        lab.run(["sleep", "100"], timeout=0.5)
    with pytest.raises(lab.LabError, match="there is no lab for 'vax'"):
        lab.run(["true"], arch="vax")


def test_output_as_it_comes() -> None:
    """What is printed is there before the command ends."""
    with subprocess.Popen(
        [*COMMAND, "run", "--", "sh", "-c", "echo first; read line; echo $line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.stdin.write(b"second\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"second\n"
    assert process.returncode == 0


def test_no_such_command() -> None:
    assert run("/no/such/command").returncode == 127


def test_much_output() -> None:
    """100 MB come through, and are the right ones."""
    done = run("sh", "-c", "head -c 100000000 /dev/zero")
    assert done.returncode == 0
    assert len(done.stdout) == 100_000_000
    assert not done.stdout.strip(b"\0")


def test_processes_left_behind() -> None:
    """A command that leaves others running, which hold its output, is over when it ends."""
    done = shell("sleep 1000 & setsid sleep 1000 & echo over")
    assert (done.returncode, done.stdout) == (0, b"over\n")


# ---- how it ends


@contextmanager
def started(script: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in the lab that has printed its first line."""
    with subprocess.Popen(
        [*COMMAND, "run", *options, "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def test_signals() -> None:
    """The first of a kind goes to the command, which may handle it; a second one ends the lab."""
    wait = "echo ready; while :; do sleep 0.1; done"
    script = f"trap 'echo int' INT; trap 'echo term; exit 5' TERM; {wait}"
    with started(script) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"int\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == b"term\n"
        assert process.wait(60) == 5
    with started(f"trap '' INT; {wait}") as process:
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT or process.returncode == 130
        assert b"SIGINT" in process.stderr.read()


def test_a_signal_before_it_starts() -> None:
    with subprocess.Popen([*COMMAND, "run", "--", "true"], stderr=subprocess.PIPE) as process:
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert said.count(b"\n") == 1


def test_timeout() -> None:
    """Also of a command that heeds no signal."""
    done = shell("trap '' TERM INT; echo here; while :; do :; done", "--timeout", "2")
    assert done.returncode == 124
    assert done.stdout == b"here\n"
    assert done.stderr == b"kvmcpu: timed out after 2 s\n"


def test_crash() -> None:
    """The kernel's panic is told in one line; what was printed before is there."""
    done = shell("echo before; sleep 0.5; echo c >/proc/sysrq-trigger; sleep 100")
    assert done.returncode == 125
    assert done.stdout == b"before\n"
    assert done.stderr.count(b"\n") == 1
    assert b"the lab died: its kernel crashed: Kernel panic" in done.stderr


def test_power_off() -> None:
    done = shell("echo o >/proc/sysrq-trigger; sleep 100")
    assert done.returncode == 125
    assert b"the lab died: it powered off" in done.stderr


def test_qemu_is_killed() -> None:
    before = machines()
    with started("echo ready; sleep 100") as process:
        assert process.stderr is not None
        (pid,) = machines() - before
        os.kill(int(pid), signal.SIGKILL)
        assert process.wait(60) == 125
        assert b"the lab died: QEMU was ended by SIGKILL" in process.stderr.read()


def test_killed_itself() -> None:
    """A lab whose own process is killed leaves no machine: the fixture looks."""
    with started("echo ready; sleep 100") as process:
        process.kill()


def test_full_disk() -> None:
    """A full disk is the command's own error, and the lab goes on."""
    done = shell("dd if=/dev/zero of=/fill bs=1M count=4000 2>&1; rm /fill; echo alive")
    assert b"No space left" in done.stdout
    assert done.stdout.endswith(b"alive\n")
    assert done.returncode == 0


def test_no_memory_left() -> None:
    """A command that takes all memory is ended, not the lab."""
    done = shell(
        f"{sys.executable} -c 'b = bytearray(4 << 30)' 2>&1; echo alive", "--memory", "512MiB"
    )
    assert done.stdout.endswith(b"alive\n")


def test_closed_output() -> None:
    """`| head -1` ends it quietly."""
    with started("echo ready; while :; do echo more; done") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.wait(60)
        assert b"Traceback" not in process.stderr.read()


# ---- several, and others' rights


def test_two_at_once(tmp_path: Path) -> None:
    """Two in the same directory at the same time."""
    results: list[subprocess.CompletedProcess[bytes]] = []

    def one(name: str) -> None:
        script = f"echo {name} >{name}; until [ -e one ] && [ -e two ]; do ls; sleep 0.1; done"
        results.append(shell(script, "--timeout", "60", cwd=tmp_path))

    threads = [threading.Thread(target=one, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.returncode for done in results] == [0, 0]


def test_ten_in_a_row(tmp_path: Path) -> None:
    for i in range(10):
        done = shell(f"cat n 2>/dev/null; echo {i} >n", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == (f"{i - 1}\n".encode() if i else b"")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("mode", [0o755, 0o711], ids=["readable", "passable"])
def test_without_privileges(tmp_path: Path, mode: int) -> None:
    """No /dev/kvm and no rights are needed, nor a home directory that can be written to, nor that
    the directories above the working directory can be read."""
    directory = tmp_path / "nobody"
    others = shutil.ignore_patterns(".*", "root-*", "package-*", "extension-*")
    shutil.copytree(images.cache(), directory / "cache/kvmcpu/lab", ignore=others)
    work = directory / "work"
    work.mkdir()
    for path in (work, *directory.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    for path in (tmp_path.parent.parent, tmp_path.parent, tmp_path, directory):
        path.chmod(mode)
    script = "id -u; pwd; echo 1 >file; test -c /dev/kvm && echo kvm"
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, "--", "sh", "-c", script],
        cwd=work,
        env={**os.environ, "XDG_CACHE_HOME": str(directory / "cache"), "HOME": "/nonexistent"},
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, f"0\n{work}\nkvm\n".encode()), done.stderr
    assert (work / "file").stat().st_uid == NOBODY


# ---- a person at a terminal


class Terminal:
    """``kvmcpu lab shell`` at a terminal of its own."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        termios.tcsetwinsize(slave, (33, 101)) if hasattr(termios, "tcsetwinsize") else None
        self.slave = slave
        self.process = subprocess.Popen(
            [*COMMAND, "shell"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        self.text = b""

    def expect(self, text: bytes, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while text not in self.text:
            left = end - time.monotonic()
            assert left > 0, self.text
            assert self.process.poll() is None or select.select([self.master], [], [], 0)[0], (
                self.text
            )
            if select.select([self.master], [], [], min(left, 1))[0]:
                self.text += os.read(self.master, 4096)
        self.text = self.text.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close(self) -> int:
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            assert termios.tcgetattr(self.slave) == self.before
            os.close(self.slave)
            os.close(self.master)


@pytest.mark.parametrize("end", ["exit 3", "echo c >/proc/sysrq-trigger"], ids=["exit", "crash"])
def test_shell(end: str) -> None:
    """A shell with its job control and its window; the terminal is afterwards as it was."""
    terminal = Terminal()
    try:
        terminal.expect(b"# ")
        terminal.type("echo $((6 * 7)); sleep 1000\r")
        terminal.expect(b"42")
        terminal.type("\x03")  # Ctrl-C ends the sleep, not the lab
        terminal.expect(b"# ")
        if hasattr(termios, "tcsetwinsize"):
            terminal.type("stty size\r")
            terminal.expect(b"33 101")
        terminal.type(f"{end}\r")
    finally:
        status = terminal.close()
    assert status == (3 if end == "exit 3" else 125)


# ---- wrong use


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["run"], 125, "give a command"),
        (["run", "--arch", "vax", "--", "true"], 125, "--arch"),
        (["run", "--cpus", "0", "--", "true"], 125, "--cpus 0"),
        (["run", "--memory", "1MiB", "--", "true"], 125, "256 MiB"),
        (["run", "--qemu", "/no/qemu", "--", "true"], 125, "/no/qemu is not there"),
        (["run", "--kernel", "/no/kernel", "--", "true"], 125, "--busybox"),
        (["run", "--kernel", "/no/k", "--busybox", "/no/b", "--", "true"], 125, "/no/k: No such"),
        (["run", "--root", "/no/root", "--", "true"], 125, "/no/root"),
        (["shell"], 125, "terminal"),
        (["run", "--timeout", "x", "--", "true"], 125, "--timeout"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_wrong_use(words: list[str], status: int, says: str) -> None:
    """One line that says what to do, and no traceback."""
    done = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_missing_is_named() -> None:
    done = subprocess.run(
        [*COMMAND, "run", "--", "true"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": "/nonexistent"},
    )
    assert done.returncode == 125
    assert "apt-get install qemu-system-" in done.stderr


def test_list_and_clean(tmp_path: Path) -> None:
    """What was made is listed with its size, and removed; the cache is the user's."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}

    def command(action: str) -> str:
        return subprocess.run(
            [*COMMAND, action], capture_output=True, text=True, env=environment, check=True
        ).stdout

    made = tmp_path / "kvmcpu/lab/kernel-x-0"
    made.mkdir(parents=True)
    (made / "kernel").write_bytes(bytes(3 << 20))
    assert "3.0 MiB  kernel-x-0" in command("list")
    assert "3.0 MiB freed" in command("clean")
    assert not made.exists()
    assert "0.0 MiB" in command("list")
