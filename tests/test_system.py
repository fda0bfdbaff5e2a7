# SPDX-License-Identifier: MIT
"""Whole systems: composed, run, paused, ended; described in TOML."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
import time
from pathlib import Path

import guests
import pytest

import kvmcpu
from kvmcpu import ConfigError, System, boards, config, devices
from kvmcpu.console import ConsoleClosed, ConsoleTimeout
from kvmcpu.devices import Device, Ports, Register

pytestmark = pytest.mark.kvm(arch="x86_64")
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example kernel."""
    directory = tmp_path_factory.mktemp("kernel")
    for file in (EXAMPLES / "kernel").iterdir():
        if file.suffix not in (".o", ".elf"):
            shutil.copy(file, directory)
    subprocess.run(["make", "-s", "-C", directory], check=True)
    return directory / "kernel.elf"


@pytest.fixture
def image(tmp_path: Path):
    """A maker of systems with a flat real-mode binary."""
    made = []

    def make(source: str, **options) -> System:
        path = tmp_path / f"{len(made)}.bin"
        path.write_bytes(guests.assemble(source))
        system = System(**{"memory": "1MiB", **options})
        system.load(path)
        made.append(system)
        return system

    yield make
    for system in made:
        system.close()


@pytest.mark.parametrize(
    ("source", "reason", "code"),
    [
        ("mov al, 3; out 0xf4, al; 1: jmp 1b", "exit", 3),
        ("mov dx, 0x604; mov ax, 0x2000; out dx, ax; 1: jmp 1b", "power-off", 0),
        ("mov al, 0xfe; out 0x64, al; 1: jmp 1b", "reset", None),
        ("cli; hlt", "idle", None),
    ],
)
def test_ends(image, source, reason, code) -> None:
    result = image(source).run(timeout=20)
    assert (result.reason, result.exit_code) == (reason, code)
    assert result.error is None


def test_triple_fault(tmp_path: Path) -> None:
    path = tmp_path / "guest.bin"
    path.write_bytes(guests.assemble("ud2", bits=32))
    with System(memory="1MiB") as system:
        system.load(path, mode="protected")
        result = system.run(timeout=20)
        assert result.reason == "triple-fault"
        assert "rip=" in str(result.error)


def test_timeout_and_on(image) -> None:
    system = image("1: mov cx, [0x600]; test cx, cx; jz 1b; mov al, cl; out 0xf4, al; hlt")
    assert system.run(timeout=0.1).reason == "timeout"
    assert not system.running
    assert system.cpus[0].regs.rcx & 0xFFFF == 0  # it can be looked at
    system.vm.write(0x600, b"\x09")
    assert system.run(timeout=10).exit_code == 9
    with pytest.raises(kvmcpu.StateError, match="ended"):
        system.run()


def test_ticks(image) -> None:
    system = image("1: jmp 1b")
    start = system.now
    assert system.run(ticks="5ms", timeout=10).reason == "ticks"
    assert 5 * 10**9 <= system.now - start < 10**12
    assert system.run(ticks=10**9, timeout=10).reason == "ticks"
    # What a time-out has left over does not stop the next run.
    assert system.run(ticks="1s", timeout=0.02).reason == "timeout"
    assert system.run(timeout=1.2).reason == "timeout"


def test_background(image) -> None:
    system = image("1: inc dword ptr [0x600]; jmp 1b")
    assert system.start() is system
    time.sleep(0.05)
    assert system.running
    system.pause()
    assert system.wait(1).reason == "paused"
    count = system.vm.read(0x600, 4)
    time.sleep(0.02)
    assert system.vm.read(0x600, 4) == count
    system.resume()
    time.sleep(0.05)
    assert system.stop().reason == "stopped"
    assert system.vm.read(0x600, 4) != count


