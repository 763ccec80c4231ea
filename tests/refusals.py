"""Errors by their codes: messages are for people and may change, codes may not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from ctl.errors import Code, InvalidInput, XlbError


@contextlib.contextmanager
def refused(code: Code) -> Iterator[pytest.ExceptionInfo[XlbError]]:
    """Expect an error with exactly this code; what it is about can be looked up in the yielded `value`."""
    with pytest.raises(XlbError) as caught:
        yield caught
    assert caught.value.code == code, f"{caught.value.code}: {caught.value}"


@contextlib.contextmanager
def invalid(code: Code, key: str) -> Iterator[pytest.ExceptionInfo[XlbError]]:
    """As `refused`, for input that is invalid at `key`."""
    with refused(code) as caught:
        yield caught
    assert isinstance(caught.value, InvalidInput) and caught.value.key == key, caught.value
