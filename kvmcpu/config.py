# SPDX-License-Identifier: MIT
"""A system as a TOML file.

::

    board = "pc"
    memory = "64MiB"
    cpus = 2
    image = "kernel.elf"
    arguments = ["console=ttyS0"]
    disks = ["disk.img,overlay"]

    [[device]]
    type = "Serial16550"
    port = 0x3F8

Paths are relative to the file. Without ``device`` tables the board has its standard devices; a
device of one's own is named ``"module:Class"``.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from kvmcpu import devices
from kvmcpu.devices import Device
from kvmcpu.system import ConfigError, System

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SYSTEM = ("board", "memory", "cpus", "unassigned")
_LOADED = ("image", "arguments", "modules", "mode", "address")
_KEYS = (*_SYSTEM, "firmware", "disks", *_LOADED, "device")


def load(path: str | os.PathLike[str], **options: Any) -> System:
    """The system that a file describes. options: System's, in place of the file's.

    Raises ConfigError, which names the file and what is wrong in it, OSError, LoadError.
    """
    file = Path(path)
    try:
        return loads(file.read_text(encoding="utf-8"), file.parent, **options)
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{os.fspath(path)}: {error}") from error


def loads(text: str, directory: str | os.PathLike[str] = ".", **options: Any) -> System:
    """The same from text; paths in it are relative to a directory."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"it is not TOML: {error}") from error
    unknown = sorted(set(table) - set(_KEYS))
    if unknown:
        raise ConfigError(f"unknown key {', '.join(unknown)}; there are {', '.join(_KEYS)}")
    arguments = {key: table[key] for key in _SYSTEM if key in table}
    if "firmware" in table:
        arguments["firmware"] = _place(directory, _typed(table, "firmware", str))
    if "disks" in table:
        arguments["disks"] = [_place(directory, spec) for spec in _texts(table, "disks")]
    if "device" in table:
        entries = table["device"]
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise ConfigError("device is a list of tables: [[device]]")
        arguments["devices"] = [_device(entry) for entry in entries]
    system = System(**(arguments | options))
    if "image" in table:
        system.load(
            _place(directory, _typed(table, "image", str)),
            _texts(table, "arguments"),
            modules=[_place(directory, module) for module in _texts(table, "modules")],
            mode=table.get("mode"),
            address=table.get("address"),
        )
    elif any(key in table for key in _LOADED):
        raise ConfigError("arguments, modules, mode and address are for an image, which is missing")
    return system


def _place(directory: str | os.PathLike[str], path: str) -> str:
    return os.path.join(directory, path)


def _typed(table: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(table[key], kind):
        raise ConfigError(f"{key} is a {kind.__name__}, not {table[key]!r}")
    return table[key]


def _texts(table: Mapping[str, Any], key: str) -> list[str]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{key} is a list of strings, not {value!r}")
    return value


def device_class(name: str) -> type[Device]:
    """The class of a device by its name, ``"Serial16550"`` or ``"module:Class"``."""
    where, _, what = name.rpartition(":")
    try:
        module = importlib.import_module(where) if where else devices
    except ImportError as error:
        raise ConfigError(f"the device {name!r}: {error}") from error
    found = getattr(module, what, None)
    if not (isinstance(found, type) and issubclass(found, Device)) or found is Device:
        known = [n for n in devices.__all__ if n not in ("Device", "DeviceError")]
        known = [n for n in known if isinstance(getattr(devices, n), type)]
        known = [n for n in known if issubclass(getattr(devices, n), Device)]
        raise ConfigError(f"there is no device {name!r}; there are {', '.join(known)}")
    return found


def _device(entry: Mapping[str, Any]) -> Device:
    options = dict(entry)
    name = options.pop("type", None)
    if not isinstance(name, str):
        raise ConfigError(f'a device has a type = "NAME": {entry!r}')
    kind = device_class(name)
    known = [option.name for option in dataclasses.fields(kind)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"{name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error


def dumps(system: System) -> str:
    """A system as TOML, from which ``loads()`` makes it again.

    Raises ConfigError for what cannot be written down, such as a disk that is not a file's name.
    """
    table: dict[str, Any] = {
        "board": system.board_name,
        "memory": system.memory,
        "cpus": system.cpu_count,
        "unassigned": system.unassigned,
    }
    if system.firmware is not None:
        table["firmware"] = os.fspath(system.firmware)
    if system.disks:
        table["disks"] = system.disks
    if system.image is not None:
        image, arguments, modules = system.image
        table["image"] = os.fspath(image)
        if arguments:
            table["arguments"] = list(arguments)
        if modules:
            table["modules"] = list(modules)
    if system.custom_devices:
        table["device"] = [_entry(device, system) for device in system.devices]
    try:
        return tomli_w.dumps(table)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the system cannot be written as TOML: {error}") from error


def _entry(device: Device, system: System) -> dict[str, Any]:
    kind = type(device)
    name = kind.__name__
    if getattr(devices, name, None) is not kind:
        name = f"{kind.__module__}:{kind.__qualname__}"
    options = device.options()
    if options.get("disks") == system.disks:
        options.pop("disks")  # they stand with the system
    return {"type": name, **options}
