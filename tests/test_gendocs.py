# SPDX-License-Identifier: MIT
"""The docstring generator: what its C strings say is what Python shows."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

GENDOCS = Path(__file__).parent.parent / "csrc" / "python" / "gendocs.py"

STUB = '''
"""The module."""
import enum
from typing import ClassVar, TypeAlias, overload

Address: TypeAlias = int
_T = object

LIMIT: int
"""A constant."""

def plain(a: int, /, b: str = "x\\n", *, c: float = -1.5, d: object = plain) -> None:
    """Does something.

        indented "quoted" \\\\ back
    µs per exit??!
    """

def nothing() -> None:
    """Takes nothing."""

def _private(a: int) -> None: ...

class Thing:
    """A thing."""

    def __init__(self, size: int = 0x10, *more: int, name: str | None = None, **rest: int): ...
    def __enter__(self) -> Thing: ...
    def by_name(self, a: int, b: bool = False) -> None:
        """By name."""
    def positional(self, a: int, b: int = 1_000, /) -> None:
        """By position."""
    @classmethod
    def make(cls, what: bytes = b"q") -> Thing:
        """Make one."""
    @staticmethod
    def count(of: tuple[int, ...] = (1, 2), /) -> int:
        """Count."""
    @property
    def size(self) -> int:
        """Bytes."""
    @size.setter
    def size(self, value: int) -> None: ...
    rax: int
    """A register."""
    hidden: ClassVar[int]
    """A class variable."""
    _inner: int
    @overload
    def get(self, key: int, /) -> int: ...
    @overload
    def get(self, key: int, default: int | None = None, /) -> int | None:
        """Get it."""

class Bare:
    """Made by others."""
    class Inner:
        """Inside."""
        x: int
        """Deep."""

class Color(enum.IntEnum):
    """Colours."""
    RED = 1
    """Like blood."""

class _Hidden:
    def run(self) -> None:
        """Documented all the same."""
'''


def load():
    spec = importlib.util.spec_from_file_location("gendocs", GENDOCS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gendocs = load()


def generate(tmp_path: Path, stub: str) -> Path:
    source = tmp_path / "_mod.pyi"
    source.write_text(stub, encoding="utf-8")
    out = tmp_path / "deep" / "docs.h"
    subprocess.run([sys.executable, GENDOCS, source, out], check=True)
    return out


def macros(header: Path) -> dict[str, str]:
    """What a C compiler makes of the macros; Python's bytes literals read the same escapes."""
    found = {}
    for name, body in re.findall(r"#define (\w+) \\\n((?:\t\".*\n)+)", header.read_text()):
        pieces = re.findall(r'\t(".*")(?: \\)?\n', body)
        # Python has no \? and takes it for two characters.
        text = b"".join(ast.literal_eval("b" + piece.replace("\\?", "?")) for piece in pieces)
        found[name] = text.decode()
    return found


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    return macros(generate(tmp_path_factory.mktemp("gendocs"), STUB))


def test_every_documented_thing_has_its_macro(docs):
    assert set(docs) == {
        "DOC__mod",
        "DOC_LIMIT",
        "DOC_plain",
        "DOC_nothing",
        "DOC__private",
        "DOC_Thing",
        "DOC_Thing___enter__",
        "DOC_Thing_by_name",
        "DOC_Thing_positional",
        "DOC_Thing_make",
        "DOC_Thing_count",
        "DOC_Thing_size",
        "DOC_Thing_rax",
        "DOC_Thing_hidden",
        "DOC_Thing_get",
        "DOC_Bare",
        "DOC_Bare_Inner",
        "DOC_Bare_Inner_x",
        "DOC_Color",
        "DOC_Color_RED",
        "DOC__Hidden_run",
    }


def test_the_list_of_all_names_leaves_none_out(tmp_path, docs):
    text = generate(tmp_path, STUB).read_text()
    names = re.findall(r"\tX\((\w+)\)", text[text.index("#define DOCS(X)") :])
    assert names == sorted(names)
    assert {f"DOC_{name}" for name in names} == set(docs)


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("plain", "plain($module, a, /, b='x\\n', *, c=-1.5, d=...)"),
        ("nothing", "nothing($module, /)"),
        ("_private", "_private($module, /, a)"),
        ("Thing", "Thing(size=16, *more, name=None, **rest)"),
        ("Thing___enter__", "__enter__($self, /)"),
        ("Thing_by_name", "by_name($self, /, a, b=False)"),
        ("Thing_positional", "positional($self, a, b=1000, /)"),
        ("Thing_make", "make($type, /, what=b'q')"),
        ("Thing_count", "count(of=(1, 2), /)"),
        ("Thing_get", "get($self, key, default=None, /)"),
    ],
)
def test_signature(docs, name, signature):
    assert docs["DOC_" + name].startswith(signature + "\n--\n\n")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("_mod", "The module."),
        ("LIMIT", "A constant."),
        ("Thing_size", "Bytes."),
        ("Thing_rax", "A register."),
        ("Bare", "Made by others."),
        ("Bare_Inner_x", "Deep."),
        ("Color", "Colours."),
        ("Color_RED", "Like blood."),
    ],
)
def test_what_has_no_signature_is_its_docstring_alone(docs, name, text):
    assert docs["DOC_" + name] == text


