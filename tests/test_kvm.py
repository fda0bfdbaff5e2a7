# SPDX-License-Identifier: MIT
"""The KVM device: opening it, what can go wrong with that, and what it tells of the host."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
import textwrap
import threading

import pytest

import kvmcpu
from kvmcpu import Cap

NOBODY = 65534


@pytest.mark.kvm
def test_open_and_close() -> None:
    """V4: the device is opened by name, says which one it is, and closes once."""
    kvm = kvmcpu.Kvm()
    assert kvm.path == "/dev/kvm"
    assert os.fstat(kvm.fileno()).st_rdev == os.stat("/dev/kvm").st_rdev
    assert not os.get_inheritable(kvm.fileno())
    assert not kvm.closed
    kvm.close()
    kvm.close()
    assert kvm.closed
    with pytest.raises(kvmcpu.ClosedError):
        kvm.fileno()
    with pytest.raises(kvmcpu.ClosedError):
        kvm.check_extension(0)
    with pytest.raises(kvmcpu.ClosedError):
        kvm.create_vm()


@pytest.mark.kvm
def test_context_manager() -> None:
    with kvmcpu.Kvm("/dev/kvm") as kvm:
        assert kvm.api_version == 12
    assert kvm.closed


@pytest.mark.kvm(arch="x86_64")
def test_vm_outlives_the_device() -> None:
    """V4: a VM goes on when the device that it was made from is closed, vCPUs included."""
    with kvmcpu.Kvm() as kvm:
        vm = kvm.create_vm()
    with vm:
        ram = vm.add_memory(0, "64KiB")
        ram[0x1000] = 0xF4
        cpu = vm.create_vcpu(cpuid=None)
        cpu.sregs.cs.update({"base": 0, "selector": 0})
        cpu.regs.rip = 0x1000
        cpu.run()
        assert cpu.exit.name == "HLT"


# ---- four ways not to be a KVM


def test_not_found(tmp_path) -> None:
    path = str(tmp_path / "kvm")
    with pytest.raises(kvmcpu.KvmNotFoundError) as caught:
        kvmcpu.Kvm(path)
    assert caught.value.errno == errno.ENOENT
    assert path in str(caught.value)
    assert isinstance(caught.value, kvmcpu.KvmError)
    assert isinstance(caught.value, OSError)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make device nodes and drop privileges")
def test_device_without_a_driver(tmp_path) -> None:
    """A node whose driver is not there is 'not found' too: the module is to be loaded."""
    node = tmp_path / "kvm"
    try:
        os.mknod(node, 0o600 | 0o020000, os.makedev(10, 250))
    except PermissionError as error:
        pytest.skip(f"this container may not make device nodes: {error}")
    with pytest.raises((kvmcpu.KvmNotFoundError, kvmcpu.KvmPermissionError)) as caught:
        kvmcpu.Kvm(str(node))
    if caught.value.errno in (errno.EPERM, errno.EACCES):
        pytest.skip("the device cgroup of this container refuses unknown devices")
    assert caught.value.errno in (errno.ENODEV, errno.ENXIO)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_no_permission(tmp_path) -> None:
    """A process that dropped its privileges meets a file that it may not open, and is told so."""
    node = tmp_path / "kvm"
    node.touch()
    node.chmod(0)
    # What is on the way to the file must not be what refuses.
    for directory in [tmp_path, *tmp_path.parents]:
        if directory.stat().st_uid == os.getuid() and directory.name.startswith(("pytest", "test")):
            directory.chmod(0o755)
    script = f"""
        import os, kvmcpu
        os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
        try:
            kvmcpu.Kvm({str(node)!r})
        except kvmcpu.KvmError as error:
            print(type(error).__name__, error.errno, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    name, number, text = done.stdout.split(" ", 2)
    assert name == "KvmPermissionError"
    assert int(number) == errno.EACCES
    assert str(node) in text
    assert "group" in text  # what to do about it


@pytest.mark.parametrize("kind", ["null", "file", "directory"])
def test_not_a_kvm(kind, tmp_path) -> None:
    path = {"null": "/dev/null", "file": str(tmp_path / "file"), "directory": str(tmp_path)}[kind]
    if kind == "file":
        (tmp_path / "file").write_bytes(b"\x7fELF")
    with pytest.raises(kvmcpu.NotKvmError) as caught:
        kvmcpu.Kvm(path)
    assert path in str(caught.value)


def test_errors_have_one_base() -> None:
    for error in (
        kvmcpu.KvmNotFoundError,
        kvmcpu.KvmPermissionError,
        kvmcpu.NotKvmError,
        kvmcpu.KvmVersionError,
        kvmcpu.UnsupportedError,
    ):
        assert issubclass(error, kvmcpu.KvmError)
        assert error.__doc__


@pytest.mark.parametrize("arguments", [(1,), (None,), (b"/dev/kvm", 2), ("a\0b",)])
def test_constructor_arguments(arguments) -> None:
    with pytest.raises((TypeError, ValueError)):
        kvmcpu.Kvm(*arguments)


# ---- what it tells


def test_numbers(kvm) -> None:
    assert kvm.api_version == 12
    assert kvm.vcpu_mmap_size >= 4096
    assert kvm.vcpu_mmap_size % 4096 == 0
    assert kvm.arch == {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
    assert kvm.backend in ("svm", "vmx", "pvm", "arm64", "riscv64", "unknown")


def test_capabilities_by_enum_and_number(kvm) -> None:
    assert kvm.check_extension(Cap.USER_MEMORY) == kvm.check_extension(3) == 1
    assert kvm.check_extension(Cap.NR_VCPUS) >= 1
    assert kvm.check_extension(Cap.NR_MEMSLOTS) >= 32
    assert kvm.check_extension(1 << 20) == 0  # a number that no kernel knows
    with pytest.raises((ValueError, OverflowError)):
        kvm.check_extension(-1)
    with pytest.raises((ValueError, OverflowError)):
        kvm.check_extension(1 << 40)
    with pytest.raises(TypeError):
        kvm.check_extension("USER_MEMORY")


def test_capabilities_of_a_vm(kvm, vm) -> None:
    everything = kvmcpu.capabilities(vm)
    assert everything[Cap.USER_MEMORY] == 1
    assert vm.check_extension(Cap.USER_MEMORY) == 1
    assert set(everything) <= set(Cap)
    assert kvmcpu.capabilities(kvm)[Cap.USER_MEMORY] == 1


@pytest.mark.kvm(arch="x86_64")
def test_supported_cpuid(kvm) -> None:
    leaves = kvm.supported_cpuid()
    assert all(len(leaf) == 7 for leaf in leaves)
    assert all(isinstance(word, int) and 0 <= word < 1 << 32 for leaf in leaves for word in leaf)
    functions = {leaf[0] for leaf in leaves}
    assert {0, 1, 0x80000000} <= functions
    (basic,) = [leaf for leaf in leaves if leaf[0] == 0]
    vendor = b"".join(basic[i].to_bytes(4, "little") for i in (4, 6, 5))
    assert vendor.isascii()
    assert basic[3] >= 1  # the highest basic leaf
    # A list of the caller's own: what is done to it does not matter.
    leaves.clear()
    assert kvm.supported_cpuid()


@pytest.mark.kvm(arch="x86_64")
def test_msr_lists(kvm) -> None:
    indices = kvm.msr_index_list()
    assert {0x10, 0x174, 0xC0000081} <= set(indices)  # TSC, SYSENTER_CS, STAR
    assert all(0 <= index < 1 << 32 for index in indices)
    assert len(set(indices)) == len(indices)
    assert isinstance(kvm.msr_feature_index_list(), list)


@pytest.mark.kvm(arch="x86_64")
def test_feature_msrs(kvm) -> None:
    readable = 0
    for index in kvm.msr_feature_index_list():
        try:
            assert 0 <= kvm.get_msr_feature(index) < 1 << 64
            readable += 1
        except kvmcpu.KvmError:
            pass  # listed for another make of processor
    assert readable > 0
    with pytest.raises(kvmcpu.KvmError, match="0x7fffffff"):
        kvm.get_msr_feature(0x7FFFFFFF)


def test_create_vm_arguments(kvm) -> None:
    with kvm.create_vm(tick_frequency=1_000_000) as vm:
        assert vm.tick_frequency == 1_000_000
        assert vm.queue.tick_frequency == 1_000_000
    with kvm.create_vm() as vm:
        assert vm.tick_frequency == 10**12  # V1
    if kvm.arch != "riscv64":  # which looks at no type
        with pytest.raises(kvmcpu.KvmError) as caught:
            kvm.create_vm(type=12345)
        assert caught.value.errno == errno.EINVAL
        assert "KVM_CREATE_VM" in str(caught.value)
    for frequency in (0, -1, 1 << 65, "fast", 1.5):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            kvm.create_vm(tick_frequency=frequency)
    with pytest.raises(TypeError):
        kvm.create_vm(0)


@pytest.mark.kvm(arch="x86_64")
def test_from_many_threads(kvm) -> None:
    results: list[object] = []

    def work() -> None:
        try:
            for _ in range(20):
                with kvm.create_vm() as vm:
                    vm.add_memory(0, "4KiB")
                results.append(len(kvm.supported_cpuid()))
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [len(kvm.supported_cpuid())] * 80


@pytest.mark.kvm
def test_reprs(kvm, vm) -> None:
    assert "/dev/kvm" in repr(kvm)
    assert repr(vm).startswith("<VM")
    vm.close()
    assert "closed" in repr(vm)


OTHER_VERSION = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/kvm.h>
#include <stdarg.h>

int ioctl(int fd, unsigned long request, ...)
{
	static int (*next)(int, unsigned long, void *);
	va_list args;
	void *arg;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	if (!next)
		next = dlsym(RTLD_NEXT, "ioctl");
	return request == KVM_GET_API_VERSION ? 11 : next(fd, request, arg);
}
"""


@pytest.mark.kvm(arch="x86_64")
def test_another_api_version(tmp_path):
    """A device that speaks another version of the API, by a library in front of ioctl()."""
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(OTHER_VERSION)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    code = "import kvmcpu\ntry: kvmcpu.Kvm()\nexcept kvmcpu.KvmVersionError as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "version 11" in done.stdout
    assert "12" in done.stdout
