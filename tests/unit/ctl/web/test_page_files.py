"""The files of the page: what its policy forbids is in none of them, and its fields are the settings that xlbd has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ctl.config.fields import BACKEND_FIELDS, FARM_FIELDS, HEALTH_FIELDS, VIP_FIELDS
from ctl.config.model import CheckKind, Mode, Protocol, QueryType, ResponseCode, Scheduler
from ctl.config.settings import TABLE_SIZES
from ctl.importing.kinds import READERS
from tests.tree import TREE

PAGE = TREE / "ctl" / "web" / "page"
SCRIPTS = sorted(PAGE.glob("app/**/*.js"))
SETTINGS = (PAGE / "app" / "settings.js").read_text()


def block(name: str) -> str:
    """The list of this name in settings.js."""
    return SETTINGS.partition(f"export const {name} = [")[2].partition("\n];")[0]


def names(text: str) -> list[str]:
    """Of the fields in a list: {name: "x"} or helper("x", …), one per line."""
    return re.findall(r'^  (?:\{ name: |\w+\()"(\w+)"', text, re.MULTILINE)


@pytest.mark.parametrize("path", [*SCRIPTS, PAGE / "index.html"], ids=lambda path: path.name)
def test_no_text_is_parsed_and_nothing_is_inline(path: Path) -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|createContextualFragment"
    )
    inline = r"\son\w+=|<style|\sstyle=|javascript:|<script>|\.style\."
    assert re.findall(f"{forbidden}|{inline}", path.read_text()) == []


def test_every_module_is_loaded_early_and_exists() -> None:
    index = (PAGE / "index.html").read_text()
    early = set(re.findall(r'modulepreload" href="/(\S+)"', index))
    modules = {str(path.relative_to(PAGE)) for path in SCRIPTS} - {"app/theme.js"}
    assert early == modules
    for path in SCRIPTS:
        for imported in re.findall(r'from "(\.\S+)"', path.read_text()):
            assert (path.parent / imported).is_file(), f"{path.name} imports {imported}"


def test_only_one_module_makes_elements() -> None:
    assert [path.name for path in SCRIPTS if re.search(r"createElement|createTextNode", path.read_text())] == ["dom.js"]


def test_the_fields_of_the_forms_are_the_settings_of_xlbd() -> None:
    farm = {*names(block("FARM_MAIN")), *names(block("FARM_MORE"))}
    assert farm == set(FARM_FIELDS) - {"enabled", "health"}  # start and stop; CHECK
    assert {*names(block("CHECK")), "kind"} == set(HEALTH_FIELDS)
    by_button = set(re.findall(r'"(\w+)"', SETTINGS.partition("BACKEND_BY_BUTTON = [")[2].partition("]")[0]))
    assert {*names(block("BACKEND")), *by_button} == set(BACKEND_FIELDS)
    assert set(names(block("VIP"))) == set(VIP_FIELDS)


def test_the_choices_of_the_forms_are_those_of_xlbd() -> None:
    def offered(line: str) -> set[str]:
        return set(re.findall(r'\["(\w+)", ', line))

    for name, kinds in (("mode", Mode), ("scheduler", Scheduler)):
        line = next(each for each in SETTINGS.splitlines() if f'choice("{name}"' in each)
        assert offered(line) == {each.value for each in kinds}
    one_line = {
        name: SETTINGS.partition(f"export const {name} =")[2].partition("\n")[0] for name in ("PROTOCOLS", "CHECK_KINDS")
    }
    assert offered(one_line["PROTOCOLS"]) == {each.value for each in Protocol}
    assert offered(one_line["CHECK_KINDS"]) == {each.value for each in CheckKind}
    for choices in (QueryType, ResponseCode):
        assert "[" + ", ".join(f'"{each.value}"' for each in choices) + "]" in SETTINGS
    assert str(list(TABLE_SIZES)) in SETTINGS
    configuration = (PAGE / "app" / "views" / "configuration.js").read_text()
    assert offered(configuration.partition("const KINDS =")[2].partition("\n")[0]) == set(READERS)
