"""What findings ask an operator to do names commands, settings, events and documents that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import click
import pytest

from ctl.cli.main import main
from ctl.config.fields import FARM_FIELDS, HEALTH_FIELDS
from tests.tree import TREE

SOURCES = sorted((TREE / "ctl" / "importing").glob("*.py"))
REST = "…"


def texts(source: str) -> Iterator[str]:
    """Every string of a module but docstrings, with REST where a value is put in."""
    tree = ast.parse(source)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    documents = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else REST for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside | documents:
            yield node.value


ALL = [text for path in SOURCES for text in texts(path.read_text())]


def command(words: list[str]) -> click.Command | None:
    """The command that words begin with."""
    found: click.Command | None = main
    while isinstance(found, click.Group) and words:
        name, *words = words
        found = found.get_command(click.Context(found), name)
    return found


def test_commands_exist() -> None:
    named = [found for text in ALL for found in re.findall(r"xlbctl ([a-z]+(?: [a-z]+)?)((?: --?[a-z-]+)*)", text)]
    assert len(named) > 40
    for words, options in named:
        found = command(words.split()) or command(words.split()[:1])
        assert found is not None and not isinstance(found, click.Group), words
        known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert set(options.split()) <= known, (words, options)


@pytest.mark.parametrize(
    ("pattern", "known"), [(r"farm\.health\.(\w+)", HEALTH_FIELDS), (r"farm\.(?!health\.|up\b|down\b)(\w+)", FARM_FIELDS)]
)
def test_settings_exist(pattern: str, known: tuple[str, ...]) -> None:
    named = {found for text in ALL for found in re.findall(pattern, text)}
    assert len(named) > 5 and named <= {*known}, named - {*known}


def test_documents_exist() -> None:
    named = {found for text in ALL for found in re.findall(r"docs/[\w.-]+", text)}
    assert named and all((TREE / name).is_file() for name in named)


def test_events_and_keys_of_the_node_file_exist() -> None:
    documented = (TREE / "docs" / "OPERATIONS.md").read_text()
    events = {found for text in ALL for found in re.findall(r"^(role\.changed|[a-z]+\.(?:changed|up|down))$", text)}
    assert len(events) == 4 and all(f"| `{event}` |" in documented for event in events)
    manual = (TREE / "docs" / "man" / "xlbd.8").read_text()
    for key in ("track", "gateway", "command_user", "command"):
        assert re.search(rf"\b{key} = ", manual), key
