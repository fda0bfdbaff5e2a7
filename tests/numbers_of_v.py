# SPDX-License-Identifier: MIT
"""Which test proves which number of docs/vcpu.md, and where it runs.

``python tests/numbers_of_v.py`` writes them into the page.

A test cites a number by beginning its docstring with it: ``V10: no kick is lost``, ``V3, V9: ...``.
Where it runs follows from its markers and its module's, as in the pytest plugin.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from kvmcpu.testing.needs import HOST, LABS, Need, Offer

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/vcpu.md"
NUMBERS = [f"V{n}" for n in range(1, 26)]
HEADING = re.compile(r"^### (V\d+) .*\n", re.MULTILINE)
LINE = re.compile(r"\n*^Tests(?: [a-z][^:\n]*)?: .*\n(?:.+\n)*", re.MULTILINE)

# What can be had: of a host's KVM no more than a paravirtual one offers.
PLACES = {HOST: Offer("x86_64", name="any KVM"), **LABS}
NAMES = {HOST: "on any KVM", **{name: f"in the {name} lab" for name in LABS}}


def _marks(nodes: Iterable[ast.expr]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The markers among expressions, with their keywords."""
    for node in nodes:
        if isinstance(node, ast.List | ast.Tuple):
            yield from _marks(node.elts)
            continue
        name = node.func if isinstance(node, ast.Call) else node
        if isinstance(name, ast.Attribute) and ast.unparse(name.value) == "pytest.mark":
            wanted = node.keywords if isinstance(node, ast.Call) and name.attr == "kvm" else []
            yield name.attr, {str(each.arg): ast.literal_eval(each.value) for each in wanted}


def places(need: Need, *, outside: bool) -> tuple[str, ...]:
    """Where a test with such needs runs; outside: not in labs. Most are of x86-64 by fixtures."""
    need = replace(need, arch=need.arch or ("x86_64",))
    found = [name for name, offer in PLACES.items() if need.lack(offer) is None]
    return tuple(name for name in found if name == HOST or not outside)


def _places(marks: Iterable[tuple[str, dict[str, Any]]]) -> tuple[str, ...]:
    """Where a test with these markers runs."""
    need, outside = Need(), False
    for name, options in marks:
        outside |= name in ("outside", "lab")
        arch = options.get("arch") or need.arch
        need = Need(
            (arch,) if isinstance(arch, str) else tuple(arch),
            need.interrupts or options.get("interrupts", False),
            need.counters or options.get("counters", False),
        )
    return places(need, outside=outside)


@cache
def citations() -> dict[str, dict[str, tuple[str, ...]]]:
    """Number -> the tests that cite it, as ``file::test``, in the order of the files; and where
    each of them runs."""
    found: dict[str, dict[str, tuple[str, ...]]] = {number: {} for number in NUMBERS}
    for path in sorted(TESTS.glob("test_*.py")):
        module = ast.parse(path.read_text())
        shared = [
            node.value
            for node in module.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        ]
        for node in ast.walk(module):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            head = re.match(r"(V\d+(?:, V\d+)*):", ast.get_docstring(node) or "")
            for number in re.findall(r"V\d+", head[1]) if head else ():
                marks = _marks([*shared, *node.decorator_list])
                found[number][f"{path.name}::{node.name}"] = _places(marks)
    return found


def line(where: str, tests: Iterable[str]) -> str:
    """One of the lines that a section of the page ends with."""
    parts = []
    for name, group in groupby(tests, lambda test: test.partition("::")[0]):
        names = ", ".join(test.partition("::")[2].removeprefix("test_") for test in group)
        parts.append(f"`tests/{name}` ({names})")
    return f"Tests {where}: {'; '.join(parts)}.\n"


def lines(tests: dict[str, tuple[str, ...]]) -> str:
    """A line for each of the places, or several places, where tests run; the most of them first."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for test, where in tests.items():
        groups[where].append(test)
    return "\n".join(
        line(" and ".join(NAMES[name] for name in where) or "nowhere yet", groups[where])
        for where in sorted(groups, key=lambda where: (-len(where), where))
    )


def numbered(text: str) -> str:
    """The page with the lines of each section made anew."""
    pieces = HEADING.split(LINE.sub("\n", text))
    tests = citations()
    out = [pieces[0]]
    for number, body in zip(pieces[1::2], pieces[2::2], strict=True):
        heading = re.search(rf"^### {number} .*\n", text, re.MULTILINE)
        assert heading, number
        # A section ends where the next heading of any level begins.
        own, mark, rest = body.partition("\n## ")
        out += [heading[0], own.rstrip("\n"), "\n\n", lines(tests[number]), "\n"]
        out += [mark.lstrip("\n"), rest]
    return "".join(out).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(numbered(PAGE.read_text()))
