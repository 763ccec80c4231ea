"""Realistic configurations of each kind, with the farms file and the findings that they give.

`NAME.toml` is what `xlbctl import KIND NAME` prints in the directory of the fixture, `NAME.findings` its standard error. After
a change that is meant, run this file with XLB_WRITE_EXPECTED=1 and read the difference.
"""

from __future__ import annotations

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
from ctl.importing.addresses import Choices
from ctl.importing.farms import Result
from ctl.importing.form import Source
from ctl.importing.kinds import READERS, import_from
from tests.fakes.cli import run

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = (".toml", ".findings")
NAMES = sorted(
    str(path.relative_to(FIXTURES)) for path in FIXTURES.glob("*/*") if path.suffix not in EXPECTED and path.is_file()
)


def imported(name: str) -> Result:
    path = FIXTURES / name
    return import_from(path.parent.name, Source(path.name, path.read_text()), Choices())


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
