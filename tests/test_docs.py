# SPDX-License-Identifier: MIT
"""What the documentation says holds: its examples run, and the tests that it names exist."""

from pathlib import Path

import numbers_of_v as numbers
import pytest

from kvmcpu.testing.needs import Need, need

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


def test_where_the_numbers_are_proved(request: pytest.FixtureRequest) -> None:
    """Where the page says that a test runs is where pytest finds that it can run."""
    written = {
        test: where for tests in numbers.citations().values() for test, where in tests.items()
    }
    for item in request.session.items:
        where = written.get(f"{item.path.name}::{getattr(item, 'originalname', None)}")
        if where is not None:
            outside = item.get_closest_marker("outside") is not None
            assert where == numbers.places(need(item) or Need(), outside=outside), item.nodeid
