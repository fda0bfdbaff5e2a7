# SPDX-License-Identifier: MIT
"""Make the extension's docstrings from its stub, so that they are written once.

    gendocs.py kvmcpu/_kvm.pyi OUT.h

OUT.h gets one string macro for each documented thing of the stub:

    DOC_<module>             the module (DOC__kvm for _kvm.pyi), if it has a docstring
    DOC_<function>           a function
    DOC_<Class>              a class, an enumeration or an exception
    DOC_<Class>_<member>     a method, a property, an annotated attribute, an enumeration's member

Functions and methods begin with the signature in the form from which CPython makes
``__text_signature__``; so do classes that have ``__init__`` or ``__new__``. What has no place for
a docstring in Python syntax (attributes, constants, members) has it as the string that follows.

DOCS(X) expands to X(name) for every DOC_name, in the order of their names: for types that are made
from tables, which look their texts up.

Every public name must have a docstring; names that begin with an underscore need none (methods
among them get their signature all the same).
"""

from __future__ import annotations

import ast
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ENUM_BASES = {"Enum", "IntEnum", "StrEnum", "Flag", "IntFlag"}


class StubError(Exception):
    """What is wrong with the stub, a line for each complaint."""


def last_name(node: ast.expr) -> str:
    """``IntEnum`` for both ``IntEnum`` and ``enum.IntEnum``; empty if it is no such thing."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    return node.id if isinstance(node, ast.Name) else ""


def decorators(function: ast.FunctionDef) -> list[str]:
    return [last_name(d) for d in function.decorator_list]


def flatten(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body, those inside ``if sys.version_info …:`` included."""
    for node in body:
        if isinstance(node, ast.If):
            yield from flatten(node.body)
            yield from flatten(node.orelse)
        else:
            yield node


def string(node: ast.stmt | None) -> str | None:
    """The text of a bare string literal."""
    if (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ):
        return inspect.cleandoc(node.value.value)
    return None


def default(node: ast.expr) -> str:
    """A default as the signature shows it: literals as they stand, anything else as ``...``."""
    try:
        ast.literal_eval(node)
    except ValueError:
        return "..."
    return ast.unparse(node)


def signature(function: ast.FunctionDef, first: str | None, skip: int) -> str:
    """``(first, a, /, b=1, *, c)``: without annotations, and without the first ``skip`` arguments.

    ``first`` is what stands for the object that the C function is called with, ``$self``.
    """
    args = function.args
    positional = [*args.posonlyargs, *args.args]
    defaults = [""] * (len(positional) - len(args.defaults))
    defaults += ["=" + default(node) for node in args.defaults]

    parts = [first] if first else []
    for index, (arg, value) in enumerate(zip(positional, defaults, strict=True)):
        if index >= skip:
            parts.append(arg.arg + value)
        if index + 1 == len(args.posonlyargs) and index >= skip:
            parts.append("/")
    if first and "/" not in parts:
        parts.insert(1, "/")  # the object itself is never given by name
    if args.vararg:
        parts.append("*" + args.vararg.arg)
    elif args.kwonlyargs:
        parts.append("*")
    for arg, node in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        parts.append(arg.arg + ("=" + default(node) if node else ""))
    if args.kwarg:
        parts.append("**" + args.kwarg.arg)
    return f"({', '.join(parts)})"


def with_signature(name: str, sig: str, doc: str | None) -> str:
    return f"{name}{sig}\n--\n\n{doc or ''}"


