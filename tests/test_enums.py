# SPDX-License-Identifier: MIT
"""The numbers of the KVM interface, held against the header that this machine has."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

import kvmcpu
from kvmcpu import Cap, ExitReason

HEADER = Path("/usr/include/linux/kvm.h")

# Names that begin like exit reasons and are none: values of fields of an exit.
NO_REASONS = {"HYPERV_SYNIC", "HYPERV_HCALL", "HYPERV_SYNDBG", "XEN_HCALL", "IO_IN", "IO_OUT"}


def defined(prefix: str) -> dict[str, int]:
    if not HEADER.exists():
        pytest.skip(f"no {HEADER} (Debian: linux-libc-dev)")
    found = re.findall(rf"^#define\s+{prefix}([A-Z0-9_]+)\s+(\d+)\b", HEADER.read_text(), re.M)
    return {name: int(value) for name, value in found}


def test_capabilities_are_those_of_the_header() -> None:
    # The header may be newer than we are: then it has more.
    ours = {name: cap.value for name, cap in Cap.__members__.items()}
    theirs = defined("KVM_CAP_")
    assert {name: theirs[name] for name in theirs.keys() & ours.keys()} == {
        name: ours[name] for name in theirs.keys() & ours.keys()
    }
    assert {name for name, value in theirs.items() if value <= max(ours.values())} <= ours.keys()


def test_exit_reasons_are_those_of_the_header() -> None:
    theirs = {n: v for n, v in defined("KVM_EXIT_").items() if n not in NO_REASONS}
    ours = {name: reason.value for name, reason in ExitReason.__members__.items()}
    common = {n: v for n, v in theirs.items() if v <= max(ours.values()) and not n[-1].islower()}
    assert {n: ours.get(n) for n in common if "_FLAG_" not in n} == {
        n: v for n, v in common.items() if "_FLAG_" not in n
    }


def test_no_number_has_two_names() -> None:
    for enum in (Cap, ExitReason):
        assert len(enum.__members__) == len(list(enum))


def test_what_only_a_vm_can_tell() -> None:
    # arm64's device answers EINVAL for MSI_DEVID.
    class Device:
        error = errno.EINVAL

        def check_extension(self, cap: int) -> int:
            if cap == Cap.MSI_DEVID:
                raise kvmcpu.KvmError(self.error, "KVM_CHECK_EXTENSION")
            return int(cap == Cap.USER_MEMORY)

    device = Device()
    assert kvmcpu.capabilities(device) == {Cap.USER_MEMORY: 1}  # type: ignore[arg-type]
    device.error = errno.EIO
    with pytest.raises(kvmcpu.KvmError, match="KVM_CHECK_EXTENSION"):
        kvmcpu.capabilities(device)  # type: ignore[arg-type]


def test_known_values() -> None:
    # From Linux 6.18's header, which machines with an older one cannot check.
    assert Cap.USER_MEMORY == 3
    assert Cap.S390_PROTECTED_ASYNC_DISABLE == 224
    assert Cap.GUEST_MEMFD == 234
    assert Cap.GUEST_MEMFD_FLAGS == 244
    assert ExitReason.MMIO == 6
    assert ExitReason.MEMORY_FAULT == 39
    assert ExitReason.TDX == 40


def test_capabilities_of_this_host(kvm: kvmcpu.Kvm, vm: kvmcpu.VM) -> None:
    found = kvmcpu.capabilities(kvm)
    assert found[Cap.USER_MEMORY]
    assert found[Cap.NR_MEMSLOTS] >= 32
    assert all(found.values())
    assert found == {cap: kvm.check_extension(cap) for cap in found}
    # By enum and by number is the same.
    assert kvm.check_extension(Cap.NR_VCPUS) == kvm.check_extension(9) > 0
    assert kvmcpu.capabilities(vm)[Cap.USER_MEMORY]


def test_exit_has_a_reason_of_the_enum(guest) -> None:
    g = guest("hlt")
    g.run()
    assert g.cpu.exit is not None
    assert g.cpu.exit.reason == ExitReason.HLT
    assert g.cpu.exit.name == ExitReason(g.cpu.exit.reason).name