def test_text_is_cleaned_and_escaped(docs):
    text = docs["DOC_plain"].split("--\n\n", 1)[1]
    assert text == 'Does something.\n\n    indented "quoted" \\ back\nµs per exit??!'


@pytest.mark.parametrize(
    ("stub", "complaint"),
    [
        ("def f() -> None: ...", "1: f has no docstring"),
        ("class C: ...", "1: C has no docstring"),
        ("class C:\n  'C.'\n  def m(self) -> None: ...", "3: C.m has no docstring"),
        ("class C:\n  'C.'\n  a: int\n  b: int\n  'B.'", "3: C.a has no docstring"),
        ("class C:\n  'C.'\n  @property\n  def p(self) -> int: ...", "has no docstring"),
        ("def f() -> None: 'F.'\ndef f() -> None: 'F.'", "1: f is there twice"),
        ("def f(", "_mod.pyi, line 1"),
    ],
)
def test_complains(tmp_path, stub, complaint):
    source = tmp_path / "_mod.pyi"
    source.write_text(stub)
    command = [sys.executable, GENDOCS, source, tmp_path / "out.h"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert not (tmp_path / "out.h").exists()


def test_unchanged_header_is_left_alone(tmp_path):
    out = generate(tmp_path, STUB)
    before = out.stat().st_mtime_ns
    assert generate(tmp_path, STUB).stat().st_mtime_ns == before


def test_python_understands_it(tmp_path):
    """Compiled into an extension, the strings are signatures to inspect and help()."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc)")
    generate(tmp_path, STUB)
    source = tmp_path / "_mod.c"
    source.write_text(
        textwrap.dedent(r"""
        #include <Python.h>
        #include "deep/docs.h"

        static PyObject *none(PyObject *self, PyObject *args, PyObject *kwds)
        {
            Py_RETURN_NONE;
        }

        #define M(name, doc, flags) \
            { name, (PyCFunction)(void (*)(void))none, METH_VARARGS | METH_KEYWORDS | flags, doc }

        static PyMethodDef methods[] = { M("by_name", DOC_Thing_by_name, 0),
                                         M("make", DOC_Thing_make, METH_CLASS),
                                         M("count", DOC_Thing_count, METH_STATIC),
                                         { NULL } };
        static PyType_Slot slots[] = { { Py_tp_doc, DOC_Thing }, { Py_tp_methods, methods },
                                       { Py_tp_new, PyType_GenericNew }, { 0, NULL } };
        static PyType_Spec spec = { "_mod.Thing", sizeof(PyObject), 0, Py_TPFLAGS_DEFAULT, slots };
        static PyMethodDef functions[] = { M("plain", DOC_plain, 0), { NULL } };

        static int exec(PyObject *m)
        {
            PyObject *type = PyType_FromSpec(&spec);
            return type ? PyModule_AddObject(m, "Thing", type) : -1;
        }

        static PyModuleDef_Slot exec_slots[] = { { Py_mod_exec, exec }, { 0, NULL } };
        static PyModuleDef def = { PyModuleDef_HEAD_INIT, .m_name = "_mod", .m_doc = DOC__mod,
                                   .m_methods = functions, .m_slots = exec_slots };
        PyMODINIT_FUNC PyInit__mod(void)
        {
            return PyModuleDef_Init(&def);
        }
        """)
    )
    built = tmp_path / "_mod.so"
    include = sysconfig.get_path("include")
    flags = ["-shared", "-fPIC", "-Wall", "-Wtrigraphs", "-Werror", f"-I{include}", "-o", built]
    subprocess.run([compiler, *flags, source], check=True)
    spec = importlib.util.spec_from_file_location("_mod", built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert module.__doc__ == "The module."
    assert module.plain.__doc__.startswith("Does something.\n\n    indented")
    assert module.Thing.__doc__ == "A thing."
    assert str(inspect.signature(module.plain)) == "(a, /, b='x\\n', *, c=-1.5, d=Ellipsis)"
    assert str(inspect.signature(module.Thing)) == "(size=16, *more, name=None, **rest)"
    assert str(inspect.signature(module.Thing.by_name)) == "(self, /, a, b=False)"
    assert str(inspect.signature(module.Thing().by_name)) == "(a, b=False)"
    assert str(inspect.signature(module.Thing.make)) == "(what=b'q')"
    assert str(inspect.signature(module.Thing.count)) == "(of=(1, 2), /)"
