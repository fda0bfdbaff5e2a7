# SPDX-License-Identifier: MIT
"""Names of a package that are imported when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def later(
    namespace: dict[str, Any], modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``: modules says in which module each name is.

    Where that is "", the name is a module itself. namespace is the package's ``globals()``.
    """
    package = namespace["__name__"]

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{modules[name] or name}")
        namespace[name] = getattr(module, name) if modules[name] else module
        return namespace[name]

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*namespace, *namespace["__all__"]})

    return __getattr__, __dir__
