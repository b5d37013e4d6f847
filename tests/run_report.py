"""What a run tells at its end: to the reader what was left out, to `.ci/run` what did not pass."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest

KEY = "run_report/last"  # in pytest's cache
MISSING_TOOL = re.compile(
    r"(?:Skipped: )?(no (.+) here: .+)", re.S
)  # "no TOOL here: HOW TO GET IT"


class RunReport:
    """Watches a run from the process that prints; the workers of xdist send it their reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.planned: set[str] = set()
        self.ended: set[str] = set()
        self.failed: dict[str, None] = {}
        self.not_collected: dict[str, None] = {}
        self.left_out: Counter[str] = Counter()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.planned.update(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: list[str]) -> None:
        self.planned.update(ids)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.not_collected[report.nodeid] = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ended.add(report.nodeid)
        if report.failed:  # in its set-up or tear-down too, or with the worker that crashed
            self.failed[report.nodeid] = None
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if report.skipped and (match := MISSING_TOOL.fullmatch(reason)):
            self.left_out[match[1]] += 1

    def pytest_sessionfinish(self) -> None:
        if (cache := getattr(self.config, "cache", None)) is not None:
            found = {
                "failed": [*self.failed],
                "not collected": [*self.not_collected],
                "never run": sorted(self.planned - self.ended),
                "ended": sorted(self.ended),
            }
            cache.set(KEY, found)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
        yield  # these lines come last
        for reason, tests in self.left_out.most_common():
            terminalreporter.line(f"left out: {tests} tests, {reason}", yellow=True)