def test_await(image) -> None:
    async def both() -> list[int | None]:
        first = image("mov al, 1; out 0xf4, al; hlt").start()
        second = image("mov al, 2; out 0xf4, al; hlt").start()
        return [(await system).exit_code for system in (first, second)]

    assert asyncio.run(asyncio.wait_for(both(), 20)) == [1, 2]


def test_handler_that_raises(image) -> None:
    class Bad(Device):
        """Raises."""

        ports = Ports(0x10, 1)
        data = Register(ports, 0)

        @data.write
        def write(self, value: int) -> None:
            raise LookupError(value)

    system = image("mov al, 7; out 0x10, al; hlt", devices=[Bad()])
    with pytest.raises(LookupError, match="7"):
        system.run(timeout=10)


def test_closed_in_the_middle(image) -> None:
    before = threading.active_count()
    for _ in range(5):
        system = image("1: inc dword ptr [0x600]; jmp 1b")
        system.start()
        system.close()
        system.close()
        with pytest.raises(kvmcpu.StateError, match="closed"):
            system.start()
    assert threading.active_count() == before


def test_console(image) -> None:
    system = image("""
        mov dx, 0x3f8
        mov al, 'o'; out dx, al; mov al, 'k'; out dx, al; mov al, '!'; out dx, al
        mov dx, 0x3fd; 1: in al, dx; test al, 1; jz 1b
        mov dx, 0x3f8; in al, dx; inc al; out dx, al; cli; hlt
    """)
    with pytest.raises(RuntimeError, match="not started"):
        system.console.send("x")
    match = system.run(until=r"o(.)", timeout=10).match
    assert match is not None
    assert match.group(1) == "k"
    with pytest.raises(ConsoleTimeout, match="ok!"):
        system.console.expect("never", timeout=0.05)
    system.start()
    system.console.send("A")
    assert system.console.expect(r"[A-Z]", timeout=10).group() == "B"
    with pytest.raises(ConsoleClosed):
        system.console.expect("more", timeout=20)
    assert system.console.text == "ok!B"


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"board": "none"}, "no board 'none'; there are pc"),
        ({"memory": 0}, "without memory"),
        ({"memory": "much"}, "memory"),
        ({"cpus": 0}, "1 to 255"),
        ({"unassigned": "zero"}, "ones"),
        ({"devices": [7]}, "7 is not a device"),
        ({"disks": ["a"], "devices": []}, "no AtaController"),
    ],
)
def test_what_makes_no_sense(options, pattern) -> None:
    with pytest.raises(ConfigError, match=pattern):
        System(**options)


def test_nothing_to_run() -> None:
    with pytest.raises(ConfigError, match="nothing to run"):
        System().run()


def test_board_of_another_architecture(image, monkeypatch) -> None:
    monkeypatch.setattr(boards.Pc, "arch", "riscv64")
    with pytest.raises(ConfigError, match="pc is a machine of riscv64, and"):
        image("hlt").run()


def test_two_devices_at_one_address(image) -> None:
    system = image("hlt", devices=[devices.DebugExit(), devices.DebugExit()])
    with pytest.raises(devices.DeviceError, match="overlap"):
        system.build()


