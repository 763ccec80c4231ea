"""A failed test leaves a picture of what the page showed."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import pytest

from tests.net.web.pictures import PICTURES


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    browser = getattr(item, "funcargs", {}).get("page")
    if outcome.get_result().failed and browser is not None:
        with contextlib.suppress(Exception):
            browser.shot(PICTURES / "failures" / f"{item.name}.png")
