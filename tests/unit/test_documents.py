"""The documents agree with the code: files, commands, settings, limits and messages they name exist, and lines are short."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import click
import pytest

from ctl.cli.base import Session
from ctl.cli.main import main
from ctl.config import accounts, changes, fields
from ctl.config.settings import BACKEND_SETTINGS, CHECK_SETTINGS, FARM_SETTINGS
from ctl.config.validation import check_farm
from ctl.errors import InvalidInput, XlbError
from ctl.state.node_file import parse
from docs import make_tables
from tests.fakes.cli import run
from tests.fakes.daemon import running_daemon
from tests.fakes.other_balancers import write_samples
from tests.tree import TREE

LONGEST_LINE = 100
NOTHING = "\N{EN DASH}"
ELSEWHERE = ("cluster", "doctor", "top")
DOCUMENTS = [*make_tables.documents(), TREE / "CHANGELOG.md", TREE / "vagrant/README.md"]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(TREE)))


# --- form -------------------------------------------------------------------------------------------------------------


def too_long(text: str) -> list[int]:
    """Numbers of the lines that exceed the limit, except rows of tables and lines that are one link."""
    return [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > LONGEST_LINE and not line.startswith("|") and len(line.split()) > 1
    ]


@each_document
def test_lines_are_wrapped(document: Path) -> None:
    assert too_long(document.read_text()) == []


def test_a_long_line_is_found() -> None:
    assert too_long("short\n" + "word " * 21) == [2]
    assert too_long("| " + "cell " * 40 + "|") == []


def test_the_readme_stays_short() -> None:
    assert len((TREE / "README.md").read_text().splitlines()) <= 130


# --- names of files and commands --------------------------------------------------------------------------------------


def missing_files(document: Path, text: str) -> set[str]:
    """Files and links of a document that do not exist."""
    named = {TREE / name for name in re.findall(r"\b(?:bench|bpf|ctl|debian|docs|sync|tests|vagrant)/[\w./-]*\.[a-z]+\b", text)}
    linked = {document.parent / name for name in re.findall(r"\]\(([^:)#]+)(?:#[^)]*)?\)", text)}
    return {str(path) for path in named | linked if not path.exists()}


@each_document
def test_files_named_in_documents_exist(document: Path) -> None:
    assert missing_files(document, document.read_text()) == set()


def test_a_missing_file_is_found() -> None:
    text = "see `ctl/node/gone.py` and [this](../gone.md#there)"
    assert len(missing_files(TREE / "docs/CONTROL.md", text)) == 2


@each_document
def test_anchors_exist(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^:)#]*)#([^)]+)\)", document.read_text()):
        headings = re.findall(r"^#+ (.+)$", ((document.parent / target) if target else document).read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", ["README.md", ".ci/run", "CHANGELOG.md", "docs/DEVELOPMENT.md", "vagrant/README.md"])
def test_make_commands_in_documents_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9.-]*):", (TREE / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ *)make ([a-z][a-z0-9.-]*)", (TREE / document).read_text(), re.MULTILINE))
    assert named and named <= targets


def typed(text: str) -> Iterator[str]:
    """Each xlbctl command of an indented block, without its comment."""
    return (found.strip() for found in re.findall(r"^ {4,}(?:lb\d# )?xlbctl (.+?)(?: +#.*| > .*)?$", text, re.MULTILINE))


def quoted(text: str) -> Iterator[str]:
    """Each xlbctl command inside a paragraph; it may be incomplete."""
    return (" ".join(found.split()) for found in re.findall(r"`xlbctl\s+([^`]+)`", text))


def known_words(words: list[str]) -> bool:
    """Whether words lead from xlbctl to a command that exists."""
    command: click.Command | None = main
    while isinstance(command, click.Group) and words:
        name, *words = words
        command = command.get_command(click.Context(command), name)
    return command is not None


@each_document
def test_xlbctl_commands_in_documents_are_valid(document: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def call(session: Session, command: str, **args: Any) -> NoReturn:
        raise XlbError("was asked")

    monkeypatch.setattr(Session, "call", call)
    monkeypatch.chdir(tmp_path)
    Path("farms.toml").write_text("")
    write_samples(Path())
    for command in (each for each in typed(document.read_text()) if "…" not in each):
        assert run(*shlex.split(command))[0] != InvalidInput.exit_code, command
    for command in quoted(document.read_text()):
        assert known_words(command.split()), command


def test_the_tutorial_works_step_by_step(tmp_path: Path) -> None:
    """On one node. doctor judges the machine that runs the test, and top needs a terminal."""
    steps = [each for each in typed((TREE / "README.md").read_text()) if shlex.split(each)[0] not in ELSEWHERE]
    with running_daemon(tmp_path) as daemon:
        for command in steps:
            code, _, err = run("--config", str(daemon.config), *shlex.split(command))
            assert (code, err) == (0, ""), command
        farm = daemon.call("farm.show", name="web")
    assert len(steps) > 8 and [backend["state"] for backend in farm["backends"]] == ["up", "up", "up"]


def test_a_wrong_command_is_found() -> None:
    assert list(typed("    lb1# xlbctl vip add X --dev eth0   # why\n    xlbctl export > f")) == [
        "vip add X --dev eth0",
        "export",
    ]
    assert run("farm", "add", "web", "--vips", "192.0.2.1")[0] == InvalidInput.exit_code
    assert list(quoted("run `xlbctl cluster\nreboot` now")) == ["cluster reboot"] and not known_words(["cluster", "reboot"])


def test_the_where_is_questions_are_answered_by_files() -> None:
    text = (TREE / "docs/ARCHITECTURE.md").read_text().split("\n## Where is …?\n")[1].split("\n## ")[0]
    answers = [re.findall(r"`([\w/.]+\.py)`", row) for row in text.splitlines() if row.startswith("| ")][2:]
    assert len(answers) >= 15
    for files in answers:
        assert files and all((TREE / name).is_file() for name in files)


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", make_tables.documents(), ids=lambda path: path.name)
def test_generated_tables_are_up_to_date(document: Path) -> None:
    text = document.read_text()
    assert make_tables.updated(text) == text, "run: make docs"


def test_every_table_is_in_a_document() -> None:
    used = {found[1] for path in make_tables.documents() for found in make_tables.BLOCK.findall(path.read_text())}
    assert used == set(make_tables.TABLES)


def rows_of(document: str, section: str) -> Iterator[list[str]]:
    """The cells of a section's table, without its header."""
    text = (TREE / document).read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    for line in [line for line in text.splitlines() if line.startswith("|")][2:]:
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


