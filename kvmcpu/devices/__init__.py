# SPDX-License-Identifier: MIT
"""Devices: one file each. ``base`` has the vocabulary in which they are written."""

from kvmcpu.devices.base import Device, DeviceError, Mmio, Ports, Register, State

__all__ = ["Device", "DeviceError", "Mmio", "Ports", "Register", "State"]
