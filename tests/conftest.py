"""Skipped tests are visible everywhere (-ra), and failures where XLB_NO_SKIP=1 states that every privilege is available.

Also how hypothesis searches: interactively with new examples each time and without a time limit, in CI always with the same
examples, so that a failure is caused by the change under test.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("xlb", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ)
settings.load_profile("xlb")

pytest.register_assert_rewrite("tests.fakes.plane_contract", "tests.fakes.network_contract")  # tests, in no test module

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C in processes that would inherit it

SKIPS_FAIL = os.environ.get("XLB_NO_SKIP") == "1"


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{reason}\nXLB_NO_SKIP=1 and this test is not marked may_skip, so a skip is a failure."


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    expected = hasattr(report, "wasxfail") or item.get_closest_marker("may_skip") is not None
    if SKIPS_FAIL and report.skipped and not expected:
        _fail(report)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    if SKIPS_FAIL and report.skipped:
        _fail(report)