@cache
def commands() -> dict[str, frozenset[str] | None]:
    """Every control command with its arguments; None: those of a change, which reads them itself."""
    with TemporaryDirectory() as directory, running_daemon(Path(directory)) as daemon:
        known = daemon.node.parts.dispatcher.commands
    assert set(changes.CHANGES) - set(accounts.NAMES) == {name for name, each in known.items() if each.arguments is None}
    return {name: each.arguments for name, each in known.items()}


def test_control_commands_are_documented() -> None:
    shown: dict[str, str] = {}
    for names, arguments, _ in rows_of("docs/CONTROL.md", "Commands"):
        shown |= dict.fromkeys(re.findall(r"`([\w.]+)`", names), arguments)
    assert shown.keys() == commands().keys()
    for name, accepted in commands().items():
        if accepted is not None:
            assert set(shown[name].split(", ")) - {NOTHING} == accepted, name
    assert set(shown["backend.add"].split(", ")[1:]) == set(fields.BACKEND_FIELDS)
    assert {word.split()[0] for word in shown["vip.add"].split(", ")} == {*fields.VIP_FIELDS, "force"}


TEST_ID = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_test_that_shows_conformance_exists() -> None:
    """docs/CONFORMANCE.md names tests by their ids; a claim without a test is none."""
    text = (TREE / "docs/CONFORMANCE.md").read_text()
    named = set(TEST_ID.findall(text))
    assert len(named) > 60 and len(re.findall(r"::", text)) == len(TEST_ID.findall(text))
    missing = {f"{path}::{name}" for path, name in named if f"def {name}(" not in _source_of(path)}
    assert not missing
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    assert {row[1] for row in rows if len(row) == 4} == {"xlb", "---", "yes", "no", "n/a"}
    assert not [row[0] for row in rows if len(row) == 4 and row[1] == "yes" and not TEST_ID.search(row[3])]
    assert not [row[0] for row in rows if len(row) == 4 and row[1] in ("no", "n/a") and not row[2]]


