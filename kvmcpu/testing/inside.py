# SPDX-License-Identifier: MIT
"""pytest in a lab: it collects as the pytest outside did, runs the tests that it is told to, and
reports them.

    python -m kvmcpu.testing.inside PORT DIRECTORY SECONDS [PYTEST-ARGUMENT…]

Both sides talk in lines of JSON over a virtio port. A test that takes longer than those seconds
ends the process, with the stacks of its threads on standard error.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import pytest

from kvmcpu.testing import needs

# The pytest outside has done what these options ask for, or will do it with the reports.
_DONE_OUTSIDE: Mapping[str, Any] = {
    "lab": None,
    "keyword": "",
    "markexpr": "",
    "deselect": None,
    "maxfail": 0,
    "lf": False,
    "failedfirst": False,
    "newfirst": False,
    "stepwise": False,
    "stepwise_skip": False,
    "xmlpath": None,
    "pastebin": None,
    "cacheclear": False,
}


class Inside:
    """The plugin that answers the pytest outside."""

    def __init__(self, port: int, limit: float) -> None:
        self._port = port
        self._limit = limit
        self._read = b""
        self._stderr = os.fdopen(os.dup(2), "w")  # pytest's capturing takes 2 away

    def _tell(self, kind: str, **fields: object) -> None:
        line = json.dumps({"kind": kind, **fields}, default=repr).encode() + b"\n"
        view = memoryview(line)
        while view:
            view = view[os.write(self._port, view) :]

    def _line(self) -> Any:
        while b"\n" not in self._read:
            data = os.read(self._port, 1 << 16)
            if not data:
                raise EOFError("the pytest outside is gone")
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> None:
        for name, value in _DONE_OUTSIDE.items():
            if hasattr(config.option, name):
                setattr(config.option, name, value)

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config
        config.pluginmanager.unregister(name="terminalreporter")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._tell("uncollected", text=f"{report.nodeid}: {report.longreprtext}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._tell("ready", offer=needs.here().name, python=sys.version.split()[0])
        items = {item.nodeid: item for item in session.items}
        wanted: list[str] = self._line()
        run = [items[name] for name in wanted if name in items]
        for item, following in zip(run, [*run[1:], None], strict=False):
            faulthandler.dump_traceback_later(self._limit, exit=True, file=self._stderr)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            faulthandler.cancel_dump_traceback_later()
            if self._line() == "stop":
                break
        self._tell("end", absent=[name for name in wanted if name not in items])
        return True

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._tell("start", nodeid=nodeid, location=location)

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._tell("finish", nodeid=nodeid, location=location)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        hook = self._config.hook
        data = hook.pytest_report_to_serializable(config=self._config, report=report)
        self._tell("report", data=data)

    def pytest_warning_recorded(
        self,
        warning_message: Any,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        self._tell(
            "warning",
            text=str(warning_message.message),
            category=warning_message.category.__name__,
            filename=warning_message.filename,
            lineno=warning_message.lineno,
            when=when,
            nodeid=nodeid,
            location=location,
        )


def main(arguments: list[str]) -> int:
    """Run pytest; returns its status."""
    path, directory, seconds, *options = arguments
    os.chdir(directory)
    port = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    # Where the package is there without its metadata, pytest does not find the plugin itself.
    if not any(entry.value == "kvmcpu.testing.plugin" for entry in entry_points(group="pytest11")):
        options = ["-p", "kvmcpu.testing.plugin", *options]
    # This package is there before pytest could rewrite its asserts, of which it has none for tests.
    options = ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning", *options]
    return pytest.main(options, plugins=[Inside(port, float(seconds))])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
