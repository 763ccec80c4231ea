"""The syntax of keepalived.conf: comments, quotes, parameters, conditions, includes and blocks.

Source: keepalived.conf(5). Decides the structure of the input. Must not know what a statement means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ctl.errors import InvalidInput
from ctl.importing.form import Notes, Place, Source

MAX_FILES = 256
MAX_DEPTH = 12
"""Of includes, of blocks and of parameters within parameters."""
MAX_LINES = 200_000
MAX_LINE = 65_536
_DEFINITION = re.compile(r"\s*\$(\w+)=(.*)", re.DOTALL)
_USE = re.compile(r"\$(?:\{(\w+)\}|(\w+)(?=\s|$))")
_INCLUDE = re.compile(r"\s*include[rmwba]?\s+(.+)")
_CONDITION = re.compile(r"(\s*)@(\^?\S+)(\s.*)?$")
_TOKEN = re.compile(r"""\s+|[{}]|[#!].*|(?:\$\{[^}]*\}|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\\.|[^\s{}"'#!\\]|["'\\])+""")
_QUOTED = re.compile(r""""((?:\\.|[^"\\])*)"|'((?:\\.|[^'\\])*)'|\\(.)""")

Line = tuple[Place, str]


@dataclass(slots=True)
class Statement:
    """A statement, with the statements of its block if it has one (None: it has none)."""

    place: Place
    words: list[str]
    block: list[Statement] | None = None
    last_line: int = 0

    @property
    def key(self) -> str:
        return self.words[0]

    @property
    def rest(self) -> list[str]:
        return self.words[1:]

    @property
    def head(self) -> str:
        """Its words."""
        return " ".join(self.words)

    @property
    def text(self) -> str:
        """As findings show it; a block with its last line."""
        line = self.head
        return line if self.block is None else f"{line} {{…}}" + (f" to line {self.last_line}" if self.last_line else "")

    def value(self, default: str = "") -> str:
        """The first word after the key."""
        return self.words[1] if len(self.words) > 1 else default


@dataclass(slots=True)
class _Reader:
    notes: Notes
    parameters: dict[str, list[str]] = field(default_factory=dict)
    files: int = 0
    lines: int = 0


def parse(source: Source, notes: Notes) -> list[Statement]:
    """The statements of a file and of those that it includes. Raises InvalidInput naming the line."""
    top: list[Statement] = []
    stack: list[Statement] = []
    place = Place(source.name, 1)
    for place, text in _lines(source, _Reader(notes), 0):
        _read_line(place, text, top, stack)
    if stack:
        raise InvalidInput(f'"{stack[-1].key[:60]}" has no closing brace; the file may be cut off', str(stack[-1].place))
    return top


def _read_line(place: Place, text: str, top: list[Statement], stack: list[Statement]) -> None:
    words: list[str] = []

    def close_statement() -> None:
        if words:
            (stack[-1].block if stack else top).append(Statement(place, list(words)))  # type: ignore[union-attr]
            words.clear()

    for found in _TOKEN.finditer(text):
        token = found[0]
        if token.isspace() or token[0] in "#!":
            continue
        if token == "{":
            close_statement()
            within = stack[-1].block if stack else top
            if not within or within[-1].block is not None:
                raise InvalidInput('"{" without a name before it', str(place))
            if len(stack) >= MAX_DEPTH:
                raise InvalidInput(f"more than {MAX_DEPTH} blocks within each other", str(place))
            within[-1].block = []
            stack.append(within[-1])
        elif token == "}":
            close_statement()
            if not stack:
                raise InvalidInput('"}" without a block that it closes', str(place))
            closed = stack.pop()
            closed.last_line = place.line if place.file == closed.place.file and place.line > closed.place.line else 0
        else:
            words.append(_QUOTED.sub(_unquote, token))
    close_statement()


def _unquote(found: re.Match[str]) -> str:
    double, single, escaped = found.groups()
    if escaped is not None:
        return str(escaped)
    return re.sub(r"\\(.)", r"\1", double if double is not None else single)


def _lines(source: Source, reader: _Reader, depth: int) -> Iterator[Line]:
    """The lines of a file after includes, definitions and substitutions."""
    reader.files += 1
    pending = iter(source.lines())
    for place, text in pending:
        if len(text) > MAX_LINE:
            raise InvalidInput(f"the line is longer than {MAX_LINE} characters; is this a text file?", str(place))
        include = _INCLUDE.match(text)
        if include:
            yield from _included(source, place, include[1].split("#")[0].strip(), reader, depth)
            continue
        definition = _DEFINITION.match(text)
        if definition:
            body = [definition[2]]
            while body[-1].rstrip().endswith("\\"):
                body[-1] = body[-1].rstrip()[:-1]
                following = next(pending, None)
                if following is None:
                    raise InvalidInput(f"the definition of ${definition[1]} is cut off", str(place))
                body.append(following[1])
            reader.parameters[definition[1]] = body
            continue
        yield from _expanded(place, text, reader, 0)


def _included(source: Source, place: Place, pattern: str, reader: _Reader, depth: int) -> Iterator[Line]:
    pattern = _QUOTED.sub(_unquote, pattern)
    remedy = "put the file there, or its content here, and import again"
    if depth >= MAX_DEPTH:
        reader.notes.lost(place, f"include {pattern}", f"more than {MAX_DEPTH} files include each other", remedy)
        return
    found = source.include(pattern, source.path)
    if not (found.sources or found.problems):
        reader.notes.lost(place, f"include {pattern}", "there is no such file, or the input is not a file", remedy)
    for problem in found.problems:
        reader.notes.lost(place, f"include {pattern}", problem, remedy)
    for each in found.sources:
        if reader.files >= MAX_FILES:
            reader.notes.lost(
                place, f"include {pattern}", f"more than {MAX_FILES} files are included", "import them one by one"
            )
            return
        yield from _lines(each, reader, depth + 1)


def _expanded(place: Place, text: str, reader: _Reader, depth: int) -> Iterator[Line]:
    """A line with its parameters replaced; a parameter of several lines becomes these."""
    name = re.fullmatch(r"\s*\$(?:\{(\w+)\}|(\w+))\s*", text)
    body = reader.parameters.get((name[1] or name[2]) if name else "")
    if body is not None and len(body) > 1:
        if depth >= MAX_DEPTH:
            raise InvalidInput(f"more than {MAX_DEPTH} parameters stand for each other", str(place))
        for each in body:
            definition = _DEFINITION.match(each)
            if definition:
                reader.parameters[definition[1]] = [definition[2].strip()]
            else:
                yield from _expanded(place, each, reader, depth + 1)
        return
    for _ in range(MAX_DEPTH):
        replaced = _USE.sub(lambda found: _parameter(found, reader), text)
        if replaced == text:
            break
        text = replaced
        if len(text) > MAX_LINE:
            raise InvalidInput(f"its parameters make the line longer than {MAX_LINE} characters", str(place))
    else:
        raise InvalidInput(f"more than {MAX_DEPTH} parameters stand for each other", str(place))
    reader.lines += 1
    if reader.lines > MAX_LINES:
        raise InvalidInput(f"the configuration has more than {MAX_LINES} lines", str(place))
    condition = _CONDITION.match(text)
    if condition:
        text = condition[3] or ""
        why = "whether the condition holds depends on the node; the line is read as if it did"
        reader.notes.changed(place, f"@{condition[2]}{text}", why, "delete the lines of the other node and import again")
    yield place, text


def _parameter(found: re.Match[str], reader: _Reader) -> str:
    body = reader.parameters.get(found[1] or found[2])
    return found[0] if body is None else " ".join(body).strip()
