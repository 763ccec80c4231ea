"""What a user sees of a long list: which part of it, and which rows match a filter. Pure: keys in, position and filter out."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

HELP = "↑ ↓ PgUp PgDn Home End scroll, / filters, Esc clears the filter, q quits"
MAX_FILTER = 64

_KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Za-z]|.", re.DOTALL)
_LINES = {"\x1b[A": -1, "\x1bOA": -1, "k": -1, "\x1b[B": 1, "\x1bOB": 1, "j": 1}
_PAGES = {"\x1b[5~": -1, "b": -1, "\x1b[6~": 1, " ": 1}
_FIRST = ("\x1b[H", "\x1bOH", "\x1b[1~", "g")
_LAST = ("\x1b[F", "\x1bOF", "\x1b[4~", "G")
_ERASE = ("\x7f", "\b")


@dataclass(slots=True)
class View:
    """offset: rows above the first one shown. typing: the filter is being typed."""

    offset: int = 0
    filter: str = ""
    typing: bool = False
    quit: bool = False
    _height: int = field(default=1, repr=False)
    _rows: int = field(default=0, repr=False)

    def pressed(self, keys: bytes) -> None:
        """Take in what was typed."""
        for key in _KEY.findall(keys.decode(errors="replace")):
            if self.typing:
                self._type(key)
            else:
                self._command(key)

    def window(self, rows: int, height: int) -> slice:
        """The rows to show of `rows` that match, in `height` lines."""
        self._rows, self._height = rows, max(1, height)
        self.offset = max(0, min(self.offset, rows - self._height))
        return slice(self.offset, self.offset + self._height)

    def matches(self, *texts: str) -> bool:
        """Whether the filter, in either case, is part of one of them."""
        return any(self.filter.lower() in text.lower() for text in texts)

    def _type(self, key: str) -> None:
        if key in ("\r", "\n"):
            self.typing = False
        elif key == "\x1b":
            self.typing, self.filter = False, ""
        elif key in _ERASE:
            self.filter = self.filter[:-1]
        elif key == "\x15":  # Ctrl-U, as in a shell
            self.filter = ""
        elif len(key) == 1 and key.isprintable() and len(self.filter) < MAX_FILTER:
            self.filter += key
        self.offset = 0

    def _command(self, key: str) -> None:
        if key in ("q", "Q"):
            self.quit = True
        elif key == "/":
            self.typing = True
        elif key == "\x1b":
            self.filter, self.offset = "", 0
        elif key in _LINES:
            self.offset += _LINES[key]
        elif key in _PAGES:
            self.offset += _PAGES[key] * self._height
        elif key in _FIRST:
            self.offset = 0
        elif key in _LAST:
            self.offset = self._rows
        self.window(self._rows, self._height)