@cache
def _source_of(path: str) -> str:
    file = TREE / path
    return file.read_text() if file.is_file() else ""


def test_every_map_is_documented() -> None:
    sources = "".join(path.read_text() for path in (TREE / "bpf/program").glob("*.h"))
    maps = {name.replace("FAM", "*") for name in re.findall(r'PINS "/(\w+)"', sources)}
    shown = [name for row in rows_of("docs/DATAPLANE.md", "Maps") for name in re.findall(r"`([\w*]+)`", row[0])]
    assert len(maps) > 10 and sorted(shown) == sorted(maps)


def test_every_error_kind_is_documented() -> None:
    kinds = {error.kind for error in (XlbError, InvalidInput)} | {"internal"}
    assert {re.sub("`", "", row[0]) for row in rows_of("docs/CONTROL.md", "Errors")} == kinds


def unknown_places(cell: str) -> set[str]:
    """Parts of file names, split where an example leaves something out, that no source contains."""
    sources = "\n".join(path.read_text() for top in ("ctl", "bpf") for path in (TREE / top).rglob("*.py"))
    parts = [part.strip("-.") for name in re.findall(r"`([^`*]+)`", cell) for part in Path(name).name.split("…")]
    return {part for part in parts if part not in sources}


@pytest.mark.parametrize(
    "document, section, column", [("docs/OPERATIONS.md", "Where state is", 0), ("docs/ARCHITECTURE.md", "State", 1)]
)
def test_files_of_the_state_are_named_as_in_the_code(document: str, section: str, column: int) -> None:
    for row in rows_of(document, section):
        assert unknown_places(row[column]) == set()


def test_an_unknown_state_file_is_found() -> None:
    assert unknown_places("`/var/lib/xlb/farms.yaml`, `before-join-….farms.toml`") == {"farms.yaml"}


# --- bounds -----------------------------------------------------------------------------------------------------------


def bounds(cell: str) -> tuple[int, int] | None:
    """ "1 to 254, …" as numbers."""
    found = re.search(r"\b(\d+) to (\d+)\b", cell)
    return (int(found[1]), int(found[2])) if found else None


def settings_with_bounds() -> Iterator[tuple[str, int, int]]:
    for key, values, *_ in rows_of("docs/farms-file.md", "Settings"):
        found = bounds(values)
        if found and "characters" not in values and "status" not in key and "quic" not in key:
            yield key.strip("`"), *found


def put(setting: str, value: int) -> None:
    """Check a farm with one setting changed. Raises InvalidInput."""
    farm: dict[str, Any] = {"name": "a", "vip": "192.0.2.1", "port": 80, "health": {"kind": "none"}}
    backend: dict[str, Any] = {"address": "192.0.2.2", "port": 80, "draining": True}
    place, _, name = setting.rpartition(".")
    {"farm": farm, "farm.health": farm["health"], "farm.backend": backend}[place][name] = value
    base = fields.read_farm(fields.Fields(farm, "", fields.FARM_FIELDS))
    read = fields.read_backend(fields.Fields(backend, "", fields.BACKEND_FIELDS), base)
    check_farm(type(base)(**{name: getattr(base, name) for name in base.__slots__} | {"backends": (read,)}))


