"""A password on its way to the login."""

from __future__ import annotations


class Secret:
    """A password, until it is used."""

    def __init__(self, text: str) -> None:
        self._text = text

    def take(self) -> str:
        """Empty from the second time on."""
        text, self._text = self._text, ""
        return text
