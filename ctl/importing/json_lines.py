"""JSON whose values know their line, for messages about a file.

Source: RFC 8259. Decides the syntax only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ctl.errors import InvalidInput
from ctl.importing.form import Place, Source

MAX_DEPTH = 16
_TOKEN = re.compile(
    r'\s*(?:([{}\[\],:])|("(?:[^"\\\x00-\x1f]|\\.)*")|(-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null))'
)


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it begins: a string (also of a number), a list, or an object as (name, value) in its order."""

    place: Place
    value: str | list[Node] | list[tuple[str, Node]]
    is_object: bool = False

    @property
    def text(self) -> str:
        """A plain value as a string; "" for a list or object."""
        return self.value if isinstance(self.value, str) else ""

    def members(self) -> list[tuple[str, Node]]:
        """The members of an object."""
        return [each for each in self.value if isinstance(each, tuple)] if self.is_object else []

    def items(self) -> list[Node]:
        """The elements of a list."""
        return [each for each in self.value if isinstance(each, Node)] if isinstance(self.value, list) else []

    def get(self, name: str) -> Node | None:
        """The last member of that name."""
        return next((value for key, value in reversed(self.members()) if key == name), None)


@dataclass(slots=True)
class _Tokens:
    source: Source
    line: int = 1
    at: int = 0

    @property
    def place(self) -> Place:
        return Place(self.source.name, self.line)

    def next(self) -> str:
        found = _TOKEN.match(self.source.text, self.at)
        if found is None:
            rest = self.source.text[self.at :]
            self.line += rest[: len(rest) - len(rest.lstrip())].count("\n")
            got = f'"{rest.split()[0][:40]}"' if rest.strip() else "the end of the file, which may be cut off"
            raise InvalidInput(f"is not JSON here: unexpected {got}", str(self.place))
        self.line += found[0].count("\n")
        self.at = found.end()
        return found[0].strip()

    def rest(self) -> str:
        return self.source.text[self.at :].strip()


def parse(source: Source) -> Node:
    """The value in a file. Raises InvalidInput naming the line."""
    tokens = _Tokens(source)
    node = _value(tokens, tokens.next(), 0)
    if tokens.rest():
        tokens.next()
        raise InvalidInput("is not JSON here: something follows the end of the value", str(tokens.place))
    return node


def _value(tokens: _Tokens, token: str, depth: int) -> Node:
    place = tokens.place
    if depth > MAX_DEPTH:
        raise InvalidInput(f"more than {MAX_DEPTH} values within each other", str(place))
    if token == "{":
        return Node(place, list(_members(tokens, depth)), True)
    if token == "[":
        return Node(place, list(_elements(tokens, depth)))
    if token in "}],:":
        raise InvalidInput(f'is not JSON here: expected a value, got "{token}"', str(place))
    return Node(place, _string(token, place) if token[0] == '"' else token)


def _string(token: str, place: Place) -> str:
    try:
        return str(json.loads(token))
    except ValueError:
        raise InvalidInput("is not JSON here: a string has an unknown escape", str(place)) from None


def _members(tokens: _Tokens, depth: int) -> Iterator[tuple[str, Node]]:
    token = tokens.next()
    while token != "}":
        if token[0] != '"':
            raise InvalidInput(f'is not JSON here: expected a name in quotes, got "{token[:40]}"', str(tokens.place))
        name = _string(token, tokens.place)
        if (colon := tokens.next()) != ":":
            raise InvalidInput(f'is not JSON here: expected ":" after "{name[:40]}", got "{colon[:40]}"', str(tokens.place))
        yield name, _value(tokens, tokens.next(), depth + 1)
        token = _after(tokens, "}")


def _elements(tokens: _Tokens, depth: int) -> Iterator[Node]:
    token = tokens.next()
    while token != "]":
        yield _value(tokens, token, depth + 1)
        token = _after(tokens, "]")


def _after(tokens: _Tokens, end: str) -> str:
    """The token after an element: the end, or the first of the next element. nftlb accepts a comma before the end as well."""
    token = tokens.next()
    if token == end:
        return token
    if token != ",":
        raise InvalidInput(f'is not JSON here: expected "," or "{end}", got "{token[:40]}"', str(tokens.place))
    return tokens.next()
