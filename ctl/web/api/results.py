"""What a control command returns, as JSON has it. Pure."""

from __future__ import annotations

from typing import Any


def prefixes(found: dict[str, Any]) -> dict[str, Any]:
    """A prefix list with its prefixes as strings."""
    from ctl.config import prefixes as lists

    v4, v6 = found.pop("v4"), found.pop("v6")
    return found | {"prefixes": list(lists.texts(lists.unpack(found["name"], v4, v6)))}


def document(found: dict[str, Any]) -> dict[str, Any]:
    """A farms file with its prefix lists as strings."""
    from ctl.config import farms_file

    return farms_file.readable(found)


def generation(found: dict[str, Any]) -> dict[str, Any]:
    """A generation of the history with its document."""
    return found | {"document": document(found["document"])}


def recent(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of an answer of `watch`."""
    events: list[dict[str, Any]] = found["events"]
    return events
