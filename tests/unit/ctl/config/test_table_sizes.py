"""The size of a farm's lookup table: chosen once, kept through every change, and stored."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf.constants import MAX_FARMS, MAX_SLOT_CHUNKS, SLOTS_PER_CHUNK
from ctl.config.changes import change, replace_from_document
from ctl.config.farms_file import to_document
from ctl.config.model import Backend, Config, Farm
from ctl.config.record_codec import DamagedRecord, Decoder, Encoder, decode
from ctl.config.settings import TABLE_SIZES
from ctl.config.table_sizes import LEAST, PREFERRED, choose, needed, settled, size_of
from ctl.errors import Code
from tests.refusals import invalid


def backends(*weights: int) -> tuple[Backend, ...]:
    return tuple(Backend(number, f"10.1.{number // 250}.{number % 250}", 80, each) for number, each in enumerate(weights, 1))


def farm(*weights: int, **more: int) -> Farm:
    return Farm(1, "web", "10.0.0.1", 80, 80, backends=backends(*weights), **more)  # type: ignore[arg-type]


def config(**settings: object) -> Config:
    made = change(Config(), "vip.add", {"address": "10.0.0.1/24", "device": "eth0"})
    made = change(made, "farm.add", {"name": "web", "vip": "10.0.0.1", "port": 80, **settings})
    for number in range(1, 6):
        made = change(made, "backend.add", {"farm": "web", "address": f"10.1.0.{number}", "port": 80})
    return made


def of_0_1_0(made: Config) -> Config:
    """As an earlier version stored it."""
    return replace(made, farms={name: replace(each, kept_size=0) for name, each in made.farms.items()})


def test_sizes_are_primes_and_fit_the_backends() -> None:
    for size in TABLE_SIZES:
        assert all(size % divisor for divisor in range(2, int(size**0.5) + 1))
    wanted = {(0, 0): 509, (1,): 509, (1,) * 10: 1021, (1,) * 11: 2039, (1, 10): 2039, (7,) * 200: 32749, (1, 65535): 65537}
    assert {weights: needed(backends(*weights)) for weights in wanted} == wanted


def test_as_many_farms_as_there_may_be_fit() -> None:
    """Created one after the other without backends, as on the command line."""
    used, chosen = 0, []
    for _ in range(MAX_FARMS - 1):
        chosen.append(choose(farm(), used))
        used += -(-chosen[-1] // SLOTS_PER_CHUNK) * SLOTS_PER_CHUNK
    assert chosen[:30] == [PREFERRED] * 30 and chosen == sorted(chosen, reverse=True)
    assert chosen[1000] == LEAST
    assert used < MAX_SLOT_CHUNKS * SLOTS_PER_CHUNK * 0.9, "and some can be replaced at a time"


def test_farms_of_one_document_share_what_is_left() -> None:
    assert choose(farm(*[1] * 8), 4000 * 1024) == 1021, "what they need, where the needs of all fill the slot map"
    assert choose(farm(*[1] * 60), 0) == 32749, "more than the usual size, for four times as many"
    servers = [{"address": f"10.1.0.{number}", "port": 80} for number in range(1, 9)]
    farms = [{"name": f"f{port}", "vip": "10.0.0.1", "port": port, "backend": servers} for port in range(1, 101)]
    made = replace_from_document(Config(), {"vip": [{"address": "10.0.0.1/24", "device": "eth0"}], "farm": farms})
    sizes = [each.kept_size for each in made.farms.values()]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == PREFERRED and sizes[-1] < PREFERRED


def test_the_size_is_kept_through_changes_and_through_the_record() -> None:
    made = config()
    assert made.farms["web"].kept_size == PREFERRED
    for command, arguments in (
        ("backend.add", {"address": "10.1.0.6", "port": 80}),
        ("backend.set", {"address": "10.1.0.6", "port": 80, "weight": 0}),
        ("backend.set", {"address": "10.1.0.6", "port": 80, "weight": 60000}),
        ("backend.remove", {"address": "10.1.0.5", "port": 80}),
    ):
        made = change(made, command, {"farm": "web", **arguments})
        assert made.farms["web"].kept_size == PREFERRED
    assert decode(Encoder().encode(made)) == made
    again = replace_from_document(made, to_document(made))
    assert again is made, "a farms file without a size keeps it"


def test_an_earlier_version_reads_the_record() -> None:
    """It refuses a farm with an unknown field, and ignores unknown keys of the header."""
    header, *lines = Encoder().encode(config()).splitlines()
    assert json.loads(header)["table_sizes"] == {"web": PREFERRED}
    assert not any(b"_size" in line for line in lines)


def test_a_changed_size_alone_is_seen_by_the_decoder() -> None:
    made, decoder = config(), Decoder()
    decoder.decode(Encoder().encode(of_0_1_0(made)))
    assert decoder.decode(Encoder().encode(made)).farms["web"].kept_size == PREFERRED
    header, *lines = Encoder().encode(made).splitlines(keepends=True)
    damaged = [header.replace(str(PREFERRED).encode(), b"1000"), *lines[:-1]]
    import hashlib

    digest = hashlib.sha256(b"".join(damaged)).hexdigest()
    with pytest.raises(DamagedRecord):
        decode(b"".join([*damaged, json.dumps({"sha256": digest}).encode() + b"\n"]))


def test_a_farm_of_an_earlier_version_keeps_its_table_and_does_not_jump() -> None:
    old = of_0_1_0(config())
    assert size_of(old.farms["web"]) == 509
    renamed = change(old, "farm.set", {"name": "web", "idle_timeout_s": 60})
    assert renamed.farms["web"].kept_size == 0 and size_of(renamed.farms["web"]) == 509, "earlier versions can read it"
    for command, arguments in (
        ("backend.add", {"address": "10.1.0.6", "port": 80}),  # the size would become 1021
        ("backend.set", {"address": "10.1.0.1", "port": 80, "weight": 0}),
    ):
        old = change(old, command, {"farm": "web", **arguments})
        assert size_of(old.farms["web"]) == 509
    document = to_document(of_0_1_0(config()))
    document["farm"][0]["backend"].append({"address": "10.1.0.9", "port": 80})  # type: ignore[index]
    assert size_of(replace_from_document(of_0_1_0(config()), document).farms["web"]) == 509


def test_an_empty_farm_of_an_earlier_version_gets_a_new_size() -> None:
    assert settled(farm(1), farm(), 0).kept_size == PREFERRED


def test_an_explicit_size() -> None:
    made = change(config(), "farm.set", {"name": "web", "table_size": 4093})
    assert size_of(made.farms["web"]) == 4093
    assert to_document(made)["farm"][0]["table_size"] == 4093  # type: ignore[index]
    made = change(made, "farm.set", {"name": "web", "table_size": 0})
    assert size_of(made.farms["web"]) == 4093, "not to jump back"
    with invalid(Code.INVALID_VALUE, "farm.web.table_size"):
        change(made, "farm.set", {"name": "web", "table_size": 1000})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 100)), max_size=12), st.booleans())
def test_no_change_of_backends_changes_the_size(steps: list[tuple[int, int]], earlier: bool) -> None:
    made = of_0_1_0(config()) if earlier else config()
    size = size_of(made.farms["web"])
    for number, weight in steps:
        server = {"farm": "web", "address": f"10.1.0.{number}", "port": 80}
        known = any(each.address == server["address"] for each in made.farms["web"].backends)
        if known and weight > 90:
            made = change(made, "backend.remove", server)
        else:
            made = change(made, "backend.set" if known else "backend.add", {**server, "weight": weight})
        assert size_of(made.farms["web"]) == size
