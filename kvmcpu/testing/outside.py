# SPDX-License-Identifier: MIT
"""``pytest --lab``: each test goes to a place that has what it needs; what those in a lab report
is told here as if they had run here."""

from __future__ import annotations

import argparse
import builtins
import json
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import pytest

from kvmcpu._kvm import parse_size
from kvmcpu.lab import command, machine
from kvmcpu.lab.errors import LabCrash, LabError
from kvmcpu.lab.session import Job, Session
from kvmcpu.lab.targets import TARGETS, host
from kvmcpu.testing import needs

_TAIL = 4000  # bytes of the lab's errors that a report shows


class _Raise(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise pytest.UsageError(f"--lab-options: {message}")


class Places:
    """The plugin that replaces pytest's own loop over the tests."""

    def __init__(self, config: pytest.Config) -> None:
        self.names = list(dict.fromkeys(",".join(config.getoption("lab")).split(",")))
        for name in self.names:
            if name not in (needs.HOST, *TARGETS):
                known = ", ".join((needs.HOST, *TARGETS))
                raise pytest.UsageError(f"--lab={name}: the places are {known}")
        if config.getoption("usepdb") and self.names != [needs.HOST]:
            raise pytest.UsageError("--pdb finds no terminal in a lab: leave out one of them")
        if config.getoption("numprocesses", None):
            raise pytest.UsageError("--lab and -n do not go together: leave out one of them")
        self.options = _lab_options(config.getoption("lab_options"))
        here = needs.here()
        self._described = {needs.HOST: f"here, {here.name if here.arch else 'without a KVM'}"}

    def describe(self, place: str) -> str:
        """The place, with what its KVM said of itself."""
        return self._described.get(place, place)

    def told(self, place: str, offer: str) -> None:
        """Keep what a lab's KVM says of itself."""
        self._described[place] = f"{place} lab, {offer}"

    def _place(self, item: pytest.Item) -> str:
        need = needs.need(item)
        if need is None:
            return self.names[0]
        reasons = []
        for name in self.names:
            offer = needs.here() if name == needs.HOST else needs.LABS[name]
            reason = need.lack(offer)
            if reason is None:
                return name
            reasons.append(reason)
        item.add_marker(pytest.mark.skip(reason="; ".join(reasons)))
        return needs.HOST  # which skips it

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if session.testsfailed or session.config.option.collectonly:
            return None  # pytest's own loop says what is to be said
        places: dict[str, list[pytest.Item]] = {name: [] for name in (*self.names, needs.HOST)}
        for item in session.items:
            places[self._place(item)].append(item)
        for place, items in places.items():
            if place == needs.HOST:
                _run_here(session, items)
            elif items:
                _Lab(session, self, place, items).run()
        return True


def _lab_options(text: str) -> argparse.Namespace:
    parents = [command.made_from_options(), command.runs_with_options(parse_size)]
    parser = _Raise(prog="--lab-options", add_help=False, parents=parents)
    options = parser.parse_args(shlex.split(text))
    if options.arch is not None:
        raise pytest.UsageError("--lab-options: --lab says the architecture, not --arch")
    del options.arch
    return options


def _run_here(session: pytest.Session, items: Sequence[pytest.Item]) -> None:
    for item, following in zip(items, [*items[1:], None], strict=False):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        _stop(session)


def _stop(session: pytest.Session) -> None:
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)