class Docs:
    """The texts of a stub by their dotted names, and what is wrong with it."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.texts: dict[str, str] = {}
        self.complaints: list[str] = []
        doc = ast.get_docstring(tree)
        if doc is not None:
            self.texts[module] = doc
        self.add_body(tree.body, prefix="", owner=None)

    def add(self, path: str, text: str, line: int) -> None:
        if path in self.texts:
            self.complaints.append(f"{line}: {path} is there twice")
        self.texts[path] = text

    def missing(self, path: str, line: int) -> None:
        self.complaints.append(f"{line}: {path} has no docstring")

    def add_body(self, body: list[ast.stmt], prefix: str, owner: ast.ClassDef | None) -> None:
        """Everything that a module or a class (the owner) defines."""
        statements = list(flatten(body))
        functions: dict[str, list[ast.FunctionDef]] = {}
        for node, after in zip(statements, [*statements[1:], None], strict=True):
            if isinstance(node, ast.FunctionDef):
                functions.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.ClassDef):
                self.add_class(node, prefix)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if last_name(node.annotation) != "TypeAlias":
                    self.add_value(node.target.id, node.lineno, after, prefix)
            elif isinstance(node, ast.Assign) and owner is not None:
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        self.add_value(target.id, node.lineno, after, prefix)
        for name, variants in functions.items():
            self.add_function(name, variants, prefix, owner)

    def add_value(self, name: str, line: int, after: ast.stmt | None, prefix: str) -> None:
        doc = string(after)
        if doc is not None:
            self.add(prefix + name, doc, line)
        elif not name.startswith("_"):
            self.missing(prefix + name, line)

    def add_class(self, node: ast.ClassDef, prefix: str) -> None:
        path = prefix + node.name
        doc = ast.get_docstring(node)
        if doc is None and not node.name.startswith("_"):
            self.missing(path, node.lineno)
        constructors = {
            member.name: member  # of several overloads the last
            for member in flatten(node.body)
            if isinstance(member, ast.FunctionDef) and member.name in ("__init__", "__new__")
        }
        constructor = constructors.get("__init__") or constructors.get("__new__")
        is_enum = any(last_name(base) in ENUM_BASES for base in node.bases)
        if constructor and not is_enum:
            doc = with_signature(node.name, signature(constructor, None, skip=1), doc)
        if doc is not None:
            self.add(path, doc, node.lineno)
        self.add_body(node.body, path + ".", node)

    def add_function(
        self, name: str, variants: list[ast.FunctionDef], prefix: str, owner: ast.ClassDef | None
    ) -> None:
        """A function, a method or a property; the variants are its overloads, or get and set."""
        if name in ("__init__", "__new__") and owner is not None:
            return  # they are the class's signature
        path, line = prefix + name, variants[0].lineno
        kinds = decorators(variants[0])
        if len(variants) > 1 and not any(k in ("overload", "property") for k in kinds):
            self.complaints.append(f"{line}: {path} is there twice")
        doc = next((d for v in variants if (d := ast.get_docstring(v)) is not None), None)
        if doc is None and not name.startswith("_"):
            self.missing(path, line)
        if any(k in ("property", "cached_property") for k in kinds):
            if doc is not None:
                self.add(path, doc, line)
            return
        if owner is None:
            first, skip = "$module", 0
        elif "staticmethod" in kinds:
            first, skip = None, 0
        else:
            first, skip = ("$type" if "classmethod" in kinds else "$self"), 1
        self.add(path, with_signature(name, signature(variants[-1], first, skip), doc), line)


def c_string(text: str) -> str:
    """A C string literal, a line of source for each line of text, in plain ASCII."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "?": "\\?"}

    def escape(byte: int) -> str:
        char = chr(byte)
        return escapes.get(char) or (char if 0x20 <= byte < 0x7F else f"\\{byte:03o}")

    lines = text.splitlines(keepends=True) or [""]
    return " \\\n".join(f'\t"{"".join(map(escape, line.encode()))}"' for line in lines)


def header(stub: Path) -> str:
    """The text of the header for a stub."""
    docs = Docs(stub.stem, ast.parse(stub.read_text(encoding="utf-8"), str(stub)))
    if docs.complaints:
        raise StubError("\n".join(f"{stub}:{complaint}" for complaint in docs.complaints))
    macros = "\n\n".join(
        f"#define DOC_{path.replace('.', '_')} \\\n{c_string(text)}"
        for path, text in docs.texts.items()
    )
    names = sorted(path.replace(".", "_") for path in docs.texts)
    table = " \\\n".join(f"\tX({name})" for name in names)
    return (
        "/* SPDX-License-Identifier: MIT */\n"
        f"/* Made by gendocs.py from {stub.name}: change it there. */\n"
        f"#pragma once\n\n{macros}\n\n"
        f"#define DOCS(X) \\\n{table}\n"
    )


def main(argv: list[str]) -> int:
    if len(argv) != 3:
        print("usage: gendocs.py STUB.pyi OUT.h", file=sys.stderr)
        return 2
    stub, out = Path(argv[1]), Path(argv[2])
    try:
        text = header(stub)
    except (StubError, SyntaxError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if out.exists() and out.read_text(encoding="ascii") == text:
        return 0  # what includes it need not be compiled again
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.{os.getpid()}")
    part.write_text(text, encoding="ascii")
    part.replace(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
