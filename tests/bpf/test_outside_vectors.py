"""Packets of mode ipip from outside: what another balancer makes of each, where the feature is one of ours.

The file is no part of the project: XLB_VECTORS names its directory, else it is looked for next to the checkout. Another
balancer selects other backends and has other outer sources, so these are not compared.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from scapy.layers import inet, inet6  # noqa: F401  (Ether finds its payload by them)
from scapy.layers.l2 import Ether

from bpf.constants import Mode, VipFlag
from tests.bpf.bed import GATEWAY_MAC, Bed
from tests.bpf.beds import Beds

PLACE = Path(os.environ.get("XLB_VECTORS") or Path(__file__).resolve().parents[3] / "shared" / "vectors")
VECTORS = PLACE / "katran_ipip.json"
DATA = json.loads(VECTORS.read_text()) if VECTORS.is_file() else {"sets": []}
SETS = {each["set"]: each for each in DATA["sets"]}
CASES = [(name, case) for name, each in SETS.items() for case in each["cases"]]
ACTIONS = {1: "XDP_DROP", 2: "XDP_PASS", 3: "XDP_TX", 4: "XDP_REDIRECT"}
ALL_PORTS = 65535

NOT_OURS = {
    "v4 ICMP echo-request": "the kernel answers echo requests to a VIP",
    "v6 ICMP echo-request": "the kernel answers echo requests to a VIP",
    "drop of IPv4 packet w/ options": "packets with IPv4 options are forwarded",
    "drop of IPv4 fragmented packet": "first fragments are forwarded, and later ones follow",
    "drop of IPv6 fragmented packet": "first fragments are forwarded, and later ones follow",
    "UDP: big packet of length 1515. trigger PACKET TOOBIG": "the sender is always told; see the set icmp_too_big",
}
BY_CONNECTION_ID = "selects the server that a connection id of its scheme names"


def why_skip(name: str, case: dict[str, Any]) -> str:
    """Empty: the case is one of ours."""
    description = case["description"]
    farm = farm_of(name, case)
    reals = [real["address"] for real in farm["reals"]] if farm else []
    if description.startswith("QUIC") and case["encap"].get("outer_dst") not in reals:
        return BY_CONNECTION_ID
    return NOT_OURS.get(description, "")


def farm_of(name: str, case: dict[str, Any]) -> dict[str, Any] | None:
    number = {"tcp": 6, "udp": 17}.get(str(case["input"].get("l4")), 0)
    for vip in SETS[name]["config"]["vips"]:
        if vip["address"] == case["input"].get("dst") and vip["proto"] in (number, vip["proto"] if not number else -1):
            found: dict[str, Any] = vip
            return found
    return None


@pytest.mark.may_skip
def test_the_vectors_are_there() -> None:
    if not VECTORS.is_file():
        pytest.skip(f"no {VECTORS}: set XLB_VECTORS to the directory of the outside packets")
    assert len(CASES) >= 38


@pytest.fixture(scope="module")
def configured(beds: Beds) -> dict[str, Bed]:
    """The bed by the name of the set whose cases run now: they run in order on one state."""
    return {"": beds("replication", "dsr", "ipip")}


def configure(bed: Bed, config: dict[str, Any]) -> None:
    bed.reset()
    bed.plane.set_tunnel_sources(config["encap_src_v4"], config["encap_src_v6"])
    for number, vip in enumerate((each for each in config["vips"] if each["reals"]), 1):
        backends = [(real["address"], vip["port"] or 1) for real in vip["reals"]]
        last = 0 if vip["port"] else ALL_PORTS
        bed.farm(
            vip["address"],
            *backends,
            port=vip["port"] or 1,
            port_last=last,
            protocol=vip["proto"],
            mode=Mode.IPIP,
            farm=number,
            flags=VipFlag.OPEN,  # a VIP of theirs is an address with a port; the kernel has the other ports
        )


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case['n']}" for name, case in CASES])
@pytest.mark.may_skip
def test_a_packet_from_outside(configured: dict[str, Bed], name: str, case: dict[str, Any]) -> None:
    ((of, bed),) = configured.items()
    if name != of:
        configured.clear()
        configure(bed, SETS[name]["config"])
        configured[name] = bed
    if reason := why_skip(name, case):
        pytest.skip(f"{case['description']}: {reason}")
    frame, wanted = bytes.fromhex(case["input_hex"]), bytes.fromhex(case["expected_output_hex"])
    out = bed.send(frame)
    assert ACTIONS[out.action] == case["expected_action"], out.verdict
    if case["encap"]["kind"] == "unchanged":
        assert out.frame == wanted
    elif name == "icmp_too_big":
        check_error(out.frame, wanted)
    else:
        check_wrapped(name, case, frame, out.frame)


def check_wrapped(name: str, case: dict[str, Any], frame: bytes, out: bytes) -> None:
    """The inner packet is the input's layer 3; the outer one goes to a backend of the farm, through the gateway."""
    assert out[:6] == bytes.fromhex(GATEWAY_MAC.replace(":", ""))
    outer = Ether(out).payload
    header_bytes = 20 if outer.version == 4 else 40
    assert out[14 + header_bytes :] == frame[14:]
    assert case["encap"]["inner_equals_input_l3"]
    farm = farm_of(name, case)
    assert farm is not None
    assert outer.dst in [real["address"] for real in farm["reals"]]
    assert outer.version == Ether(bytes.fromhex(case["expected_output_hex"])).payload.version


def check_error(out: bytes, wanted: bytes) -> None:
    """ "Too big" from the VIP to the client, about the same packet, with at most the same MTU."""
    ours, theirs = Ether(out), Ether(wanted)
    assert (ours.dst, ours.payload.src, ours.payload.dst) == (theirs.dst, theirs.payload.src, theirs.payload.dst)
    header_bytes = 20 if ours.payload.version == 4 else 40
    mine, other = (frame[14 + header_bytes :] for frame in (out, wanted))
    assert mine[:2] == other[:2]
    assert 1280 <= int.from_bytes(mine[4:8], "big") <= int.from_bytes(other[4:8], "big")
    length = min(len(mine), len(other))
    assert mine[8:length] == other[8:length]