class _Lab:
    """Runs tests in one architecture's lab, which is started again when it dies."""

    def __init__(
        self, session: pytest.Session, places: Places, place: str, items: Sequence[pytest.Item]
    ) -> None:
        self._session = session
        self._config = session.config
        self._places = places
        self._place = place
        self._left = {item.nodeid: item for item in items}
        self._within: str | None = None  # the test that runs now
        self._told: set[str] = set()
        self._capturing = self._config.getoption("capture") != "no"

    def run(self) -> None:
        """Run all tests. A test in which the lab dies has failed; the others go on."""
        useless = 0  # boots in a row that brought nothing
        while self._left:
            before = len(self._left)
            reason = self._boot()
            if reason and self._within:
                self._fail(self._within, f"{reason}\nThe lab is started again for what is left.")
            useless = useless + 1 if len(self._left) == before else 0
            if useless == 2 or (useless and reason is None):
                for nodeid in list(self._left):
                    self._fail(nodeid, reason or "the lab's pytest did not run it")
            _stop(self._session)

    def _boot(self) -> str | None:
        """Run what is left until the end or the lab's death; returns the reason of a death."""
        self._within, self._ended, self._stopped = None, False, False
        self._read, self._errors, self._uncollected = b"", b"", ""
        try:
            with Session(self._job(), self._sinks(), progress=self._progress) as lab:
                self._lab = lab
                status = lab.run()
        except LabCrash as error:
            return f"{error}{self._shown()}"
        except LabError as error:
            raise pytest.UsageError(str(error)) from error
        if self._ended:
            return None
        if b"Timeout (" in self._errors:
            limit = self._config.getoption("lab_timeout")
            return f"the test took longer than --lab-timeout={limit:g} s{self._shown()}"
        return f"pytest in the lab ended with status {status}{self._shown()}"

    def _job(self) -> Job:
        config, options = self._config, self._places.options
        directory = str(config.invocation_params.dir)
        shared = os.path.commonpath((directory, str(config.rootpath)))
        target = TARGETS[self._place]
        python = sys.executable if self._place == host() and options.root is None else "python3"
        limit = config.getoption("lab_timeout")
        inside = (f"/dev/vport0p{machine.REPORTS}", directory, f"{limit:g}")
        arguments = [os.fspath(argument) for argument in config.invocation_params.args]
        return Job(
            [python, "-m", "kvmcpu.testing.inside", *inside, *arguments],
            target,
            directory=str(config.rootpath) if shared == "/" else shared,
            **vars(options),
        )

    def _sinks(self) -> dict[int, Any]:
        return {machine.REPORTS: self._hear, machine.STDOUT: self._out, machine.STDERR: self._err}

    def _progress(self, what: str, percent: float) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if percent >= 100 and reporter and what not in self._told:
            self._told.add(what)
            reporter.write_line(f"lab: {what}")

    def _out(self, data: bytes) -> None:
        if not self._capturing:
            sys.stdout.write(data.decode(errors="replace"))
            sys.stdout.flush()
        else:
            self._err(data)

    def _err(self, data: bytes) -> None:
        self._errors = (self._errors + data)[-_TAIL:]
        if not self._capturing:
            sys.stderr.write(data.decode(errors="replace"))
            sys.stderr.flush()

    def _shown(self) -> str:
        text = self._errors.decode(errors="replace").strip()
        return f"\n{text}" if text else ""

    def _hear(self, data: bytes) -> None:
        *lines, self._read = (self._read + data).split(b"\n")
        for line in lines:
            fields = json.loads(line)
            getattr(self, f"_on_{fields.pop('kind')}")(**fields)

    def _tell(self, what: object) -> None:
        self._lab.send(machine.REPORTS, json.dumps(what).encode() + b"\n")

    def _on_ready(self, offer: str, python: str) -> None:
        self._places.told(self._place, f"{offer}, Python {python}")
        self._tell(list(self._left))

    def _on_uncollected(self, text: str) -> None:
        self._uncollected += f"{text}\n"

    def _on_start(self, nodeid: str, location: list[Any]) -> None:
        self._within = nodeid
        hook = self._config.hook
        hook.pytest_runtest_logstart(nodeid=nodeid, location=tuple(location))

    def _on_report(self, data: dict[str, Any]) -> None:
        # JSON knows no tuples.
        data["location"] = tuple(data["location"])
        data["user_properties"] = [tuple(entry) for entry in data["user_properties"]]
        data["user_properties"].append(("lab", self._place))
        data["sections"] = [tuple(entry) for entry in data["sections"]]
        if isinstance(data["longrepr"], list):
            data["longrepr"] = tuple(data["longrepr"])
        hook = self._config.hook
        report = hook.pytest_report_from_serializable(config=self._config, data=data)
        hook.pytest_runtest_logreport(report=report)

    def _on_finish(self, nodeid: str, location: list[Any]) -> None:
        hook = self._config.hook
        hook.pytest_runtest_logfinish(nodeid=nodeid, location=tuple(location))
        self._left.pop(nodeid, None)
        self._within = None
        self._stopped = bool(self._session.shouldfail or self._session.shouldstop)
        self._tell("stop" if self._stopped else "go on")

    def _on_warning(
        self, text: str, category: str, filename: str, lineno: int, **where: Any
    ) -> None:
        kind = getattr(builtins, category, None) or getattr(pytest, category, None) or UserWarning
        location = where.pop("location")
        message = warnings.WarningMessage(kind(text), kind, filename, lineno)
        self._config.hook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": message,
                "location": location and tuple(location),
                **where,
            }
        )

    def _on_end(self, absent: list[str]) -> None:
        self._ended = True
        for nodeid in absent:
            why = f"\n{self._uncollected}" if self._uncollected else ""
            self._fail(nodeid, f"pytest in the {self._place} lab does not find this test{why}")
        if self._stopped:
            self._left.clear()

    def _fail(self, nodeid: str, reason: str) -> None:
        """Report a test as failed that could not report for itself."""
        item = self._left.pop(nodeid)
        hook = self._config.hook
        if nodeid != self._within:
            hook.pytest_runtest_logstart(nodeid=nodeid, location=item.location)
        report = pytest.TestReport(
            nodeid=nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=reason,
            when="call",
            user_properties=[("lab", self._place)],
        )
        hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=nodeid, location=item.location)
        self._within = None
