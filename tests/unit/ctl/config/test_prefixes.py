"""Prefix lists: what a file may hold, and how lists travel, are stored, replaced and deleted."""

from __future__ import annotations

import time
import tomllib
from dataclasses import replace
from ipaddress import ip_address
from types import MappingProxyType

import pytest

from ctl.config import changes, diff, farms_file, prefixes
from ctl.config.model import Config, PrefixList
from ctl.config.record_codec import Decoder, Encoder, decode
from ctl.errors import Code
from tests.refusals import invalid, refused

TEXT = """# clients of the office
10.0.0.0/8
192.0.2.7        # one address
2001:db8::/32

10.0.0.0/8
"""


def office(name: str = "office") -> PrefixList:
    return prefixes.parse_text(name, TEXT, "office.txt")


def test_a_file_has_a_prefix_or_an_address_per_line() -> None:
    assert list(prefixes.texts(office())) == ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]
    assert office().count == 3


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("10.0.0.0/33", "0 to 32"),
        ("2001:db8::/129", "0 to 128"),
        ("10.0.0.0/", "0 to 32"),
        ("10.0.0/8", "10.0.0/8"),
        ("office", "office"),
        ("10.0.0.0/-1", "0 to 32"),
    ],
)
def test_a_bad_line_is_named(line: str, named: str) -> None:
    with invalid(Code.INVALID_VALUE, "office.txt line 2") as caught:
        prefixes.parse_text("office", f"10.0.0.0/8\n{line}\n", "office.txt")
    assert named in str(caught.value)


def test_a_list_travels_packed() -> None:
    assert prefixes.unpack("office", **prefixes.packed(office())) == office()
    for v4 in ("%%%", "AAAA", prefixes.packed(PrefixList("x", bytes([10, 0, 0, 1, 8])))["v4"]):
        with refused(Code.INVALID_VALUE):
            prefixes.unpack("office", v4, "")


def test_the_longest_prefix_of_an_address_is_found() -> None:
    made = prefixes.parse_text("x", "0.0.0.0/0\n10.0.0.0/8\n10.1.0.0/16\n2001:db8::/32\n", "x")
    assert prefixes.matching(made, "10.1.2.3") == "10.1.0.0/16"
    assert prefixes.matching(made, "10.2.0.1") == "10.0.0.0/8"
    assert prefixes.matching(made, "192.0.2.1") == "0.0.0.0/0"
    assert prefixes.matching(made, "2001:db8::1") == "2001:db8::/32"
    assert prefixes.matching(made, "2001:db9::1") is None


def with_list(config: Config, made: PrefixList) -> Config:
    return changes.change(config, "prefixes.set", {"name": made.name} | prefixes.packed(made))


def with_farm(config: Config, **settings: object) -> Config:
    for command, arguments in (
        ("vip.add", {"address": "192.0.2.10/24", "device": "eth0"}),
        ("farm.add", {"name": "web", "vip": "192.0.2.10", "port": 80, **settings}),
    ):
        config = changes.change(config, command, arguments)
    return config


def test_a_list_in_use_is_not_deleted() -> None:
    config = with_farm(with_list(Config(), office()), deny="office")
    with refused(Code.PREFIXES_IN_USE) as caught:
        changes.change(config, "prefixes.delete", {"name": "office"})
    assert "farm web" in str(caught.value)
    config = changes.change(config, "farm.set", {"name": "web", "deny": ""})
    assert not changes.change(config, "prefixes.delete", {"name": "office"}).prefixes


def test_a_farm_names_an_existing_list() -> None:
    with invalid(Code.UNKNOWN_PREFIXES, "farm.web.allow"):
        with_farm(Config(), allow="office")
    with invalid(Code.UNKNOWN_PREFIXES, "prefixes.name"):
        changes.change(with_list(Config(), office()), "prefixes.delete", {"name": "offise"})


def test_a_list_of_the_same_content_changes_nothing() -> None:
    config = with_list(Config(), office())
    assert with_list(config, office()) is config
    other = with_list(config, prefixes.parse_text("office", "10.0.0.0/8\n192.0.2.8\n2001:db8::/32\n", "x"))
    (line,) = diff.summaries(config, other)
    assert line.startswith("prefix list office prefixes 3 ")


def test_the_record_keeps_lists() -> None:
    big = PrefixList("big", b"".join(number.to_bytes(4, "big") + b" " for number in range(50_000)))
    config = with_farm(with_list(with_list(Config(hash_seed=1), office()), big), deny="office", allow="big")
    text = Encoder().encode(config)
    assert decode(text) == config
    assert max(map(len, text.splitlines())) < 1 << 16, "a line does not keep the interpreter for long"
    decoder = Decoder()
    once, again = decoder.decode(text), decoder.decode(text)
    assert again.prefixes["big"] is once.prefixes["big"], "an unchanged list is not checked again"


def test_a_farms_file_may_have_lists() -> None:
    config = with_farm(with_list(Config(), office()), deny="office")
    text = farms_file.to_text(farms_file.to_document(config))
    assert '[[prefixes]]\nname = "office"\nprefixes = [\n    "10.0.0.0/8",' in text
    again = changes.replace_from_document(Config(), tomllib.loads(text))
    assert again.prefixes == config.prefixes
    assert changes.replace_from_document(config, tomllib.loads(text)) is config


def test_a_farms_file_without_lists_keeps_them() -> None:
    config = with_list(Config(), office())
    assert (
        changes.replace_from_document(config, {"vip": [{"address": "192.0.2.10/24", "device": "eth0"}]}).prefixes
        == config.prefixes
    )
    assert not changes.replace_from_document(config, {"prefixes": []}).prefixes


def test_limits_of_lists() -> None:
    rows = [ip_address(number).packed + b" " for number in range(prefixes.MAX_PREFIXES_PER_LIST + 1)]
    with invalid(Code.LIMIT_EXCEEDED, "prefixes"):
        with_list(Config(), PrefixList("big", b"".join(rows)))
    full = PrefixList("x", b"".join(rows[1:]))
    count = prefixes.MAX_PACKED_BYTES // len(full.v4)
    lists = {str(number): replace(full, name=str(number)) for number in range(count)}
    with invalid(Code.LIMIT_EXCEEDED, "prefixes"):
        with_list(Config(prefixes=MappingProxyType(lists)), full)


def test_a_long_list_is_read_fast() -> None:
    text = "".join(f"{ip_address(number << 8)}/24\n" for number in range(100_000))
    started = time.process_time()
    made = prefixes.parse_text("big", text, "big.txt")
    assert made.count == 100_000
    assert time.process_time() - started < 5, "about 0.3 s on an idle machine"
