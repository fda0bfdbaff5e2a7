# SPDX-License-Identifier: MIT
"""What the documentation says holds: its examples run, and the tests that it names exist."""

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
NUMBERS = [f"V{n}" for n in range(1, 26)]


def blocks(path: Path) -> str:
    """The Python blocks of a page, as one program whose lines keep their numbers."""
    lines, inside = [], False
    for line in path.read_text().splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines)


@pytest.mark.kvm
@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_examples_run(page: str) -> None:
    exec(compile(blocks(TOP / page), page, "exec"), {"__name__": page})


def tests_by_number() -> dict[str, set[str]]:
    """V number -> the tests, as ``file::test``, whose docstring begins with it."""
    found: dict[str, set[str]] = {number: set() for number in NUMBERS}
    for path in sorted(TOP.glob("tests/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            head = re.match(r"(V\d+(?:, V\d+)*):", ast.get_docstring(node) or "")
            for number in re.findall(r"V\d+", head[1]) if head else ():
                found[number].add(f"{path.name}::{node.name}")
    return found


def sections() -> dict[str, str]:
    """V number -> the text under its heading in docs/vcpu.md."""
    text = (TOP / "docs/vcpu.md").read_text()
    parts = re.split(r"^### (V\d+) .*$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_number_is_described() -> None:
    assert list(sections()) == NUMBERS


@pytest.mark.parametrize("number", NUMBERS)
def test_every_number_is_proved(number: str) -> None:
    """Its section names tests; each exists and cites it, and none that cites it is left out."""
    named = set(re.findall(r"`(test_\w+\.py::test_\w+)`", sections()[number]))
    assert named, f"docs/vcpu.md names no test for {number}"
    assert named == tests_by_number()[number]
