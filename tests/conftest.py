"""Skipped tests are visible everywhere (-ra), and failures where XLB_NO_SKIP=1 states that every privilege is available.

Also the order of the modules, and how hypothesis searches: interactively with new examples each time and without a time limit,
in CI always with the same examples, so that a failure is caused by the change under test.
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

LONGEST_FIRST = (
    "tests/net/test_upgrade.py",
    "tests/net/web/test_page.py",
    "tests/net/test_restart.py",
    "tests/net/test_network.py",
    "tests/net/test_backends.py",
    "tests/net/test_demo.py",
    "tests/net/test_cluster_create.py",
    "tests/net/test_pair_routed.py",
    "tests/net/test_program_features.py",
    "tests/model/test_machine.py",
    "tests/net/",
)
"""Where several modules run at a time, the last one to end decides: a long one must not begin last. The Makefile keeps this
order; a module that is missing here, or gone, costs time and nothing else."""

SKIPS_FAIL = os.environ.get("XLB_NO_SKIP") == "1"


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{reason}\nXLB_NO_SKIP=1 and this test is not marked may_skip, so a skip is a failure."


def _rank(item: pytest.Item) -> int:
    return next((rank for rank, prefix in enumerate(LONGEST_FIRST) if item.nodeid.startswith(prefix)), len(LONGEST_FIRST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)


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
