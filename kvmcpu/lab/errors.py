# SPDX-License-Identifier: MIT
"""What goes wrong with a lab."""

from __future__ import annotations


class LabError(Exception):
    """The lab could not be prepared or started; the message says what to do."""


class LabCrash(LabError):
    """The lab's machine died or its kernel crashed while a command ran in it."""


class LabTimeout(LabError):
    """The command was still running when its time was over."""