@pytest.mark.parametrize(("setting", "low", "high"), [*settings_with_bounds()])
def test_documented_bounds_of_farms_are_those_of_the_code(setting: str, low: int, high: int) -> None:
    zero = {
        f"{'farm.backend' if each.of == 'backend' else each.of}.{each.name}"
        for each in (*FARM_SETTINGS, *CHECK_SETTINGS, *BACKEND_SETTINGS)
        if each.default == 0
    }
    for value in (low, high):
        put(setting, value)
    for value in (low - 1, high + 1):
        if not (setting in zero and value == 0):  # 0: no value
            with pytest.raises(InvalidInput):
                put(setting, value)


def node_bounds() -> Iterator[tuple[str, int, int]]:
    for key, _, meaning in rows_of("docs/OPERATIONS.md", "Settings of the node file"):
        found = bounds(meaning)
        if found and key != "`cluster.heartbeat_ms`":  # which is bounded with the lease: sync/failover/timing.py
            yield key.strip("`"), *found


@pytest.mark.parametrize(("setting", "low", "high"), [*node_bounds()])
def test_documented_bounds_of_the_node_file_are_those_of_the_code(setting: str, low: int, high: int) -> None:
    section, _, key = setting.partition(".")

    def put(value: int) -> None:
        table = "" if section == "data" else f"[{section}]\n"
        parse(f'[data]\ninterfaces = ["eth0"]\n{table}{key} = {value}', "", "lb1")

    for value in (low, high):
        put(value)
    for value in (low - 1, high + 1):
        with pytest.raises(InvalidInput):
            put(value)


# --- messages ---------------------------------------------------------------------------------------------------------

PLACEHOLDER = "\0"
LEAST_LETTERS = 6  # of a format that explains a message; "%s: %s" would explain all
INSERTED = re.compile(
    r"root( on lb1 \(farm\.set\))?|cluster\.switchover|farm web (removed|scheduler maglev → source)|\(\d+, \d+\)|"
    r"lb1/lb2|net\.[\w.]+|12 \(other\)|"
    r"lb[12]|web|toa|eth0|[\d.:]*( ms)?|/[\w./-]+|active|backup|fault|up|down|no (such device|space)|connection refused"
)
"""What the examples have in place of values: names, numbers, roles, reasons of the kernel."""


def formats(source: str) -> Iterator[str]:
    """Every string of a module, with PLACEHOLDER where something is put in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else PLACEHOLDER for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[-.\d]*[sdgrf]|\{\w+\}", PLACEHOLDER, node.value)


@cache
def patterns() -> tuple[re.Pattern[str], ...]:
    texts = {each for top in ("ctl", "sync") for path in (TREE / top).rglob("*.py") for each in formats(path.read_text())}
    kept = [each for each in texts if sum(map(str.isalpha, each)) >= LEAST_LETTERS and "\n" not in each]
    return tuple(re.compile(re.escape(each).replace(re.escape(PLACEHOLDER), "(.*?)")) for each in kept)


def explained(message: str) -> bool:
    """Whether the code has a format for a message, and for each phrase in its placeholders."""
    if INSERTED.fullmatch(message):
        return True
    if message.startswith("lb1 ") and explained(message.removeprefix("lb1 ")):
        return True
    return any(all(map(explained, found.groups())) for each in patterns() if (found := each.fullmatch(message)))


@pytest.mark.parametrize("message", [row[0].strip("`") for row in rows_of("docs/OPERATIONS.md", "Messages")])
def test_documented_messages_are_logged_by_the_code(message: str) -> None:
    assert explained(message)


def test_an_unknown_message_is_found() -> None:
    assert not explained("lb2 is active, epoch 8: active with epoch 8: lb1 sleeps")
    assert not explained("flow table in disorder")
