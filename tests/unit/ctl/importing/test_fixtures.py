"""Realistic configurations of each kind, with the farms file and the findings that they give.

`NAME.toml` is what `xlbctl import KIND NAME` prints in the directory of the fixture, `NAME.findings` its standard error. After
a change that is meant, run this file with XLB_WRITE_EXPECTED=1 and read the difference.
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from pathlib import Path

import pytest

from ctl.config import farms_file
from ctl.config.address_rules import problems
from ctl.config.changes import replace_from_document
from ctl.config.model import Config
from ctl.config.validation import check_config
from ctl.errors import InvalidInput
from ctl.importing.addresses import Choices
from ctl.importing.farms import Result
from ctl.importing.form import Finding, Source
from ctl.importing.kinds import READERS, import_from
from tests.fakes.cli import run

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = (".toml", ".findings")
NAMES = sorted(
    str(path.relative_to(FIXTURES)) for path in FIXTURES.glob("*/*") if path.suffix not in EXPECTED and path.is_file()
)


def imported(name: str) -> Result:
    path = FIXTURES / name
    return import_from(path.parent.name, [Source(path.name, path.read_text())], Choices())


def test_each_kind_has_four_fixtures() -> None:
    assert {kind: sum(name.startswith(f"{kind}/") for name in NAMES) >= 4 for kind in READERS} == dict.fromkeys(READERS, True)


@pytest.mark.parametrize("name", NAMES)
def test_the_farms_file_and_the_findings_are_as_expected(name: str) -> None:
    result = imported(name)
    findings = "".join(f"{each}\n" for each in result.findings)
    for suffix, made in zip(EXPECTED, (result.text, findings), strict=True):
        path = FIXTURES / f"{name}{suffix}"
        if os.environ.get("XLB_WRITE_EXPECTED"):
            path.write_text(made)
        assert path.read_text() == made


@pytest.mark.parametrize("name", NAMES)
def test_apply_accepts_the_farms_file(name: str) -> None:
    """The whole validation of `xlbctl apply --dry-run` on a node without addresses of its own; VIPs and backends included."""
    result = imported(name)
    document = tomllib.loads(result.text)
    config = replace_from_document(Config(), document)
    check_config(config)
    assert list(problems(Config(), config, ())) == []
    assert farms_file.readable(farms_file.to_document(config)) == result.document


@pytest.mark.parametrize("name", NAMES)
def test_the_header_names_the_origin_of_each_farm(name: str) -> None:
    result = imported(name)
    farms = result.document["farm"]
    assert isinstance(farms, list)
    named = re.findall(r"^# farm (\S+) +(\S+):(\d+) ", result.text, re.MULTILINE)
    assert [each[0] for each in named] == [farm["name"] for farm in farms]
    lines = (FIXTURES / name).read_text().splitlines()
    assert all(int(line) <= len(lines) and lines[int(line) - 1].strip() for _, _, line in named)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_prints_both(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FIXTURES / name
    monkeypatch.chdir(path.parent)
    code, out, err = run("import", path.parent.name, path.name)
    assert (code, out, err) == (0, Path(f"{path.name}.toml").read_text(), Path(f"{path.name}.findings").read_text())


UNKNOWN = {"keepalived": "frobnicate yes", "haproxy": "  frobnicate yes", "ipvsadm": "--frobnicate yes"}
ATTRIBUTE = re.compile(r'\s*"[^"]+"\s*:\s*"[^"]*",')
PROCESS_ONLY = re.compile(r"^global$(\n[ \t]+.*|\n$)*|^\$\w+=.*$", re.MULTILINE)
"""Where an unknown statement has no effect on farms: HAProxy's section global, and parameters before they are used."""


def is_named(findings: tuple[Finding, ...], line: int) -> bool:
    """Whether a finding is about a line, or about the block that has it."""
    for each in findings:
        last = re.search(r" to line (\d+)", each.statement)
        if each.place.line == line or (last and each.place.line <= line <= int(last[1])):
            return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_statement_is_named_wherever_it_is(name: str) -> None:
    path = FIXTURES / name
    kind, text = path.parent.name, path.read_text()
    lines = text.split("\n")
    exempt = {
        text.count("\n", 0, found.start()) + number
        for found in PROCESS_ONLY.finditer(text)
        for number in range(1, found[0].count("\n") + 2)
    }
    tried = 0
    for number, line in list(enumerate(lines, 1))[:: 1 if len(lines) < 60 else 3]:
        if number in exempt or (kind not in UNKNOWN and not ATTRIBUTE.fullmatch(line)):
            continue
        changed = "\n".join([*lines[:number], UNKNOWN.get(kind, '"frobnicate" : "yes",'), *lines[number:]])
        with contextlib.suppress(InvalidInput):  # names the line, too: see test_any_text.py
            assert is_named(import_from(kind, [Source("in", changed)], Choices()).findings, number + 1), (number, line)
        tried += 1
    assert tried >= 3 or ";" in text
