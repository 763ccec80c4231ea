"""Net tests need root, a bpffs and namespaces: without them each is skipped with the reason."""

from __future__ import annotations

import pytest

from tests.rig import why_not


@pytest.fixture(scope="session", autouse=True)
def rig_possible() -> None:
    if reason := why_not():
        pytest.skip(reason)
