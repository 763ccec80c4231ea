"""Values that several files repeat for different readers agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ctl.state.node_file import ChecksSection, ClusterSection, DataSection, NodeSection, NotifySection, WebSection, load, parse
from ctl.web.main import WANTED_FILES
from tests.tree import TREE


def _version() -> str:
    return str(tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["version"])


def test_every_changelog_ends_at_the_project_version() -> None:
    debian = re.match(r"xlb \(([^)]+)\)", (TREE / "debian/changelog").read_text())
    users = re.search(r"^## \[(\d[^]]*)\]", (TREE / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert debian is not None
    assert users is not None
    assert [debian[1], users[1]] == [_version(), _version()]


def test_the_packaged_node_file_is_valid() -> None:
    node = load(TREE / "debian/node.toml")
    assert node.data.interfaces == ("eth0",)


def test_the_manual_shows_every_setting_with_its_default() -> None:
    page = (TREE / "docs/man/xlbd.8").read_text().replace("\\-", "-")
    shown = tomllib.loads(page[page.index(".EX") + len(".EX") : page.index(".EE")])
    sections: dict[str, Any] = {
        "node": NodeSection,
        "data": DataSection,
        "cluster": ClusterSection,
        "checks": ChecksSection,
        "notify": NotifySection,
        "web": WebSection,
    }
    assert {name: set(table) for name, table in shown.items()} == {
        name: set(section.__slots__) - {"priority_given", "name_given"} for name, section in sections.items()
    }
    defaults = parse('[data]\ninterfaces = ["eth0"]', "", "lb1")
    for name, table in shown.items():
        for key, value in table.items():
            default = getattr(getattr(defaults, name), key)
            assert value == (
                list(default) if isinstance(default, tuple) else str(default) if isinstance(default, Path) else default
            )


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (TREE / "Makefile").read_text(), re.MULTILINE))


def test_make_help_lists_every_target() -> None:
    described = set(re.findall(r"^([a-z][a-z0-9-]*):.*## ", (TREE / "Makefile").read_text(), re.MULTILINE))
    assert _targets() - described == {"test-privileged"}  # a part of `test`


@pytest.mark.parametrize("name", ["xlbd", "xlb-web"])
def test_the_unit_starts_what_the_package_installs(name: str) -> None:
    unit = (TREE / f"debian/xlb.{name}.service").read_text()
    scripts = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["scripts"]
    started = re.search(r"^ExecStart=/usr/bin/(\S+) --config (\S+)$", unit, re.MULTILINE)
    assert started is not None
    assert started[1] == name and name in scripts
    installed = dict(line.split() for line in (TREE / "debian/xlb.install").read_text().splitlines())
    assert started[2] == f"/{installed['debian/node.toml']}/node.toml"
    assert f"dh_installsystemd --name={name} --no-enable" in (TREE / "debian/rules").read_text()


def test_the_page_runs_as_the_user_that_the_package_makes() -> None:
    unit = dict(
        line.split("=", 1) for line in (TREE / "debian/xlb.xlb-web.service").read_text().splitlines() if "=" in line[:30]
    )
    assert (unit["User"], unit["Group"], unit["CapabilityBoundingSet"]) == ("xlb-web", "xlb", "")
    assert f"/var/lib/{unit['StateDirectory']}" == str(parse('[data]\ninterfaces = ["eth0"]', "", "lb1").web.state_dir)
    assert int(unit["LimitNOFILE"]) >= WANTED_FILES
    made = (TREE / "debian/xlb.postinst").read_text()
    assert "--gid xlb --home-dir /var/lib/xlb-web" in made and "userdel xlb-web" in (TREE / "debian/xlb.postrm").read_text()


def test_the_package_has_every_document_for_operators() -> None:
    installed = set((TREE / "debian/xlb.docs").read_text().split())
    documents = {str(path.relative_to(TREE)) for path in (TREE / "docs").glob("*.md")} - {"docs/DEVELOPMENT.md"}
    assert installed == documents | {"README.md", "docs/adr"}  # CHANGELOG.md becomes changelog.gz
