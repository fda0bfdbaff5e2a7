# SPDX-License-Identifier: MIT
"""The pytest plugin: the marker kvm, and tests that run in a lab as if they ran here."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from kvmcpu.lab.targets import host
from kvmcpu.testing.needs import LABS, Need, Offer, here, need

STARTS_PYTEST = pytest.mark.outside("it starts pytest again and again, which is the same there")
PVM = Offer("x86_64", name="pvm")
COUNTING = Offer("x86_64", interrupts=True, counters=True, name="vmx")


def run(
    directory: Path, text: str, *options: str, **files: str
) -> subprocess.CompletedProcess[str]:
    """pytest on a file of tests, in a directory of its own."""
    (directory / "pytest.ini").write_text("[pytest]\n")
    (directory / "test_it.py").write_text(text)
    for name, content in files.items():
        (directory / f"{name}.py").write_text(content)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
    )


def outcomes(path: Path) -> dict[str, tuple[list[str], str]]:
    """Of each test: what went wrong with its message, and what it printed."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        wrong = [f"{e.tag}: {e.get('message')}" for e in case if not e.tag.startswith("system")]
        printed = "".join(e.text or "" for e in case if e.tag in ("system-out", "system-err"))
        name = f"{case.get('classname')}::{case.get('name')}"
        found[name] = ([text for text in wrong if text != "properties: None"], printed)
    return found


ALL_SORTS = """
import os, sys, warnings
import pytest

@pytest.fixture(scope="module")
def shared():
    print("made")
    yield []
    print("unmade")

@pytest.fixture
def broken():
    raise RuntimeError("the fixture is broken")

@pytest.fixture
def unclean():
    yield
    raise RuntimeError("torn down")

def test_passes(shared):
    print("to the output")
    print("to the errors", file=sys.stderr)
    shared.append(1)

def test_fails(shared):
    print("before")
    assert shared == [2]

def test_skips():
    pytest.skip("has its reason")

@pytest.mark.xfail(reason="known")
def test_fails_as_expected():
    assert 0

@pytest.mark.xfail(strict=True)
def test_passes_unexpectedly():
    pass

def test_error(broken):
    pass

def test_unclean(unclean):
    pass

@pytest.mark.parametrize("what", ["a b", "ü/[]", 3.5])
def test_parameters(what):
    os.write(1, repr(what).encode())

class TestClass:
    def test_method(self):
        warnings.warn("mind this", DeprecationWarning)
        with open("written", "w") as file:
            file.write("by a test")
"""


@pytest.mark.lab
def test_as_if_here(tmp_path: Path) -> None:
    """Every test is reported under its name with its outcome, its message and its output."""
    here_, there = tmp_path / "here", tmp_path / "there"
    for directory in (here_, there):
        directory.mkdir()
    a = run(here_, ALL_SORTS, "--junitxml=xml", "-v")
    b = run(there, ALL_SORTS, "--junitxml=xml", "-v", f"--lab={host()}")
    assert (a.returncode, b.returncode) == (1, 1), b.stdout + b.stderr
    assert outcomes(there / "xml") == outcomes(here_ / "xml")
    assert len(outcomes(there / "xml")) == 11
    assert (there / "written").read_text() == "by a test"

    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if "::" in line and "xml" not in line]

    assert lines(b.stdout) == lines(a.stdout)
    assert "DeprecationWarning: mind this" in b.stdout
    assert f"{host()} lab, KVM of Linux" in b.stdout
    assert "has its reason" in b.stdout.partition("= not run =")[2]


DEADLY = """
import os, time
import pytest

def test_before():
    pass

def test_panic():
    with open("/proc/sysrq-trigger", "w") as file:
        file.write("c")
    time.sleep(60)

def test_between():
    pass

def test_endless():
    print("last words", flush=True)
    time.sleep(1000)

def test_exit():
    os.write(2, b"gone")
    os._exit(3)

def test_after():
    pass
"""


@pytest.mark.lab
def test_deaths(tmp_path: Path) -> None:
    """A test in which the lab dies has failed, with the reason; the others go on."""
    done = run(tmp_path, DEADLY, "--junitxml=xml", f"--lab={host()}", "--lab-timeout=10")
    assert done.returncode == 1
    found = outcomes(tmp_path / "xml")
    assert not any(found[f"test_it::test_{name}"][0] for name in ("before", "between", "after"))
    assert "panic" in found["test_it::test_panic"][0][0]
    assert "took longer than --lab-timeout=10" in done.stdout
    assert 'test_it.py", line 18 in test_endless' in done.stdout  # where it was
    assert "pytest in the lab ended with status 3" in done.stdout
    assert "3 failed, 3 passed" in done.stdout


@pytest.mark.lab
def test_selection_and_end(tmp_path: Path) -> None:
    """Options that select tests are obeyed; after -x no other test runs."""
    text = """
import pytest, sys

@pytest.mark.parametrize("n", range(9))
def test_n(n):
    open(f"ran{n}", "w").close()
    assert n != 4

def test_output():
    print("seen at once")
"""
    done = run(tmp_path, text, f"--lab={host()}", "-x", "-s", "-k", "not 0", "test_it.py")
    assert done.returncode == 1
    assert sorted(path.name for path in tmp_path.glob("ran*")) == ["ran1", "ran2", "ran3", "ran4"]
    assert "1 failed, 3 passed, 1 deselected" in done.stdout
    assert "stopping after 1 failures" in done.stdout


