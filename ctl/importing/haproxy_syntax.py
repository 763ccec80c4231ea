"""The syntax of haproxy.cfg: words, quotes and sections, and the defaults that a section has.

Source: HAProxy's configuration manual, sections 2 and 4. Must not know what a statement means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ctl.errors import InvalidInput
from ctl.importing.form import Notes, Place, Source

MAX_LINE = 65_536
MAX_LINES = 200_000
SECTIONS = (
    *("global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "userlist", "mailers", "cache", "program"),
    *("ring", "log-forward", "http-errors", "fcgi-app", "crt-store", "traces", "log-profile", "acme"),
)
_WORD = re.compile(r"""\s+|\#.*|(?:\\.|"(?:\\.|[^"\\])*"|'[^']*'|[^\s\#\\"']|["'\\])+""")
_PART = re.compile(r"""\\(.)|"((?:\\.|[^"\\])*)"|'([^']*)'""")
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t"}
_TIME = re.compile(r"([0-9]{1,12})(us|ms|s|m|h|d)?")
_UNITS_MS = {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclass(frozen=True, slots=True)
class Statement:
    """A line of a section."""

    place: Place
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def name(self) -> str:
        """The words that identify it: the first, or two where the first is "timeout", "option" or the like."""
        words = self.words[1:] if self.words[0] in ("no", "default") and len(self.words) > 1 else self.words
        return " ".join(words[: 2 if words[0] in ("timeout", "option", "tcp-request", "tcp-response", "stick") else 1])

    @property
    def negated(self) -> bool:
        return self.words[0] in ("no", "default") and len(self.words) > 1

    def word(self, number: int, default: str = "") -> str:
        return self.words[number] if number < len(self.words) else default


@dataclass(slots=True)
class Section:
    """A section with its statements; `defaults`: the section that it takes defaults from."""

    place: Place
    words: tuple[str, ...]
    statements: list[Statement] = field(default_factory=list)
    defaults: Section | None = None
    last_line: int = 0

    @property
    def kind(self) -> str:
        return self.words[0]

    @property
    def name(self) -> str:
        return self.words[1] if len(self.words) > 1 else ""

    @property
    def text(self) -> str:
        """As findings show it, with its last line."""
        end = f" to line {self.last_line}" if self.last_line > self.place.line else ""
        return f"{self.kind} {self.name}".strip() + end

    def all(self) -> Iterator[Statement]:
        """Its statements after those of its defaults."""
        if self.defaults is not None:
            yield from self.defaults.all()
        yield from self.statements

    def last(self, name: str) -> Statement | None:
        """The statement of this name that holds; None also if it is negated."""
        found = None
        for each in self.all():
            if each.name == name:
                found = None if each.negated else each
        return found

    def value(self, name: str, default: str = "") -> str:
        """The word after the name."""
        found = self.last(name)
        return default if found is None else found.word(len(name.split()), default)


def parse(source: Source, notes: Notes) -> list[Section]:
    """The sections of a file. Raises InvalidInput naming the line."""
    sections: list[Section] = []
    newest: Section | None = None
    lines = source.lines()
    if len(lines) > MAX_LINES:
        raise InvalidInput(f"the configuration has more than {MAX_LINES} lines", str(Place(source.name, MAX_LINES)))
    for place, line in lines:
        words = _words(place, line)
        if not words:
            continue
        if words[0].startswith("."):
            why = "conditions of HAProxy's preprocessor are not evaluated: the lines of all branches are read"
            notes.changed(place, " ".join(words), why, "delete the branches that do not hold and import again")
        elif words[0] in SECTIONS:
            section = Section(place, words, last_line=place.line)
            _set_defaults(section, newest, sections)
            newest = section if section.kind == "defaults" else newest
            sections.append(section)
        elif not sections:
            raise InvalidInput(f'expected a section such as "defaults" or "listen NAME", got "{words[0][:60]}"', str(place))
        else:
            sections[-1].statements.append(Statement(place, words))
            sections[-1].last_line = place.line
    return sections


def _set_defaults(section: Section, newest: Section | None, sections: list[Section]) -> None:
    if section.kind not in ("defaults", "frontend", "backend", "listen"):
        return
    named = section.words[section.words.index("from") + 1 :][:1] if "from" in section.words else ()
    if named:
        found = [each for each in sections if each.kind == "defaults" and each.name == named[0]]
        if not found:
            raise InvalidInput(f'there is no section "defaults {named[0][:60]}" before this line', str(section.place))
        section.defaults = found[-1]
    elif section.kind != "defaults":
        section.defaults = newest


def _words(place: Place, line: str) -> tuple[str, ...]:
    if len(line) > MAX_LINE:
        raise InvalidInput(f"the line is longer than {MAX_LINE} characters; is this a text file?", str(place))
    words = []
    for found in _WORD.finditer(line):
        token = found[0]
        if not token.isspace() and token[0] != "#":
            words.append(_PART.sub(_unquoted, token))
    return tuple(word for word in words if word) if any(words) else ()


def _unquoted(found: re.Match[str]) -> str:
    escaped, double, single = found.groups()
    if escaped is not None:
        return _ESCAPES.get(escaped, escaped)
    return str(single) if double is None else re.sub(r"\\(.)", lambda each: _ESCAPES.get(each[1], each[1]), double)


def milliseconds(text: str) -> int | None:
    """A time such as 5s, 500 or 1m; without a unit it is in ms."""
    found = _TIME.fullmatch(text)
    return None if found is None else int(int(found[1]) * _UNITS_MS[found[2] or "ms"])
