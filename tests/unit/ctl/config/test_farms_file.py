"""The farms file: exports can be applied again, and errors name the position."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctl.config.changes import change, replace_from_document
from ctl.config.farms_file import parse, parse_text, to_document, to_text
from ctl.config.model import CheckKind, Config
from ctl.config.validation import check_config
from ctl.errors import InvalidInput
from tests.tree import TREE
from tests.unit.configs import configs, without_ids

DOCS = TREE / "docs" / "farms-file.md"


@settings(max_examples=100, deadline=None)
@given(configs())
def test_what_is_exported_is_what_is_applied(config: Config) -> None:
    check_config(config)
    text = to_text(to_document(config))
    made = replace_from_document(Config(), parse_text(text, "farms.toml"))
    assert without_ids(made) == without_ids(config)
    check_config(made)
    assert to_text(to_document(made)) == text


@settings(deadline=None)
@example({"a": '\x7f\x00"\\\u2028\n'})
@given(st.dictionaries(st.sampled_from(["a", "b", "c_d"]), st.text() | st.integers() | st.booleans(), max_size=3))
def test_any_string_survives_toml(values: dict[str, object]) -> None:
    document = {"table": [values | {"deeper": {"list": [values]}}]}
    assert tomllib.loads(to_text(document)) == document


GOOD = """
[[vip]]
address = "10.0.0.1/24"
device = "eth0"

[[farm]]
name = "web"
vip = "10.0.0.1"
port = 80

[[farm.backend]]
address = "10.0.1.1"
port = 80

[[farm.backend]]
address = "10.0.1.2"
port = 80
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('1.2"\nport = 80', '1.2"\nport = 70000', 'farm "web".backend[1].port: expected a port from 1 to 65535, got 70000'),
        ('1.2"\nport = 80', '1.2"\nprot = 80', 'farm "web".backend[1].prot: no such setting; did you mean "port"?'),
        ('1.2"\nport = 80', '1.2"\nport = "80"', 'farm "web".backend[1].port: expected an integer, got the string "80"'),
        ('"10.0.1.2"', '"::9"', 'farm "web".backend[1].address: expected an IPv4 address'),
        ('"10.0.1.2"', '"10.0.1.1"', 'farm "web".backend[1]: the farm already has backend 10.0.1.1:80'),
        ('vip = "10.0.0.1"', 'vip = "10.0.0.2"', 'farm "web".vip: 10.0.0.2 is not one of the virtual addresses'),
        (
            "port = 80\n\n[[farm.b",
            'port = 80\nsnat_address = "10.0.0.2"\n\n[[farm.b',
            'farm "web".snat_address: 10.0.0.2 is not one of the virtual addresses',
        ),
        ('"10.0.0.1/24"', '"10.0.0.1"', "vip[0].address: expected an address with prefix length"),
        ('name = "web"\n', "", "farm[0].name: is missing"),
        ("[[vip]]", "[[vips]]", 'vips: no such setting; did you mean "vip"?'),
        ("[[vip]]", "[vip]", "vip: expected a list of tables ([[vip]]), got a table"),
        (
            "port = 80\n\n[[farm.b",
            'port = 81\nmode = "dsr"\n\n[[farm.b',
            'farm "web".backend[0].port: expected the farm\'s port 81 (mode dsr changes no port), got 80',
        ),
        (
            "[[vip]]",
            "[[farm]]\nname='api'\nvip='10.0.0.1'\nport='70-90'\n[[vip]]",
            'farm "web".port: 80/tcp on 10.0.0.1 overlaps',
        ),
        ("[[vip]]", "[[farm]]\nname='web'\nvip='10.0.0.1'\nport=1\n[[vip]]", 'farm "web".name: this name is listed twice'),
        ("[[vip]]", "[[vip]]\naddress='10.0.0.1/8'\ndevice='eth0'\n[[vip]]", "vip[1].address: 10.0.0.1 is listed twice"),
        (
            "[[vip]]",
            "[[vip]",
            "farms.toml: is not valid TOML: Expected ']]' at the end of an array declaration (at line 2, column 6)",
        ),
    ],
)
def test_errors_name_the_position(old: str, new: str, message: str) -> None:
    parse(parse_text(GOOD, "farms.toml"))
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    with pytest.raises(InvalidInput) as caught:
        parse(parse_text(text, "farms.toml"))
    assert message in str(caught.value)


def test_the_documented_example_is_valid_and_shows_every_setting() -> None:
    text = DOCS.read_text().split("```toml\n", 1)[1].split("```", 1)[0]
    document = parse_text(text, str(DOCS))
    assert len(parse(document).farms) >= 2
    for name in (
        "guard",
        "all_down",
        "on_no_backend",
        "idle_timeout_s",
        "snat_address",
        "enabled",
        "draining",
        "priority",
        "health",
        "8000-8010",
    ):
        assert name in text


def file_of(**health: object) -> dict[str, object]:
    farm: dict[str, object] = {"name": "web", "vip": "10.0.0.1", "port": 80}
    return {
        "vip": [{"address": "10.0.0.1/24", "device": "eth0"}],
        "farm": [farm | ({"health": health} if health else {})],
    }


@pytest.mark.parametrize("health", [{}, {"rise": 1}, {"interval_ms": 500}])
def test_a_farm_without_a_check_keeps_none_until_a_file_names_one(health: dict[str, object]) -> None:
    new = replace_from_document(Config(), file_of(**health))
    assert new.farms["web"].health.kind is CheckKind.TCP
    old = change(new, "farm.set", {"name": "web", "health": {"kind": "none"}})
    assert replace_from_document(old, file_of(**health)).farms["web"].health.kind is CheckKind.NONE
    assert replace_from_document(old, file_of(**health, kind="tcp")).farms["web"].health.kind is CheckKind.TCP
    assert replace_from_document(old, to_document(old)) is old
    assert replace_from_document(new, to_document(new)) is new


def test_a_record_of_0_1_0_without_a_check_takes_its_own_file_without_a_change() -> None:
    old = replace_from_document(Config(), file_of(kind="none", interval_ms=500, timeout_ms=1000))
    assert replace_from_document(old, file_of(interval_ms=500)) is old


def test_the_default_timeout_of_a_new_check_is_at_most_its_interval() -> None:
    assert replace_from_document(Config(), file_of(interval_ms=500)).farms["web"].health.timeout_ms == 500
    assert replace_from_document(Config(), file_of(interval_ms=5000)).farms["web"].health.timeout_ms == 1000