@pytest.mark.lab
def test_places(tmp_path: Path) -> None:
    """Of several places each test gets the first that has what it needs; the rest is told."""
    other = "riscv64" if host() != "riscv64" else "arm64"
    text = f"""
import os, pytest

@pytest.mark.kvm(interrupts=True)
def test_interrupts():
    assert os.uname().nodename.startswith("lab-")

@pytest.mark.kvm(arch="{other}")
def test_other():
    pass

def test_any():
    print(os.uname().nodename)
    assert not os.uname().nodename.startswith("lab-")
"""
    if here().interrupts:
        pytest.skip("this host's KVM has what only a lab has elsewhere")
    done = run(tmp_path, text, f"--lab=host,{host()}")
    assert done.returncode == 0, done.stdout
    assert "1 test: here, " in done.stdout
    assert f"1 test: {host()} lab, KVM of Linux" in done.stdout
    why = f"needs a KVM of {other}; this is" if here().arch else "no KVM here"
    assert f"1 test: {why}" in done.stdout


@pytest.mark.lab
def test_interrupt(tmp_path: Path) -> None:
    """Ctrl-C ends it with pytest's own words, and the machine with it."""
    (tmp_path / "test_it.py").write_text(
        "import time\ndef test_a():\n    open('began', 'w').close()\n    time.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--lab={host()}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        limit = time.monotonic() + 120
        while not (tmp_path / "began").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        machines = children.read_text().split()
        assert machines
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "KeyboardInterrupt" in out
    assert not any(Path(f"/proc/{pid}").exists() for pid in machines)


@STARTS_PYTEST
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--lab=vax"], "--lab=vax: the places are host, x86_64, arm64, riscv64"),
        (["--lab=arm64", "--pdb"], "--pdb finds no terminal in a lab"),
        (["--lab=arm64", "--lab-options=--memory x"], "--lab-options: argument --memory"),
        (["--lab=arm64", "--lab-options=--arch arm64"], "--lab says the architecture"),
        (["--lab=arm64", "--lab-options=--nothing"], "--lab-options: unrecognized arguments"),
        (["--lab=arm64", "--lab-options=--qemu /nowhere"], "/nowhere is not there"),
    ],
)
def test_wrong_options(tmp_path: Path, options: list[str], says: str) -> None:
    done = run(tmp_path, "def test_a(): pass", *options)
    assert done.returncode == 4
    assert says in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout


@STARTS_PYTEST
def test_wrong_markers(tmp_path: Path) -> None:
    for marker, says in (
        ("kvm(interupts=True)", "interupts? The marker is kvm(arch="),
        ("kvm('x86_64')", "'x86_64'? The marker is kvm(arch="),
        ("kvm(arch='vax')", "there are x86_64, arm64, riscv64"),
    ):
        text = f"import pytest\n@pytest.mark.{marker}\ndef test_a(): pass"
        done = run(tmp_path, text)
        assert done.returncode == 4
        assert says in done.stderr
        assert "Traceback" not in done.stderr


@STARTS_PYTEST
def test_collect_only(tmp_path: Path) -> None:
    """Nothing is started to list the tests."""
    done = run(tmp_path, "def test_a(): pass", "--lab=arm64", "--collect-only", "-q")
    assert done.returncode == 0
    assert "test_it.py::test_a" in done.stdout


@pytest.mark.parametrize(
    ("needed", "offer", "lacks"),
    [
        (Need(), PVM, None),
        (Need(), Offer(None, name="no KVM here: why"), "no KVM here: why"),
        (Need(("x86_64",)), PVM, None),
        (Need(("arm64", "riscv64")), PVM, "needs a KVM of arm64 or riscv64; this is pvm"),
        (Need(interrupts=True), LABS["x86_64"], None),
        (Need(counters=True), LABS["x86_64"], "needs hardware performance counters; this is the"),
        (Need(interrupts=True, counters=True), COUNTING, None),
        (Need(interrupts=True, counters=True), PVM, "delivers them and hardware performance"),
    ],
)
def test_lack(needed: Need, offer: Offer, lacks: str | None) -> None:
    assert (needed.lack(offer) or "").find(lacks or "") >= 0
    assert bool(needed.lack(offer)) == bool(lacks)


def test_markers_add_up(request: Any) -> None:
    """A test's, its class's and its module's markers hold together."""
    node = request.node
    assert need(node) is None
    node.add_marker(pytest.mark.kvm(arch=("x86_64", "arm64")))
    node.add_marker(pytest.mark.kvm(interrupts=True))
    node.add_marker(pytest.mark.kvm(arch="arm64", counters=True))
    assert need(node) == Need(("arm64",), interrupts=True, counters=True)
    node.add_marker(pytest.mark.kvm(arch="riscv64"))
    with pytest.raises(pytest.UsageError, match="no architecture fits"):
        need(node)
