# SPDX-License-Identifier: MIT
"""Which test proves which number of docs/vcpu.md.

``python tests/numbers_of_v.py`` writes them into the page.

A test cites a number by beginning its docstring with it: ``V10: no kick is lost``, ``V3, V9: ...``.
"""

from __future__ import annotations

import ast
import re
from itertools import groupby
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/vcpu.md"
NUMBERS = [f"V{n}" for n in range(1, 26)]
HEADING = re.compile(r"^### (V\d+) .*\n", re.MULTILINE)
LINE = re.compile(r"\n*^Tests: .*\n(?:.+\n)*", re.MULTILINE)


def citations() -> dict[str, list[str]]:
    """Number -> the tests that cite it, as ``file::test``, in the order of the files."""
    found: dict[str, list[str]] = {number: [] for number in NUMBERS}
    for path in sorted(TESTS.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            head = re.match(r"(V\d+(?:, V\d+)*):", ast.get_docstring(node) or "")
            for number in re.findall(r"V\d+", head[1]) if head else ():
                test = f"{path.name}::{node.name}"
                if test not in found[number]:
                    found[number].append(test)
    return found


def line(tests: list[str]) -> str:
    """The line that a section of the page ends with."""
    parts = []
    for name, group in groupby(tests, lambda test: test.partition("::")[0]):
        names = ", ".join(test.partition("::")[2].removeprefix("test_") for test in group)
        parts.append(f"`tests/{name}` ({names})")
    return f"Tests: {'; '.join(parts)}.\n"


def numbered(text: str) -> str:
    """The page with the line of each section made anew."""
    pieces = HEADING.split(LINE.sub("\n", text))
    tests = citations()
    out = [pieces[0]]
    for number, body in zip(pieces[1::2], pieces[2::2], strict=True):
        heading = re.search(rf"^### {number} .*\n", text, re.MULTILINE)
        assert heading, number
        # A section ends where the next heading of any level begins.
        own, mark, rest = body.partition("\n## ")
        out += [heading[0], own.rstrip("\n"), "\n\n", line(tests[number]), "\n"]
        out += [mark.lstrip("\n"), rest]
    return "".join(out).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(numbered(PAGE.read_text()))
