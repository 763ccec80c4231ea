"""The help: complete, with examples that parse, shown defaults, and suggestions for mistyped words."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest

from ctl.cli.base import Session, XlbCommand, XlbGroup
from ctl.cli.main import main
from ctl.errors import XlbError
from tests.fakes.cli import run
from tests.fakes.other_balancers import SAMPLES, write_samples
from tests.tree import TREE


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from walk(child, (*path, name))


COMMANDS = list(walk(main))
EXAMPLES = [example for _, command in COMMANDS if isinstance(command, XlbCommand | XlbGroup) for example in command.examples]


def test_every_command_of_the_contract_is_there() -> None:
    nouns = [
        "vip",
        "farm",
        "backend",
        "apply",
        "export",
        "diff",
        "history",
        "rollback",
        "why",
        "cluster",
        "conn",
        "stats",
        "top",
        "doctor",
        "version",
    ]
    verbs = {
        "vip": "add list delete",
        "farm": "add list show set delete start stop",
        "backend": "add set drain remove",
        "conn": "list count show flush",
    }
    paths = {path for path, _ in COMMANDS}
    assert {(noun,) for noun in nouns} <= paths
    assert {(noun, verb) for noun, all_ in verbs.items() for verb in all_.split()} <= paths


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_help_has_a_summary_and_examples(path: tuple[str, ...], command: click.Command) -> None:
    code, out, err = run(*path, "--help")
    assert (code, err) == (0, "")
    assert command.help and command.help.strip().split("\n\n")[0].rstrip().endswith((".", "'."))
    assert "\nExamples:\n  xlbctl" in out
    assert isinstance(command, XlbCommand | XlbGroup) and 1 <= len(command.examples) <= 5
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or (isinstance(parameter, click.Option) and parameter.help), parameter.name


@pytest.mark.parametrize("example", dict.fromkeys(EXAMPLES))
def test_examples_parse_and_reach_the_daemon(example: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def call(session: Session, command: str, **args: Any) -> NoReturn:
        raise XlbError("was asked")

    monkeypatch.setattr(Session, "call", call)
    monkeypatch.setenv("XLB_CONFIG", str(tmp_path / "node.toml"))  # there may be an installed one
    monkeypatch.chdir(tmp_path)
    for name in ("farms.toml", "blocked.txt"):
        Path(name).write_text("")
    write_samples(Path())
    program, *words = shlex.split(example.split(" > ")[0].split(" < ")[0].split(" | ")[0].split(" && ")[0])
    assert program == "xlbctl"
    code, out, err = run(*words, input=SAMPLES["ipvsadm"])
    if words[0] == "completion":
        assert (code, err) == (0, "") and out
    elif words[0] == "import":
        assert code == 0 and out
    elif words[0] == "capture":  # it needs root, and names from the disk, before it asks
        assert code == 1 and ("needs root" in err or "node file" in err)
    elif words[-1] == "--check":
        assert (code, out, err) == (3, "UNKNOWN: was asked\n", "")
    else:
        assert err == "xlbctl: was asked\n" and code == (0 if words[0] == "version" else 1)


@pytest.mark.parametrize("name", ["farm add", "backend add"])
def test_help_shows_defaults(name: str) -> None:
    _, out, _ = run(*name.split(), "--help")
    expected = {
        "farm add": ["tcp", "snat", "maglev", "tcp for tcp, none for udp", "2000", "200-399"],
        "backend add": ["1", "0"],
    }[name]
    flat = " ".join(out.split())
    assert all(f"[default: {value}]" in flat for value in expected)


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["fram", "list"], "did you mean 'farm'?"),
        (["farm", "lst"], "did you mean 'list'?"),
        (["backend", "xyzzy"], "expected one of: add, set, drain, remove"),
        (["farm", "add", "x", "--prot", "tcp"], "--proto"),
    ],
)
def test_a_mistyped_word_gets_a_suggestion(args: list[str], hint: str) -> None:
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert hint in err and err.count("\n") == 1


def test_without_a_command_the_help_is_on_stderr_and_it_is_wrong_usage() -> None:
    for args in ([], ["farm"]):
        code, out, err = run(*args)
        assert (code, out) == (2, "")
        assert "Commands:" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    assert f"_XLBCTL_COMPLETE={shell}_complete" in out


def test_completion_of_words() -> None:
    environment = {**os.environ, "_XLBCTL_COMPLETE": "bash_complete", "COMP_WORDS": "xlbctl farm s", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "ctl.cli.main"]
    done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plain,show", "plain,set", "plain,start", "plain,stop"]


def test_man_page_names_every_command_and_is_roff(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(TREE)}
    subprocess.run([sys.executable, TREE / "docs" / "make_man.py", tmp_path], env=environment, check=True)
    page = (tmp_path / "xlbctl.8").read_text()
    for path, command in COMMANDS:
        if not isinstance(command, click.Group):
            assert f'.SS "xlbctl {" ".join(path)}' in page
    daemon_page = (tmp_path / "xlbd.8").read_text()
    assert ".B \\-\\-config FILE" in daemon_page and "\n@OPTIONS@" not in daemon_page
