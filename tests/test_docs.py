# SPDX-License-Identifier: MIT
"""What the documentation says holds: its examples run, and the tests that it names exist."""

from pathlib import Path

import numbers_of_v as numbers
import pytest

TOP = Path(__file__).parent.parent


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


@pytest.mark.kvm(arch="x86_64")
@pytest.mark.parametrize(
    "page", ["README.md", "docs/guide.md", "docs/devices.md", "docs/system.md"]
)
def test_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    exec(compile(blocks(TOP / page), page, "exec"), {"__name__": page})


def test_every_number_is_proved() -> None:
    """Each section ends with the tests that cite its number: all of them, and at least one."""
    text = numbers.PAGE.read_text()
    assert numbers.HEADING.findall(text) == numbers.NUMBERS
    assert not [number for number, tests in numbers.citations().items() if not tests]
    assert text == numbers.numbered(text), "run: python tests/numbers_of_v.py"
