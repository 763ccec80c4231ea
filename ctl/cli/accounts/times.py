"""Dates in tables of accounts."""

from __future__ import annotations

from datetime import datetime


def date(seconds: int, without: str = "unknown") -> str:
    """Seconds since 1970 as a local date; 0: `without`."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d") if seconds else without
