# SPDX-License-Identifier: MIT
"""``kvmcpu run`` at a terminal: keys go to the guest, and the terminal is as before afterwards."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import guests
import pytest

pytestmark = pytest.mark.kvm(arch="x86_64")

# Says "hi", then what is typed, each byte plus one; 'q' ends with status 6.
ECHO = """
    mov dx, 0x3f8; mov al, 'h'; out dx, al; mov al, 'i'; out dx, al
    1: mov dx, 0x3fd; in al, dx; test al, 1; jz 1b
    mov dx, 0x3f8; in al, dx; cmp al, 'q'; je 2f
    inc al; out dx, al; jmp 1b
    2: mov al, 6; out 0xf4, al; hlt
"""


class Session:
    """The command on a terminal of its own."""

    def __init__(self, image: Path) -> None:
        self.master, self._slave = pty.openpty()
        self.before = termios.tcgetattr(self._slave)
        command = [sys.executable, "-m", "kvmcpu", "run", image]
        self.process = subprocess.Popen(
            command,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            preexec_fn=self._own_terminal,
        )
        self.output = b""

    def _own_terminal(self) -> None:
        import fcntl

        # Also where they are ignored: nohup, a shell's background.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def expect(self, text: bytes) -> None:
        end = time.monotonic() + 30
        while text not in self.output:
            assert time.monotonic() < end, self.output
            if select.select([self.master], [], [], 0.1)[0]:
                self.output += os.read(self.master, 4096)

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    def end(self) -> int:
        status = self.process.wait(30)
        assert termios.tcgetattr(self._slave) == self.before
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self._slave)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    image = tmp_path / "echo.bin"
    image.write_bytes(guests.assemble(ECHO))
    made = Session(image)
    made.expect(b"hi")
    yield made
    made.close()


def test_keys_go_to_the_guest(session: Session) -> None:
    assert b"Ctrl-] ends" in session.output
    raw = termios.tcgetattr(session._slave)
    assert not raw[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    session.send(b"a\x03\x1a")  # Ctrl-C and Ctrl-Z are keys like others
    session.expect(b"b\x04\x1b")
    session.send(b"q")
    assert session.end() == 6


def test_escape(session: Session) -> None:
    session.send(b"x\x1d")
    session.expect(b"ended by Ctrl-]")
    assert session.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals(session: Session, number: signal.Signals) -> None:
    session.process.send_signal(number)
    assert session.end() == 128 + number


def test_a_closed_terminal(tmp_path: Path) -> None:
    image = tmp_path / "echo.bin"
    image.write_bytes(guests.assemble(ECHO))
    session = Session(image)
    session.expect(b"hi")
    os.close(session._slave)
    os.close(session.master)
    assert session.process.wait(30) in (128 + signal.SIGHUP, 125)


def test_a_pipe_feeds_the_serial_port(tmp_path: Path) -> None:
    image = tmp_path / "echo.bin"
    image.write_bytes(guests.assemble(ECHO))
    done = subprocess.run(
        [sys.executable, "-m", "kvmcpu", "run", "--timeout", "30", image],
        input=b"@ABCq",
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (6, b"hiABCD", b"")


def test_a_background_job_leaves_the_terminal_alone(tmp_path: Path) -> None:
    image = tmp_path / "end.bin"
    image.write_bytes(guests.assemble("mov al, 4; out 0xf4, al; hlt"))
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    # The terminal is no controlling terminal of this process, so it is not in its foreground.
    done = subprocess.run(
        [sys.executable, "-m", "kvmcpu", "run", image],
        stdin=slave,
        capture_output=True,
        start_new_session=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (4, b"")
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