def test_kernel_with_interrupts(kernel, tmp_path) -> None:
    """Timer at the right rate; 64 KiB pasted at once arrive by interrupt; modules, arguments."""
    module = tmp_path / "module"
    module.write_bytes(b"\x01\x02\x03")
    with System(memory="16MiB") as system:
        system.load(kernel, ["one", "two"], modules=[(module, "mod x")])
        system.start()
        console = system.console
        console.expect("> ")

        def ask(line: str) -> str:
            console.send(line + "\n")
            return console.expect(r"\n(.*)\r\n> ", 60).group(1).strip()

        text = ask("args")
        assert text.startswith("command line: kernel.elf one two")
        assert "module mod x: 3 bytes, sum 0x6" in text
        assert "0x100000 + 0xf00000 available" in ask("mem")
        # The guest read its ticks somewhere between question and answer.
        times = [time.monotonic()]
        first = int(ask("ticks"))
        times.append(time.monotonic())
        time.sleep(2)
        times.append(time.monotonic())
        passed = int(ask("ticks")) - first
        times.append(time.monotonic())
        shortest, longest = times[2] - times[1], times[3] - times[0]
        assert 0.99 * 100 * shortest - 1 <= passed <= 1.01 * 100 * longest + 1
        data = bytes(i * 7 & 0xFF for i in range(guests.sized(65536)))
        expected = 0
        for byte in data:
            expected = (expected * 31 + byte) & 0xFFFFFFFF
        console.send(f"sum {len(data)}\n")
        console.expect("ready\r\n")
        console.send(data)
        told = console.expect(f"{len(data)} bytes, sum (0x[0-9a-f]+)\r\n", 60)
        assert told.group(1) == hex(expected)
        console.send("exit 5\n")
        assert system.wait(10).exit_code == 5


def test_the_kernel_sees_memory_above_4_gib(kernel) -> None:
    with System(memory="5GiB") as system:  # nothing touches most of it
        system.load(kernel)
        system.start()
        system.console.expect("> ", 60)
        system.console.send("mem\n")
        text = system.console.expect(r"\n(.*)\r\n> ", 60).group(1)
        assert "0x100000 + 0xbff00000 available" in text
        assert "0x100000000 + 0x80000000 available" in text


def test_two_cpus(tmp_path) -> None:
    """The second CPU is started by INIT and SIPI; they talk by interrupts."""
    path = tmp_path / "two.elf"
    subprocess.run(["as", "--32", "-o", tmp_path / "o", EXAMPLES / "two_cpus.S"], check=True)
    subprocess.run(
        ["ld", "-m", "elf_i386", "-Ttext=0x100000", "-e", "_start", "-o", path, tmp_path / "o"],
        check=True,
    )
    with System(memory="4MiB", cpus=2) as system:
        system.load(path)
        result = system.run(timeout=20)
        assert result.exit_code == 0, system.console.text
        assert system.console.text == "the second CPU is up\n" + 5 * "a ping was answered\n"


# ---- TOML ----


def test_toml_round_trip(tmp_path) -> None:
    (tmp_path / "code.bin").write_bytes(guests.assemble("mov al, 4; out 0xf5, al; hlt"))
    text = """
        memory = "2MiB"
        cpus = 1
        image = "code.bin"
        arguments = ["a"]
        mode = "real"
        disks = []

        [[device]]
        type = "DebugExit"
        port = 0xF5

        [[device]]
        type = "Serial16550"
    """
    path = tmp_path / "system.toml"
    path.write_text(text)
    with config.load(path) as system:
        assert "DebugExit(port=245)" in str(system)
        written = config.dumps(system)
        assert system.run(timeout=10).exit_code == 4
    with config.loads(written) as system:
        assert (system.memory, len(system.devices)) == (2 << 20, 2)
        assert config.dumps(system) == written
    with config.load(path, memory="4MiB") as system:
        assert system.memory == 4 << 20


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("memory = ", "not TOML"),
        ("ram = 1", "unknown key ram; there are board"),
        ("device = 1", "list of tables"),
        ("[[device]]\ntype = 'Nothing'", "no device 'Nothing'; there are AtaController"),
        ("[[device]]\ntype = 'nowhere:X'", "nowhere"),
        ("[[device]]\nport = 1", "type = "),
        ("[[device]]\ntype = 'Cmos'\nx = 1", "Cmos has no option x; it has start"),
        ("[[device]]\ntype = 'Cmos'\nboot = 'q'", "boot"),
        ("disks = 'a'", "list of strings"),
        ("arguments = ['a']", "image, which is missing"),
        ("memory = 0", "without memory"),
    ],
)
def test_broken_toml(text, pattern) -> None:
    with pytest.raises((ConfigError, devices.DeviceError), match=pattern):
        config.loads(text)
