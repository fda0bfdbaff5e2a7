# SPDX-License-Identifier: MIT
"""The command, as a person types it: what it prints, where, and with which status it ends."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import guests
import pytest

import kvmcpu

SEABIOS = Path("/usr/share/seabios/bios.bin")

EXIT_7 = "mov al, 7; out 0xf4, al; hlt"
SPIN = "1: jmp 1b"
PRINT_FOR_EVER = "mov dx, 0x3f8; 1: mov al, 'y'; out dx, al; mov al, 10; out dx, al; jmp 1b"


def start(*words: str | Path, **options) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvmcpu", *map(str, words)]
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def run(*words: str | Path, timeout: float = 60, **options) -> subprocess.CompletedProcess[str]:
    process = start(*words, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def flat(tmp_path: Path, source: str, *, bits: int = 16) -> Path:
    path = tmp_path / "guest.bin"
    path.write_bytes(guests.assemble(source, bits=bits))
    return path


def says_one_line(done: subprocess.CompletedProcess[str], pattern: str) -> None:
    assert done.returncode == 125, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("kvmcpu: ")
    assert re.search(pattern, lines[0]), lines[0]
    assert done.stdout == ""


# ---------------------------------------------------------------------------- how a run ends


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_the_guests_own_status(tmp_path: Path, status: int) -> None:
    done = run("run", flat(tmp_path, f"mov al, {status}; out 0xf4, al; hlt"))
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


@pytest.mark.kvm(arch="x86_64")
def test_a_status_that_no_process_can_have(tmp_path: Path) -> None:
    done = run("run", flat(tmp_path, "mov eax, 0x1234; out 0xf4, eax; hlt"))
    assert done.returncode == 0x34
    assert "0x1234" in done.stderr


@pytest.mark.kvm(arch="x86_64")
def test_a_halt_for_good_is_a_clean_power_off(tmp_path: Path) -> None:
    done = run("run", flat(tmp_path, "cli; hlt"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize("text", ["0.3", "300ms"])
def test_timed_out(tmp_path: Path, text: str) -> None:
    began = time.monotonic()
    done = run("run", "--timeout", text, flat(tmp_path, SPIN))
    assert (done.returncode, done.stdout, done.stderr) == (124, "", "kvmcpu: timed out\n")
    assert time.monotonic() - began > 0.3


@pytest.mark.kvm(arch="x86_64")
def test_in_time(tmp_path: Path) -> None:
    assert run("run", "--timeout", "3600", flat(tmp_path, EXIT_7)).returncode == 7


@pytest.mark.kvm(arch="x86_64")
def test_timed_out_while_nobody_reads(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        done = run("run", "--timeout", "0.5", flat(tmp_path, PRINT_FOR_EVER), stdout=writer)
        assert done.returncode == 124
        assert done.stderr.startswith("kvmcpu: timed out")
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.kvm(arch="x86_64")
def test_a_triple_fault_is_a_crash(tmp_path: Path) -> None:
    done = run("run", "--mode", "long", flat(tmp_path, "mov ebx, 0x1234; ud2", bits=64))
    assert done.returncode == 126
    assert "ShutdownError" in done.stderr
    with kvmcpu.Kvm() as kvm:
        if kvm.backend != "svm":  # there KVM resets the vCPU before it tells
            assert re.search("rbx.*1234", done.stderr, re.IGNORECASE)
    assert "Traceback" not in done.stderr


@pytest.mark.kvm(arch="x86_64")
def test_an_access_to_nobody_is_a_crash(tmp_path: Path) -> None:
    image = flat(tmp_path, "mov dx, 0x1234; in al, dx; out 0xf4, al; hlt")
    done = run("run", image)
    assert done.returncode == 126
    assert "UnassignedAccessError" in done.stderr
    assert "0x1234" in done.stderr
    assert "--unassigned ones" in done.stderr
    assert "Traceback" not in done.stderr
    # … unless one says otherwise.
    assert run("run", "--unassigned", "ones", image).returncode == 255


# ---------------------------------------------------------------------------- consoles


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize("port", [0x3F8, 0xE9, 0x402])
def test_output_ports(tmp_path: Path, port: int) -> None:
    source = f"""
        mov dx, {port}
        mov si, offset text
        cld
    1:  lodsb
        test al, al
        jz 2f
        out dx, al
        jmp 1b
    2:  hlt
    text: .asciz "Grüße\\n"
    """
    done = run("run", flat(tmp_path, source))
    assert (done.returncode, done.stdout, done.stderr) == (0, "Grüße\n", "")


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize(
    ("port", "value"), [(0x3FD, 0x60), (0xE9, 0xE9), (0x402, 0xE9), (0x3FA, 0x01), (0x3F8, 0)]
)
def test_what_the_ports_read(tmp_path: Path, port: int, value: int) -> None:
    done = run("run", flat(tmp_path, f"mov dx, {port}; in al, dx; out 0xf4, al; hlt"))
    assert (done.returncode, done.stderr) == (value, "")


@pytest.mark.kvm(arch="x86_64")
def test_setting_the_baud_rate_prints_nothing(tmp_path: Path) -> None:
    # With the divisor latch open, 0x3f8 is not the data register.
    source = """
        mov dx, 0x3fb; mov al, 0x83; out dx, al
        mov dx, 0x3f8; mov al, 'x'; out dx, al
        mov dx, 0x3f9; mov al, 0; out dx, al
        mov dx, 0x3f8; in al, dx; mov bl, al
        mov dx, 0x3fb; mov al, 0x03; out dx, al
        mov dx, 0x3f8; mov al, 'A'; out dx, al
        mov al, bl; out 0xf4, al; hlt
    """
    done = run("run", flat(tmp_path, source))
    assert (done.returncode, done.stdout) == (ord("x"), "A")


@pytest.mark.kvm(arch="x86_64")
def test_head_ends_it_quietly(tmp_path: Path) -> None:
    script = '"$0" -m kvmcpu run "$1" | head -n 1; echo "${PIPESTATUS[0]}"'
    image = flat(tmp_path, PRINT_FOR_EVER)
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, image], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"y\n{128 + signal.SIGPIPE}\n"
    assert done.stderr == ""


@pytest.mark.kvm(arch="x86_64")
def test_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run("run", flat(tmp_path, "mov al, 'A'; out 0xe9, al; hlt"), stdout=full)
    assert done.returncode == 0
    assert done.stderr == "kvmcpu: of the guest's output, 1 bytes could not be written\n"


@pytest.mark.kvm(arch="x86_64")
def test_standard_files_that_are_closed(tmp_path: Path) -> None:
    image = flat(tmp_path, "mov al, 'A'; out 0xe9, al; mov al, 3; out 0xf4, al; hlt")
    script = '"$0" -m kvmcpu run "$1" <&- >&- 2>&-; echo $?'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, image], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("3\n", "")


# ---------------------------------------------------------------------------- signals


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize(
    ("number", "message"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")]
)
def test_signals_end_it(tmp_path: Path, number: signal.Signals, message: str) -> None:
    stats = tmp_path / "stats"
    image = flat(tmp_path, f"mov al, '!'; out 0xe9, al; {SPIN}")
    process = start("run", "--stats", stats, image)
    assert process.stdout is not None
    assert process.stdout.read(1) == "!"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + number, "", f"kvmcpu: {message}\n")
    assert "numVMExits" in stats.read_text()


# ---------------------------------------------------------------------------- options


@pytest.mark.kvm(arch="x86_64")
def test_statistics(tmp_path: Path) -> None:
    image = flat(tmp_path, "mov al, 'A'; out 0xe9, al; hlt")
    done = run("run", "--stats", "-", image)
    assert done.returncode == 0
    assert done.stdout.startswith("A")
    assert re.search(r"numVMExits\s+\d+", done.stdout)
    assert done.stderr == ""
    path = tmp_path / "stats"
    done = run("run", "--stats", path, image)
    assert (done.returncode, done.stdout, done.stderr) == (0, "A", "")
    assert re.search(r"numIO\s+1\b", path.read_text())


@pytest.mark.kvm(arch="x86_64")
def test_debug_flags(tmp_path: Path) -> None:
    done = run("run", "--debug-flags", "KvmRun,KvmIO", flat(tmp_path, EXIT_7))
    assert done.returncode == 7
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert {line.split(": ")[2] for line in lines} == {"KvmRun", "KvmIO"}
    assert all(re.match(r" *\d+: \w+: ", line) for line in lines)


@pytest.mark.kvm(arch="x86_64")
def test_load_address_and_memory(tmp_path: Path) -> None:
    path = tmp_path / "boot"
    path.write_bytes(guests.assemble("call 1f; 1: pop ax; out 0xf4, al; hlt", origin=0x7C00))
    done = run("run", "--load-address", "0x7c00", "--memory", "32KiB", path)
    assert done.returncode == 0x03
    done = run("run", "--load-address", "0x7c00", "--memory", "16KiB", path)
    says_one_line(done, "needs memory at 0x7c00")


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize(("mode", "bits"), [("protected", 32), ("long", 64)])
def test_modes(tmp_path: Path, mode: str, bits: int) -> None:
    source = "mov eax, 0x12345678; shr eax, 24; out 0xf4, al; hlt"
    assert run("run", "--mode", mode, flat(tmp_path, source, bits=bits)).returncode == 0x12


def test_version_and_help() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"kvmcpu {kvmcpu.__version__}\n")
    done = run("run", "--help")
    assert done.returncode == 0
    for text in ("--firmware", "--timeout", "124", "125", "126", "KvmRun"):
        assert text in done.stdout


# ---------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["run"], "IMAGE, --firmware FILE or --config"),
        (["run", "--firmware", "f", "image"], "one of the two"),
        (["run", "--firmware", "f", "--", "x"], "for an IMAGE"),
        (["run", "--firmware", "f", "--mode", "long"], "for an IMAGE"),
        (["run", "--nonsense", "image"], "--nonsense"),
        (["run", "image", "another"], "another"),
        (["run", "--mode", "virtual", "image"], "virtual"),
        (["run", "--memory", "lots", "image"], "lots"),
        (["run", "--timeout", "soon", "image"], "soon"),
        (["run", "--timeout", "0", "image"], "above 0"),
        (["run", "--timeout", "-1", "image"], "above 0|expected one argument"),
        (["run", "--timeout", "nan", "image"], "above 0"),
        (["run", "--load-address", "there", "image"], "there"),
        (["run", "--debug-flags", "Nonsense", "image"], "Nonsense.*KvmRun"),
        (["run", "/nonexistent/image"], "cannot read /nonexistent/image: No such file"),
        (["run", "--firmware", "/nonexistent/bios"], "cannot read /nonexistent/bios"),
        (["run", "/"], "not a regular file"),
        (["run", __file__], "text"),
        (["info", "--", "x"], "no arguments"),
    ],
)
def test_misuse_is_one_line(words: list[str], pattern: str) -> None:
    says_one_line(run(*words), pattern)


def test_an_elf_for_another_architecture(tmp_path: Path) -> None:
    data = bytearray(guests.link_elf(".globl _start\n_start: hlt"))
    data[18] = 183  # e_machine: AArch64
    path = tmp_path / "guest.elf"
    path.write_bytes(data)
    says_one_line(run("run", path), "another architecture .*AARCH64")


@pytest.mark.parametrize(
    ("device", "pattern"),
    [("/nonexistent/kvm", "no KVM device"), ("/dev/null", "not a KVM device")],
)
def test_a_device_that_is_none(tmp_path: Path, device: str, pattern: str) -> None:
    says_one_line(run("run", "--device", device, flat(tmp_path, EXIT_7)), pattern)


@pytest.mark.kvm(arch="x86_64")
def test_memory_that_cannot_be_had(tmp_path: Path) -> None:
    image = flat(tmp_path, EXIT_7)
    says_one_line(run("run", "--memory", "1000TiB", image), ".")
    says_one_line(run("run", "--memory", "0", image), "memory: ")
    says_one_line(run("run", "--memory", "1000", image), "memory of 1000 bytes")


@pytest.mark.kvm(arch="x86_64")
def test_statistics_that_cannot_be_written(tmp_path: Path) -> None:
    image = flat(tmp_path, EXIT_7)
    says_one_line(run("run", "--stats", "/nonexistent/stats", image), "/nonexistent/stats")
    says_one_line(run("run", "--stats", "/dev/full", image), "No space left")


# ---------------------------------------------------------------------------- firmware


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.skipif(not SEABIOS.exists(), reason=f"no {SEABIOS} (Debian: seabios)")
def test_seabios() -> None:
    done = run("run", "--firmware", SEABIOS, "--timeout", "5")
    assert done.stdout.startswith("SeaBIOS (version ")
    assert done.returncode in (0, 124), done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------- info


@pytest.mark.kvm(arch="x86_64")
def test_info() -> None:
    done = run("info")
    assert (done.returncode, done.stderr) == (0, "")
    assert "API version 12" in done.stdout
    assert re.search(r"^guests +can run$", done.stdout, re.MULTILINE)
    assert re.search(r"^backend +(svm|vmx|pvm|arm64|riscv64|unknown): ", done.stdout, re.M)
    assert re.search(r"^counters +\S", done.stdout, re.MULTILINE)
    assert re.search(r"^ +IMMEDIATE_EXIT +\d", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("device", "pattern"),
    [("/nonexistent/kvm", "no KVM device"), ("/dev/null", "not a KVM device")],
)
def test_info_says_why_not(device: str, pattern: str) -> None:
    done = run("info", "--device", device)
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(rf"^guests +cannot run: {pattern}$", done.stdout, re.MULTILINE)


def test_info_without_permission(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0)
    code = "import sys; from kvmcpu import info; w, t = info.describe(sys.argv[1]); print(w, t)"
    if os.getuid() == 0:
        # root may open everything: become somebody else, once all is imported.
        nobody = pwd.getpwnam("nobody").pw_uid
        code = code.replace("import info;", f"import info; import os; os.setuid({nobody});")
        # Outside of tmp_path, whose directories nobody else may enter.
        device = Path("/dev/shm") / f"kvmcpu-test-{os.getpid()}"
        device.touch(mode=0o600)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, device], capture_output=True, text=True, timeout=60
        )
    finally:
        device.unlink()
    assert done.stdout.startswith("False "), done.stderr
    assert "cannot run: no permission for the KVM device" in done.stdout
    assert "usermod" in done.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_messages_that_cannot_be_written(unbuffered: str) -> None:
    """The status is that of the failure: Python would make it 120."""
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    for words in (["info"], ["run", "/nonexistent/image"], ["lab", "list"]):
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "kvmcpu", *words]
            assert subprocess.run(command, stdout=full, stderr=full, env=env).returncode == 125


def test_info_to_a_reader_that_is_gone() -> None:
    script = '"$0" -m kvmcpu info | true; exit "${PIPESTATUS[0]}"'
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", script, sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (0, 1, 128 + signal.SIGPIPE)
    assert done.stderr == ""


# ---------------------------------------------------------------------------- the PC


@pytest.mark.kvm(arch="x86_64")
def test_disks_and_configurations(tmp_path: Path) -> None:
    image = flat(tmp_path, EXIT_7)
    says_one_line(run("run", "--disk", tmp_path / "none", image), "No such file")
    says_one_line(run("run", "--disk", tmp_path, image), "directory")
    odd = tmp_path / "odd"
    odd.write_bytes(b"x")
    says_one_line(run("run", "--disk", odd, image), "512")
    says_one_line(run("run", "--disk", odd), "firmware")
    three = ["--disk", odd] * 3
    says_one_line(run("run", *three, image), "up to two disks")
    says_one_line(run("run", "--module", odd, image), "no multiboot kernel")
    config = tmp_path / "pc.toml"
    config.write_text(f'memory = "1MiB"\nimage = "{image}"\n')
    assert run("run", "--config", config).returncode == 7
    config.write_text("memory = \n")
    says_one_line(run("run", "--config", config), "pc.toml: it is not TOML")
    config.write_text("speed = 1\n")
    says_one_line(run("run", "--config", config), "unknown key speed")
    config.write_text(f'image = "{image}"\n' + '[[device]]\ntype = "DebugExit"\n' * 2)
    says_one_line(run("run", "--config", config), "overlap")
    says_one_line(run("run", "--config", tmp_path / "none.toml"), "No such file")
    says_one_line(run("run", "--cpus", "0", image), "1 to 255 CPUs")
    data = tmp_path / "disk"
    data.write_bytes(bytes(1 << 16))
    assert run("run", "--disk", f"{data},ro", "--cpus", "2", image).returncode == 7


@pytest.mark.kvm(arch="x86_64")
def test_a_reset_is_told(tmp_path: Path) -> None:
    done = run("run", flat(tmp_path, "mov al, 0xfe; out 0x64, al; 1: jmp 1b"))
    assert done.returncode == 0
    assert done.stderr == "kvmcpu: the guest reset its machine\n"


@pytest.mark.kvm(arch="x86_64")
def test_a_disk_without_permission(tmp_path: Path) -> None:
    disk, image = tmp_path / "disk.img", flat(tmp_path, EXIT_7)
    disk.write_bytes(bytes(4096))
    command = [sys.executable, "-m", "kvmcpu", "run", "--disk", disk, image]
    if os.getuid() == 0:
        # root may open everything, unless it gives up the capabilities for that.
        nobody = pwd.getpwnam("nobody").pw_uid
        os.chown(disk, nobody, -1)
        lowered = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        if shutil.which("setpriv") is None or subprocess.run([*lowered, "true"]).returncode:
            pytest.skip("root without setpriv (util-linux): every file can be opened")
        command = [*lowered, *command]
    disk.chmod(0o600 if os.getuid() == 0 else 0)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    says_one_line(done, r"disk\.img.*Permission denied")
