# SPDX-License-Identifier: MIT
"""The pytest plugin: the marker ``kvm``, the option ``--lab``, and the closing list of what ran
where and what ran nowhere."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

_TIMEOUT = 600.0  # s


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kvmcpu", "kvmcpu")
    group.addoption(
        "--lab",
        action="append",
        metavar="PLACE[,PLACE…]",
        help="run the tests in a lab: x86_64, arm64 or riscv64; of several places, of which"
        " 'host' may be one, each test runs in the first that has what it needs",
    )
    group.addoption(
        "--lab-timeout",
        type=float,
        default=_TIMEOUT,
        metavar="SECONDS",
        help=f"a test in a lab that takes longer fails, and the lab is started anew ({_TIMEOUT:g})",
    )
    group.addoption(
        "--lab-options",
        default="",
        metavar="OPTIONS",
        help="options of `kvmcpu lab run` for the labs, such as '--memory 2GiB --cpus 2'",
    )


def pytest_configure(config: pytest.Config) -> None:
    from kvmcpu.testing import needs

    config.addinivalue_line("markers", needs.MARKER)
    if config.getoption("lab"):
        from kvmcpu.testing.outside import Places

        config.pluginmanager.register(Places(config), "kvmcpu-places")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from kvmcpu.testing import needs

    if config.getoption("lab"):
        return  # the places that are named say what they lack
    for item in items:
        need = needs.need(item)
        if need is None:
            continue
        reason = need.lack(needs.here())
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why(report: pytest.TestReport) -> str:
    longrepr = report.longrepr
    reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return reason.removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    places = terminalreporter.config.pluginmanager.get_plugin("kvmcpu-places")
    ran: Counter[str] = Counter()
    not_run: dict[str, list[str]] = defaultdict(list)
    for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed"):
        for report in terminalreporter.stats.get(outcome, ()):
            if not isinstance(report, pytest.TestReport):
                continue
            if outcome == "skipped":
                not_run[_why(report)].append(report.nodeid)
            elif report.when == "call" or outcome in ("failed", "error"):
                ran[str(dict(report.user_properties).get("lab", "host"))] += 1
    if not places and not not_run:
        return
    if places:
        terminalreporter.section("where the tests ran")
        for place, count in ran.items():
            terminalreporter.line(f"{count:5} {_tests(count)}: {places.describe(place)}")
    if not_run:
        terminalreporter.section("not run")
        verbose = terminalreporter.config.get_verbosity() > 0
        for reason, ids in sorted(not_run.items(), key=lambda entry: -len(entry[1])):
            terminalreporter.line(f"{len(ids):5} {_tests(len(ids))}: {reason}")
            files = Counter(name.partition("::")[0] for name in ids)
            lines = ids if verbose else [f"{file} ({n})" for file, n in files.items()]
            for line in lines:
                terminalreporter.line(f"          {line}")


def _tests(count: int) -> str:
    return "test" if count == 1 else "tests"
